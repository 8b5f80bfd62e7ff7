"""`fedsdr run` and `fedsdr resume`: one run folder, from settings to scores, with the local engine."""

import fcntl
import os
import resource
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fedsdr.config import Client, Settings
from fedsdr.errors import UserError
from fedsdr.evaluate.scores import Table
from fedsdr.federation.environment import (
    demand_same,
    describe_environment,
    describe_performance,
    resolve,
    told_data,
)
from fedsdr.federation.preflight import check_budget, check_deployed, check_fit
from fedsdr.methods import METHODS, Stage
from fedsdr.progress import say
from fedsdr.recipe import dump_settings, load_settings
from fedsdr.storage import read_json, read_lines, rewrite_lines, round_folder, write_file, write_json

if TYPE_CHECKING:
    from flwr.serverapp import Grid


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
    from fedsdr.federation.server_app import NONCE

    folder = Path(settings.run.dir)
    check_deployed(settings)
    # A SuperLink that was killed may leave the run's program behind, which goes on with the next SuperLink.
    with _locked(folder, settings.federation.wait):
        settings = resolve(settings)
        if (folder / "config.toml").exists():
            environment = demand_same(settings, has_data=False)
        else:
            environment = describe_environment(settings, has_data=False)
        if not (folder / NONCE).exists():  # clients tell a run from one of the same name that was removed
            write_file(folder / NONCE, secrets.token_hex(4))
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
    _demand_local(folder)
    with _locked(folder):
        environment = demand_same(settings)
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
    from fedsdr.federation.server_app import evaluation_file

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
    from fedsdr.federation.server_app import evaluation_file

    settings = read_settings(folder)
    asked = checked_round(folder, server_round)
    paths = {number: evaluation_file(folder, number) for number in (0, asked)}
    missing = [number for number, path in paths.items() if not path.exists()]
    if missing:
        _demand_local(folder)
        with _locked(folder):
            demand_same(settings)
            from fedsdr.federation.server_app import serve

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


def _demand_local(folder: Path) -> None:
    """Raise UserError if the run's data is not on this machine, but at the clients of a deployment."""
    from fedsdr.federation.server_app import NONCE

    if (folder / NONCE).exists():
        raise UserError(
            f"{folder}: this run went over Flower, and its data is at the clients: only rounds that it scored"
            " itself can be shown (eval.every). The command that began it goes on with it (`fedsdr run RECIPE"
            " ... --on SERVER`, or `flwr run`)"
        )


def _drive(settings: Settings, grid: "Grid", has_data: bool = True) -> Result:
    """Run all rounds that are left."""
    from fedsdr.federation.server_app import serve
    from fedsdr.report.page import write_report

    folder, begun = Path(settings.run.dir), time.monotonic()
    log, is_whole = folder / "metrics.jsonl", not (folder / "server").exists()
    if is_old := is_finished(settings):
        say(f"{folder}: all {settings.server.num_rounds} rounds are finished; nothing is left to do")
    if has_data or not is_old:  # clients elsewhere need not come for nothing
        serve(grid, settings)
    if not has_data:  # the clients have told of theirs by now
        path = folder / "environment.json"
        write_json(path, read_json(path) | {"data": told_data(settings)})
    result = read_result(folder)
    # The log itself tells whether it has its end: a kill may have come after the last scores.
    events = read_lines(log)
    if all(event["event"] != "end" for event in events):
        # Of a run in several processes this one knows but its own part.
        costs = {"seconds": time.monotonic() - begun, "peak_memory": _peak_memory()} if is_whole else {}
        rewrite_lines(log, [*events, {"event": "end", "round": settings.server.num_rounds, **costs}])
    write_report(folder, settings)
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
        f" {client.drift_correction}"
    )
    for notice in data["notices"]:
        say(f"  {notice}")
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
    from fedsdr.federation.client_app import app as client_app
    from fedsdr.federation.client_context import data_of
    from fedsdr.federation.local_engine import LocalGrid

    folder = Path(settings.run.dir) / "clients"
    node = {"cache": settings.run.cache, "distill-url": settings.distill.url}
    return LocalGrid(client_app, len(data_of(settings)[1]), folder, **node)


@contextmanager
def _locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Let one process at a time work in a run's folder; at the end it forgets the data that it read.

    Raises:
        UserError: Another process does, for so many seconds, or the folder is a file.
    """
    from fedsdr.federation.client_context import close_clients

    if folder.is_file():
        raise UserError(f"run.dir = {folder} is a file; name a folder, or one that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        until, is_told = time.monotonic() + patience, False
        while not _takes(file):
            file.seek(0)
            other = f"another process ({file.read() or 'of unknown number'}) is working in {folder}"
            if time.monotonic() >= until:
                raise UserError(f"{other}; wait for it, or stop it")
            if not is_told:
                say(f"  {other}: waiting until it ends")
                is_told = True
            time.sleep(1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for left in folder.rglob(".*.aside"):  # of files that were being written when a process was killed
            if left.is_file():
                left.unlink()
        try:
            yield
        finally:
            close_clients()


def _takes(file: TextIO) -> bool:
    """Take a file's lock if no other process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
