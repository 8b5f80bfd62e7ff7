"""Everything that determines a run's exact results on this machine: resolved, recorded, checked on resume."""

import gc
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedsdr.config import PACKED, Model, Run, Settings, Source
from fedsdr.errors import UnfitAttention, UserError
from fedsdr.plugins import describe_plugins, describe_rows, require_functions
from fedsdr.progress import say
from fedsdr.recipe import flat
from fedsdr.run_folder import RunFolder, read_settings
from fedsdr.storage import content_hash, read_json, read_lines

APART: Any = {"run": {"dir", "log_to", "engine", "workers", "gpus_per_client", "ray"}, "federation": True}
"""Settings that may change when a run is resumed: its place, its logs, its executor, its time limits."""
PACKAGES = ("fedsdr", "torch", "transformers", "flwr", "numpy", "scipy", "safetensors")


def import_libraries() -> None:
    """Import torch, transformers and Flower, if this process has not imported torch yet.

    Python would look for garbage among their half a million objects again and again, which takes a fifth of
    the time. Nor does it look later at what is alive now: these objects stay until the end of the process.
    """
    if "torch" in sys.modules or not gc.isenabled():
        return
    gc.collect()  # garbage would stay, too
    gc.disable()
    try:
        import_module("fedsdr.federation.server_app")
        import_module("fedsdr.federation.client_app")
    finally:
        gc.freeze()
        gc.enable()


def resolve(settings: Settings) -> Settings:
    """Resolve "auto" for this machine, since it determines the last bits of results."""
    import_libraries()
    from fedsdr.federation.gradient_checkpointing import resolve_for
    from fedsdr.federation.model_cache import model_of
    from fedsdr.model.attention import check_window

    threads = settings.run.threads or max(1, (os.cpu_count() or 1) // num_workers(settings.run))
    run = settings.run.model_copy(update={"threads": threads})
    model = resolve_for(settings)
    if model.attention in PACKED:
        chosen = settings.model_copy(update={"run": run, "model": model})
        try:
            check_window(model_of(chosen).base.model, longest_asked(chosen))
        except UnfitAttention as reason:
            if settings.model.attention != "auto":
                raise
            model = model.model_copy(update={"attention": "eager"})
            say(f"{reason}; using model.attention = 'eager'")
    return settings.model_copy(update={"run": run, "model": model})


def num_workers(run: Run) -> int:
    """How many workers divide the cores of this machine: as many as its GPUs take, in a simulation."""
    import torch

    share = gpus_of_worker(run)
    fitting = int(torch.cuda.device_count() / share) if run.engine == "simulation" and share else 1
    return run.workers or max(1, fitting)


def gpus_of_worker(run: Run) -> float:
    """GPUs of a worker of the simulation engine."""
    import torch

    return run.gpus_per_client or float(torch.cuda.is_available())


def longest_asked(settings: Settings) -> int:
    """Largest number of tokens of a prompt with its answer. Rewriting prompts also contain the response."""
    longest = max(settings.distill.max_new_tokens, settings.eval.max_new_tokens)
    return 2 * settings.model.max_length + longest


def describe_performance(model: Model, threads: int) -> list[str]:
    """Describe how this machine will compute, and why, one line per choice."""
    import torch

    from fedsdr.model.base import choose_dtype

    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if is_gpu else "cpu")
    machine = torch.cuda.get_device_name() if is_gpu else "this processor"
    fast = str(choose_dtype(device)).removeprefix("torch.")
    dtype = f"{machine} {'is fast in it' if model.dtype == fast else f'would be fast in {fast}'}"
    attention = {
        "grouped": "no padding between examples, scores are not kept",
        "packed": "torch's fused kernel, no padding between examples",
        "eager": "transformers' own, in padded batches",
        "sdpa": "torch's fused kernel, in padded batches",
    }[model.attention]
    recompute = {"off": "states are kept for the backward pass", "on": "states are recomputed"}
    return [
        f"computing: {model.dtype} ({dtype}), {threads} threads of {os.cpu_count()} cores",
        f"  attention {model.attention} ({attention}), gradient checkpointing"
        f" {model.gradient_checkpointing} ({recompute[model.gradient_checkpointing]})",
    ]


def describe_environment(settings: Settings, has_data: bool = True) -> dict[str, Any]:
    """Versions, machine, model and data: everything needed to judge or repeat the run.

    Without `has_data` the data are at the clients; only the numbers that they reported are included.
    """
    import torch

    from fedsdr.federation.model_cache import model_of

    base, plugins = model_of(settings).base, describe_plugins(settings)
    own = {"plugins": plugins} if plugins else {}
    rows = {"rows": describe_rows(settings)} if plugins else {}
    return {
        # In a deployment the arguments are Flower's, and contain a secret.
        "command": shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if has_data else ())]),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()} | own,
        "git_commit": git_commit(),
        "machine": {
            "system": platform.platform(),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": settings.run.threads,
        },
        "settings": {"hash": content_hash(settings.model_dump(mode="json", exclude=APART))} | rows,
        "model": {"name": settings.model.name, "origin": base.origin, "identity": base.identity},
        "data": _describe_data(settings) if has_data else reported_data(RunFolder(settings.run.dir)),
    }


def _describe_data(settings: Settings) -> dict[str, Any]:
    from fedsdr.data.classes import classes_of
    from fedsdr.data.sources import count_known_responses, find_duplicates
    from fedsdr.data.summary import count_inconsistent, notices, program_notices
    from fedsdr.federation.client_context import data_hash, data_of

    domains, clients = data_of(settings)
    classes = {name: classes_of(r.example for r in (*d.train, *d.test)) for name, d in domains.items()}
    return {
        "origin": settings.data.root or _named(settings.data.sources) or "built-in",
        "hash": content_hash({client.id: data_hash(client) for client in clients}),
        "num_duplicates": {name: len(find_duplicates(domain)) for name, domain in domains.items()},
        "num_known_responses": {name: count_known_responses(d) for name, d in domains.items()},
        "num_inconsistent": {c.id: count_inconsistent([*c.train, *c.test]) for c in clients},
        "left_out": {name: dict(domain.left_out) for name, domain in domains.items()},
        "num_cut": {name: domain.num_cut for name, domain in domains.items()},
        "notices": [*notices(domains), *([] if settings.runs_programs else program_notices(domains, False))],
        "classes": {name: list(labels) for name, labels in classes.items() if labels},
        "num_train": {client.id: len(client.train) for client in clients},
        "num_test": {client.id: len(client.test) for client in clients},
    }


def _named(sources: Sequence[Source]) -> str:
    """Presets and hub ids of the sources; files by these words only, since a model card shows them."""
    return ", ".join(dict.fromkeys(source.preset or source.hub or "own files" for source in sources))


def reported_data(folder: RunFolder) -> dict[str, Any]:
    """The data as reported by the clients of a deployment in `prepare`: numbers of examples."""
    prepared = {event["client"]: event for event in read_lines(folder.log) if event["event"] == "prepare"}
    counts = {name: {client: e[name] for client, e in prepared.items()} for name in ("num_train", "num_test")}
    return {"origin": "at the clients", "hash": "", "num_duplicates": {}, **counts}


def require_same(settings: Settings, has_data: bool = True, on_other_machine: bool = False) -> dict[str, Any]:
    """Describe the environment, and reject one in which the run would continue with different results.

    With `on_other_machine`, versions of libraries and the CPU may differ: the last bits differ from here on,
    which is recorded.

    Raises:
        UserError: Settings, data, model, or anything else that determines the last bits, changed since the
            run began.
    """
    require_functions(settings)
    import_libraries()
    before = read_json(RunFolder(settings.run.dir).environment)
    now = describe_environment(settings, has_data)
    before["versions"].setdefault("scipy", now["versions"]["scipy"])  # earlier versions did not record it
    of_the_run = (
        ("settings", "hash"),
        ("versions", "fedsdr"),
        ("versions", "plugins"),
        ("settings", "rows"),
        ("model", "identity"),
        ("data", "hash"),
    )
    of_the_machine = (
        ("versions", "torch"),
        ("versions", "transformers"),
        ("versions", "numpy"),
        ("versions", "scipy"),
        ("machine", "processor"),
        ("machine", "gpu"),
    )
    moved = before.get("moved", [])
    if on_other_machine and any(
        before[section].get(key) != now[section].get(key) for section, key in of_the_machine
    ):
        place = {"after_round": RunFolder(settings.run.dir).last_round()}
        moved = [*moved, place | {key: before[key] for key in ("machine", "versions")}]
    changed: dict[tuple[str, str], str] = {}
    for section, key in of_the_run if on_other_machine else (*of_the_run, *of_the_machine):
        old, new = before[section].get(key), now[section].get(key)
        if old != new:
            words = f"{section} {key} was {old} when the run began and is {new} now"
            changed[section, key] = _changes(settings) if key == "hash" and section == "settings" else words
    if changed:
        allowed = "" if changed.keys() & {*of_the_run} else ", or allow other last bits by --on-other-machine"
        raise UserError(
            f"cannot continue: {'; '.join(changed.values())}, so its results would not be those of one run;"
            f" restore it, or start a new run{allowed}"
        )
    return now | ({"moved": moved} if moved else {})


def _changes(settings: Settings) -> str:
    """How settings differ from those in the run's folder; a resumed run reads them there."""
    saved, now = (
        dict(flat(one.model_dump(mode="json", exclude=APART)))
        for one in (read_settings(Path(settings.run.dir)), settings)
    )
    words = [
        f"{key} was {saved.get(key)!r} and is {now.get(key)!r} now"
        for key in saved | now
        if saved.get(key) != now.get(key)
    ]
    return "; ".join(words) or "config.toml was changed since the run began, or written by an earlier fedsdr"


def git_commit() -> str | None:
    """Commit of the checkout that tracks this file, if there is one and git is installed."""
    here = Path(__file__)
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(here.parent)]
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True)
    if tracked.returncode:
        return None
    head = subprocess.run([*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True)
    return head.stdout.strip() or None
