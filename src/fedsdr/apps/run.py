"""`fedsdr run` and `fedsdr resume`: one run folder, from settings to scores, with the local engine."""

import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedsdr.config import Settings, check_settings, dump_settings
from fedsdr.errors import UserError
from fedsdr.measure.scores import Table
from fedsdr.progress import say
from fedsdr.storage import content_hash, write_file, write_json
from fedsdr.tables import METHODS

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
    def adapter(self) -> Path:
        """Folder of the final shared adapter, in PEFT's format."""
        from fedsdr.server.checkpoint import last_round, round_folder

        return round_folder(self.folder / "server", last_round(self.folder / "server"))


def run(settings: Settings) -> Result:
    """Run a federation from the beginning.

    Raises:
        UserError: The folder already holds a run, or settings and data do not fit.
    """
    folder = Path(settings.run.dir)
    if (folder / "config.toml").exists():
        raise UserError(
            f"{folder} already holds a run; go on with it by `fedsdr resume {folder}`, or choose another"
            " folder by run.dir=..."
        )
    with _locked(folder):
        settings = _resolve(settings)
        environment = describe_environment(settings)
        write_json(folder / "environment.json", environment)
        write_file(folder / "config.toml", dump_settings(settings))
        return _drive(settings, environment)


def resume(folder: Path) -> Result:
    """Go on with a run after its last finished round; a finished run is only reported again.

    Raises:
        UserError: No run is there, or this machine would compute other bits than the one it began on.
    """
    settings = read_settings(folder)
    with _locked(folder):
        environment = describe_environment(settings)
        _demand_same(json.loads((folder / "environment.json").read_text()), environment)
        return _drive(settings, environment)


def read_settings(folder: Path) -> Settings:
    """Settings of the run in a folder; `run.dir` is the folder, wherever it was moved.

    Raises:
        UserError: The folder holds no run.
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise UserError(f"{folder} holds no run: {path.name} is missing")
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    values["run"]["dir"] = str(folder)
    return check_settings(values, source=str(path))


def read_result(folder: Path) -> Result:
    """Read the scores of a finished run.

    Raises:
        UserError: The run is not finished.
    """
    from fedsdr.apps.server_app import evaluation_file

    settings = read_settings(folder)
    paths = [evaluation_file(folder, number) for number in (0, settings.server.num_rounds)]
    if not all(path.exists() for path in paths):
        raise UserError(f"the run in {folder} is not finished; go on with it by `fedsdr resume {folder}`")
    base, final = (json.loads(path.read_text()) for path in paths)
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
    with _locked(folder):
        for number in (0, asked):
            if not evaluation_file(folder, number).exists():
                _serve(settings, {"evaluate-round": number})
    base, scores = (json.loads(evaluation_file(folder, number).read_text()) for number in (0, asked))
    return base, scores


def checked_round(folder: Path, server_round: int | None) -> int:
    """The round that is asked for, the last finished one by default.

    Raises:
        UserError: That round is not finished.
    """
    from fedsdr.server.checkpoint import last_round

    last = last_round(folder / "server")
    asked = last if server_round is None else server_round
    if not 0 <= asked <= last:
        raise UserError(f"{folder} has no round {asked}; finished are rounds 0 to {last}")
    return asked


def _drive(settings: Settings, environment: dict[str, Any]) -> Result:
    """Run all rounds that are left."""
    _introduce(settings, environment)
    _serve(settings, {})
    return read_result(Path(settings.run.dir))


def _introduce(settings: Settings, environment: dict[str, Any]) -> None:
    """Tell what will be done, and the training budget."""
    from fedsdr.client.update import count_steps

    data, client = environment["data"], settings.client
    stages = METHODS[settings.method].stages
    largest = max(data["num_train"].values())
    steps = [
        f"{'+'.join(stage.train)} on {stage.on} {count_steps(client, len(stages), number, largest)} steps"
        for number, stage in enumerate(stages)
    ]
    say(
        f"{settings.method}: {len(data['num_train'])} clients, {sum(data['num_train'].values())} training and"
        f" {sum(data['num_test'].values())} test examples ({data['origin']}), folder {settings.run.dir}"
    )
    say(
        f"  model: {environment['model']['origin']}, {settings.model.dtype}, {settings.run.threads} threads,"
        f" seed {settings.run.seed}"
    )
    say(
        f"  each of {settings.server.num_rounds} rounds, at each client: {', then '.join(steps)}, of"
        f" {client.batch_size * client.accumulation} examples"
    )
    for domain, num in data["num_duplicates"].items():
        if num:
            say(f"  {domain}: {num} test prompts are training prompts too (see `fedsdr data`)")


def _serve(settings: Settings, config: dict[str, Any]) -> None:
    """Let the server app work over the in-process grid."""
    from flwr.app import Context, RecordDict

    from fedsdr.apps.client_app import app as client_app
    from fedsdr.apps.local_grid import LocalGrid
    from fedsdr.apps.server_app import app as server_app
    from fedsdr.apps.site import data_of

    grid = LocalGrid(client_app, len(data_of(settings)[1]), Path(settings.run.dir) / "clients")
    config = {"settings": settings.model_dump_json(), **config}
    server_app(grid, Context(1, 0, {}, RecordDict(), config))


def _resolve(settings: Settings) -> Settings:
    """Fix what "auto" chooses on this machine, since it decides the last bits of results."""
    from fedsdr.apps.site import model_of

    run = settings.run.model_copy(update={"threads": settings.run.threads or os.cpu_count() or 1})
    settings = settings.model_copy(update={"run": run})
    base, _ = model_of(settings)
    chosen = {
        "dtype": str(base.dtype).removeprefix("torch."),
        "attention": base.model.config._attn_implementation,
    }
    return settings.model_copy(update={"model": settings.model.model_copy(update=chosen)})


def describe_environment(settings: Settings) -> dict[str, Any]:
    """Versions, machine, model and data: what a reader needs to judge or repeat the run."""
    import torch

    from fedsdr.apps.site import data_of, model_of, vars_of
    from fedsdr.data.sources import find_duplicates

    base, _ = model_of(settings)
    domains, clients = data_of(settings)
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
        "model": {"name": settings.model.name, "origin": base.origin, "identity": base.identity},
        "data": {
            "origin": settings.data.root or ("sources" if settings.data.sources else "built-in"),
            "hash": content_hash(
                [[client.id, *map(vars_of, client.train), *map(vars_of, client.test)] for client in clients]
            ),
            "num_duplicates": {name: len(find_duplicates(domain)) for name, domain in domains.items()},
            "num_train": {client.id: len(client.train) for client in clients},
            "num_test": {client.id: len(client.test) for client in clients},
        },
    }


def _demand_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume where results would differ from an uninterrupted run's."""
    for section, key in (
        ("versions", "torch"),
        ("versions", "transformers"),
        ("machine", "processor"),
        ("machine", "gpu"),
        ("model", "identity"),
        ("data", "hash"),
    ):
        if before[section][key] != now[section][key]:
            raise UserError(
                f"cannot resume: {section} {key} was {before[section][key]} when the run began and is"
                f" {now[section][key]} now, so its results would not be those of one run; restore it, or"
                " start a new run"
            )


def _git_commit() -> str | None:
    """Commit of the checkout that this file is in, if it is in one."""
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "HEAD"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a run's folder; at the end it forgets the data that it read.

    Raises:
        UserError: Another process does.
    """
    from fedsdr.apps.site import close_sites

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is working in {folder}; wait for it, or stop it") from None
        try:
            yield
        finally:
            close_sites()
