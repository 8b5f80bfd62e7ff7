"""`fedsdr run` and `fedsdr resume`: one run folder, from settings to scores, with the local engine."""

import fcntl
import os
import platform
import resource
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.config import Client, Settings
from fedsdr.data.sources import check_name
from fedsdr.errors import UnfitAttention, UserError
from fedsdr.measure.scores import Table
from fedsdr.progress import say
from fedsdr.recipe import dump_settings, load_settings
from fedsdr.storage import (
    append_lines,
    content_hash,
    read_json,
    read_lines,
    round_folder,
    write_file,
    write_json,
)
from fedsdr.tables import METHODS, REDUCTIONS, Stage

if TYPE_CHECKING:
    from flwr.serverapp import Grid

APART: Any = {"run": {"dir"}, "federation": True}
"""Settings that may change while a run goes on: where it lies, and how long it waits."""
NONCE = "nonce"
"""File in the folder of a run over Flower that tells it from others of its name."""
PACKAGES = ("fedsdr", "torch", "transformers", "flwr", "numpy", "safetensors")


@dataclass(frozen=True)
class Result:
    """What a finished run has to show."""

    folder: Path
    base: Table
    """Scores of the base model: {"global": {domain or "mean": {metric: value}}}."""
    final: Table
    """Scores after the last round, "global" and, with a private adapter, "personalised"."""

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.folder / "report.html"

    @property
    def adapter(self) -> Path:
        """Folder of the final shared adapter, in PEFT's format."""
        from fedsdr.server.checkpoint import last_round

        return round_folder(self.folder / "server", last_round(self.folder / "server"))


def run(settings: Settings) -> Result:
    """Run a federation from the beginning.

    Raises:
        UserError: The folder already holds a run, or settings and data do not fit.
    """
    if not settings.run.dir:
        raise UserError("run.dir is empty; name a folder, or take settings from load_settings, which does")
    folder = Path(settings.run.dir)
    with _locked(folder):
        if any((folder / name).exists() for name in ("config.toml", "server", "clients")):
            raise UserError(
                f"{folder} already holds a run; go on with it by `fedsdr resume {folder}`, or choose another"
                " folder by run.dir=..."
            )
        check_budget(settings, [])
        settings = resolve(settings)
        check_fit(settings)
        environment = describe_environment(settings)
        _begin(settings, environment)
        _introduce(settings, environment)
        return _drive(settings, _local_grid(settings))


def run_over(grid: "Grid", settings: Settings) -> Result:
    """Begin a run on clients of other processes, or go on with it where its folder has it already.

    Raises:
        UserError: As `run` and `resume`; `federation` may be set anew.
    """
    folder = Path(settings.run.dir)
    check_deployed(settings)
    with _locked(folder):
        settings = resolve(settings)
        if not (folder / NONCE).exists():  # clients tell a run from one of the same name that was removed
            write_file(folder / NONCE, secrets.token_hex(4))
        if (folder / "config.toml").exists():
            environment = _demand_same(settings, has_data=False)
        else:
            environment = describe_environment(settings, has_data=False)
        _begin(settings, environment)
        for choice in describe_performance(settings):
            say(f"  {choice}")
        return _drive(settings, grid, has_data=False)


def _begin(settings: Settings, environment: dict[str, Any]) -> None:
    folder = Path(settings.run.dir)
    write_json(folder / "environment.json", environment)
    write_file(folder / "config.toml", dump_settings(settings))


def resume(folder: str | Path) -> Result:
    """Go on with a run after its last finished round; a finished run is only reported again.

    Raises:
        UserError: No run is there, its settings or data changed, or this machine would compute other
            bits than the one it began on.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    with _locked(folder):
        environment = _demand_same(settings)
        if is_finished(settings):
            say(f"{folder}: all {settings.server.num_rounds} rounds are finished; nothing is left to do")
        _introduce(settings, environment)
        return _drive(settings, _local_grid(settings))


def read_settings(folder: Path) -> Settings:
    """Settings of the run in a folder; `run.dir` is the folder, wherever it was moved.

    Raises:
        UserError: The folder holds no run.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise UserError(f"{folder} holds no run: {path.name} is missing")
    settings = load_settings(path)
    return settings.model_copy(update={"run": settings.run.model_copy(update={"dir": str(folder)})})


def is_finished(settings: Settings) -> bool:
    """Whether the run in `run.dir` has all its rounds, and the scores of the base and of the last one."""
    return all(path.exists() for path in _score_files(settings))


def _score_files(settings: Settings) -> list[Path]:
    from fedsdr.apps.server_app import evaluation_file

    return [evaluation_file(Path(settings.run.dir), number) for number in (0, settings.server.num_rounds)]


def answer_files(settings: Settings) -> dict[str, str]:
    """Model -> name of the file in a client's evaluation/ that has its answers, one record a prompt."""
    last = settings.server.num_rounds
    rounds = {"base": (0, "global"), "global": (last, "global"), "personalised": (last, "personalised")}
    return {model: f"round-{number:04d}-{name}.jsonl" for model, (number, name) in rounds.items()}


def read_result(folder: Path) -> Result:
    """Read the scores of a finished run.

    Raises:
        UserError: The run is not finished.
    """
    settings = read_settings(folder)
    if not is_finished(settings):
        raise UserError(f"the run in {folder} is not finished; go on with it by `fedsdr resume {folder}`")
    base, final = map(read_json, _score_files(settings))
    return Result(folder, base, final)


def evaluate_round(folder: Path, server_round: int | None) -> tuple[Table, Table]:
    """Scores of the base model and of a round, computed where the run has no record of them.

    The personalised model is scored if the clients still hold their private adapters of that round.

    Raises:
        UserError: The folder holds no run, or the round is not finished.
    """
    from fedsdr.apps.server_app import evaluation_file

    settings = read_settings(folder)
    asked = checked_round(folder, server_round)
    paths = {number: evaluation_file(folder, number) for number in (0, asked)}
    missing = [number for number, path in paths.items() if not path.exists()]
    if missing:
        with _locked(folder):
            _demand_same(settings)
            from fedsdr.apps.server_app import serve

            for number in missing:
                serve(_local_grid(settings), settings, only_round=number)
    return read_json(paths[0]), read_json(paths[asked])


def checked_round(folder: Path, server_round: int | None) -> int:
    """The round that is asked for, the last finished one by default.

    Raises:
        UserError: That round is not finished.
    """
    from fedsdr.server.checkpoint import last_round

    last = last_round(folder / "server")
    if last < 0:
        raise UserError(f"no round of the run in {folder} is finished yet")
    asked = last if server_round is None else server_round
    if not 0 <= asked <= last:
        raise UserError(f"{folder} has no round {asked}; finished are rounds 0 to {last}")
    return asked


def _drive(settings: Settings, grid: "Grid", has_data: bool = True) -> Result:
    """Run all rounds that are left."""
    from fedsdr.apps.server_app import serve
    from fedsdr.report.page import write_report

    begun, is_old = time.monotonic(), is_finished(settings)
    serve(grid, settings)
    if not has_data:  # the clients have told of theirs by now
        path = Path(settings.run.dir) / "environment.json"
        write_json(path, read_json(path) | {"data": _told_data(settings)})
    result = read_result(Path(settings.run.dir))
    if not is_old:
        costs = {"seconds": time.monotonic() - begun, "peak_memory": _peak_memory()}
        append_lines(
            result.folder / "metrics.jsonl", [{"event": "end", "round": settings.server.num_rounds, **costs}]
        )
    write_report(result.folder, settings)
    return result


def _peak_memory() -> int:
    """Most memory of the host that this process has had, in bytes; of a GPU's nothing is said."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _introduce(settings: Settings, environment: dict[str, Any]) -> None:
    """Tell what will be done, and the training budget."""
    from fedsdr.client.update import before_settings, count_steps

    data, client = environment["data"], settings.client
    method, largest = METHODS[settings.method], max(data["num_train"].values())

    def steps(stages: tuple[Stage, ...], client: Client) -> str:
        return ", then ".join(
            f"{'+'.join(stage.train)} on {stage.on}"
            f" {count_steps(client, len(stages), number, largest * (1 + (stage.on == 'mixed')))} steps"
            for number, stage in enumerate(stages)
        )

    say(
        f"{settings.method}: {len(data['num_train'])} clients, {sum(data['num_train'].values())} training and"
        f" {sum(data['num_test'].values())} test examples ({data['origin']}), folder {settings.run.dir}"
    )
    say(f"  model: {environment['model']['origin']}, seed {settings.run.seed}")
    for choice in describe_performance(settings):
        say(f"  {choice}")
    if method.before_rounds:
        say(f"  before round 1, at each client: {steps(method.before_rounds, before_settings(settings))}")
    say(
        f"  each of {settings.server.num_rounds} rounds, at each client: {steps(method.stages, client)}, of"
        f" {client.batch_size * client.accumulation} examples, by {client.optimizer}, correction"
        f" {client.correction}"
    )
    for domain, num in data["num_duplicates"].items():
        if num:
            say(f"  {domain}: {num} test prompts are training prompts too (see `fedsdr data`)")
    for domain, num in data["num_known_responses"].items():
        if num:
            say(f"  {domain}: {num} test responses are training responses too, to other prompts")
    for name, num in data["num_inconsistent"].items():
        if num:
            say(f"  {name}: {num} responses lack their own label, answer or facts (see `fedsdr data`)")


def _local_grid(settings: Settings) -> "Grid":
    """The in-process grid, with all clients of the run."""
    from fedsdr.apps.client_app import app as client_app
    from fedsdr.apps.local_grid import LocalGrid
    from fedsdr.apps.site import data_of

    folder = Path(settings.run.dir) / "clients"
    node = {"cache": settings.run.cache, "distill-url": settings.distill.url}
    return LocalGrid(client_app, len(data_of(settings)[1]), folder, **node)


def resolve(settings: Settings) -> Settings:
    """Fix what "auto" chooses on this machine, since it decides the last bits of results."""
    from fedsdr.apps.site import model_of
    from fedsdr.model.base import resolve_model

    run = settings.run.model_copy(update={"threads": settings.run.threads or os.cpu_count() or 1})
    model = resolve_model(settings.model)
    if settings.model.attention == "auto":
        try:
            model_of(settings.model_copy(update={"run": run, "model": model}))
        except UnfitAttention as reason:
            model = model.model_copy(update={"attention": "eager"})
            say(f"{reason}; model.attention = 'eager' is taken")
    return settings.model_copy(update={"run": run, "model": model})


def describe_performance(settings: Settings) -> list[str]:
    """Say how this machine will compute, and why so; a line for each choice."""
    import torch

    from fedsdr.model.base import choose_dtype

    model, is_gpu = settings.model, torch.cuda.is_available()
    device = torch.device("cuda" if is_gpu else "cpu")
    machine = torch.cuda.get_device_name() if is_gpu else "this processor"
    fast = str(choose_dtype(device)).removeprefix("torch.")
    dtype = f"{machine} {'is fast in it' if model.dtype == fast else f'would be fast in {fast}'}"
    attention = {
        "grouped": "no padding between examples, scores are not kept",
        "eager": "transformers' own, in padded batches",
        "sdpa": "torch's fused one, in padded batches",
    }[model.attention]
    recompute = {"off": "states are kept for the backward pass", "on": "states are computed twice"}
    return [
        f"computing: {model.dtype} ({dtype}), {settings.run.threads} threads of {os.cpu_count()} cores",
        f"  attention {model.attention} ({attention}), checkpointing {model.checkpointing}"
        f" ({recompute[model.checkpointing]})",
    ]


def check_fit(settings: Settings) -> None:
    """Refuse what would fail later, before the folder becomes a run and anything is paid for.

    Raises:
        UserError: The data cannot be read or divided, more clients are to be drawn than there are, a client
            with a rank of its own is unknown, or a prompt leaves no room for a response.
    """
    from fedsdr.apps.site import data_of, model_of
    from fedsdr.data.conversation import encode

    _, clients = data_of(settings)
    check_counts(settings, [client.id for client in clients])
    base, _ = model_of(settings)
    for client in clients:
        for example in (*client.train, *client.test):
            encode(base.tokenizer, example, example.response, settings.model.max_length)


def check_deployed(settings: Settings) -> None:
    """Refuse what no engine of Flower can run, before anyone is asked.

    Raises:
        UserError: No number of clients to wait for, no name of a run, or more privacy than the budget has.
    """
    if not settings.federation.num_clients:
        raise UserError(
            "federation.num_clients = 0: Flower's engines need the number of clients to wait for; add"
            " federation.num_clients=3 to the settings"
        )
    if not settings.run.dir:
        raise UserError("run.dir is empty: name the server's folder of this run")
    check_name(Path(settings.run.dir).name, "run")
    check_budget(settings, [])


def check_budget(settings: Settings, clients: Sequence[str]) -> None:
    """Refuse a run whose rounds would cost more than `privacy.budget`, before anything is spent.

    Args:
        settings: Of the run.
        clients: All of them; [] where they are not known yet, and then only a run that asks all is judged.

    Raises:
        UserError: With the number of rounds that the budget pays for; or opacus is missing.
    """
    from fedsdr.client.privacy import affordable, epsilon
    from fedsdr.server.strategy import num_trainings

    privacy, num_rounds = settings.privacy, settings.server.num_rounds
    if privacy.kind == "none" or (settings.server.clients_per_round and not clients):
        return
    known = clients or ["all"]
    total = epsilon(privacy, num_trainings(settings, known, num_rounds))
    if clients:
        say(f"  privacy: {privacy.kind}, epsilon {total:.3g} at delta {privacy.delta:g} after all rounds")
    if privacy.budget and total > privacy.budget:
        most = affordable(privacy, num_rounds)
        paid = max(n for n in range(num_rounds) if num_trainings(settings, known, n) <= most)
        fewer = f"set server.num_rounds = {paid}, or" if paid else "set"
        raise UserError(
            f"server.num_rounds = {num_rounds} would spend epsilon = {total:.3g} of privacy.budget ="
            f" {privacy.budget:g}: {fewer} a larger privacy.noise than {privacy.noise:g}"
        )


def check_counts(settings: Settings, clients: Sequence[str]) -> None:
    """Refuse fewer clients than are drawn or the reduction needs, and ranks of unknown ones.

    Raises:
        UserError: With what was asked for and what there is.
    """
    server, asked = settings.server, settings.server.clients_per_round or len(clients)
    if asked > len(clients):
        raise UserError(f"server.clients_per_round = {asked}, but there are {len(clients)} clients")
    if unknown := sorted(set(settings.lora.client_ranks) - set(clients)):
        raise UserError(f"lora.client_ranks names {', '.join(unknown)}; the clients are {', '.join(clients)}")
    if len(settings.lora.client_ranks) == len(clients):
        largest = max(settings.lora.client_ranks.values())
        raise UserError(
            f"lora.rank = {settings.lora.rank} is above the rank of every client: set lora.rank = {largest},"
            " and leave the clients of that rank out of lora.client_ranks"
        )
    needed = REDUCTIONS[server.reduction].num_needed(server.num_byzantine)
    if asked < needed:
        raise UserError(
            f"server.reduction = {server.reduction!r} with server.num_byzantine = {server.num_byzantine}"
            f" needs {needed} clients in each round, and {asked} are asked"
        )


def describe_environment(settings: Settings, has_data: bool = True) -> dict[str, Any]:
    """Versions, machine, model and data: what a reader needs to judge or repeat the run.

    Without `has_data` the data are at the clients, and only how many they are is told, as the clients say.
    """
    import torch

    from fedsdr.apps.site import model_of

    base, _ = model_of(settings)
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "git_commit": _git_commit(),
        "machine": {
            "system": platform.platform(),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": settings.run.threads,
        },
        "settings": {"hash": content_hash(settings.model_dump(mode="json", exclude=APART))},
        "model": {"name": settings.model.name, "origin": base.origin, "identity": base.identity},
        "data": _describe_data(settings) if has_data else _told_data(settings),
    }


def _describe_data(settings: Settings) -> dict[str, Any]:
    from fedsdr.apps.site import data_hash, data_of
    from fedsdr.data.sources import count_known_responses, find_duplicates
    from fedsdr.data.summary import count_inconsistent

    domains, clients = data_of(settings)
    return {
        "origin": settings.data.root or ("sources" if settings.data.sources else "built-in"),
        "hash": content_hash({client.id: data_hash(client) for client in clients}),
        "num_duplicates": {name: len(find_duplicates(domain)) for name, domain in domains.items()},
        "num_known_responses": {name: count_known_responses(d) for name, d in domains.items()},
        "num_inconsistent": {c.id: count_inconsistent([*c.train, *c.test]) for c in clients},
        "num_train": {client.id: len(client.train) for client in clients},
        "num_test": {client.id: len(client.test) for client in clients},
    }


def _told_data(settings: Settings) -> dict[str, Any]:
    events = read_lines(Path(settings.run.dir) / "metrics.jsonl")
    told = {event["client"]: event for event in events if event["event"] == "prepare"}
    counts = {name: {client: e[name] for client, e in told.items()} for name in ("num_train", "num_test")}
    return {"origin": "at the clients", "hash": "", "num_duplicates": {}, **counts}


def _demand_same(settings: Settings, has_data: bool = True) -> dict[str, Any]:
    """Describe the environment, and refuse one in which results would not be those of one run.

    Raises:
        UserError: Settings, data, model, or what decides the last bits, changed since the run began.
    """
    before = read_json(Path(settings.run.dir) / "environment.json")
    now = describe_environment(settings, has_data)
    for section, key in (
        ("settings", "hash"),
        ("versions", "fedsdr"),
        ("versions", "torch"),
        ("versions", "transformers"),
        ("machine", "processor"),
        ("machine", "gpu"),
        ("model", "identity"),
        ("data", "hash"),
    ):
        if before[section][key] != now[section][key]:
            what = "config.toml" if section == "settings" else f"{section} {key}"
            raise UserError(
                f"cannot go on: {what} was {before[section][key]} when the run began and is"
                f" {now[section][key]} now, so its results would not be those of one run; restore it, or"
                " start a new run"
            )
    return now


def _git_commit() -> str | None:
    """Commit of the checkout that this file is tracked in, if it is in one and git is there."""
    here = Path(__file__)
    if shutil.which("git") is None:
        return None
    git = ["git", "-C", str(here.parent)]
    tracked = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True)
    if tracked.returncode:
        return None
    head = subprocess.run([*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True)
    return head.stdout.strip() or None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a run's folder; at the end it forgets the data that it read.

    Raises:
        UserError: Another process does, or the folder is a file.
    """
    from fedsdr.apps.site import close_sites

    if folder.is_file():
        raise UserError(f"run.dir = {folder} is a file; name a folder, or one that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is working in {folder}; wait for it, or stop it") from None
        for left in folder.rglob(".*.aside"):  # of files that were being written when a process was killed
            if left.is_file():
                left.unlink()
        try:
            yield
        finally:
            close_sites()
