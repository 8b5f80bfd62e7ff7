"""The layout of a run's folder, and which of its rounds are finished.

A round is finished when its folder `server/round-0003` exists; a run resumes after the last finished round.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.history import Record, history
from fedsdr.metrics import Scores
from fedsdr.plugins import restore_rows
from fedsdr.recipe import saved_settings
from fedsdr.storage import read_json, read_lines

if TYPE_CHECKING:
    from pandas import DataFrame


PLAN = "grid.json"
"""The list of runs in the folder of a grid, <arm>/seed-<number> each."""
MOST_RUNS = 3
"""Maximum number of runs named in one message."""


def internal(path: Path) -> Path:
    """Hidden name of a file that readers do not need; a folder of an earlier version keeps its plain name."""
    return path if path.exists() else path.with_name(f".{path.name}")


@dataclass(frozen=True)
class ClientFolder:
    """Paths in a client's folder; its state after a round is in `client.state`."""

    path: Path

    @property
    def data_hash(self) -> Path:
        """Hashes of the data for which the folder was created."""
        return internal(self.path / "data.hash")

    @property
    def noise_key(self) -> Path:
        """The secret from which the noise of local privacy is derived."""
        return internal(self.path / "noise.key")

    @property
    def secure(self) -> Path:
        """The client's state of a secure sum."""
        return self.path / "secure"

    @property
    def received(self) -> "RunFolder":
        """The last shared adapter that a client of a deployment received, with the settings, as of a run."""
        return RunFolder(self.path / "received")

    def steps(self, server_round: int) -> Path:
        """Stage, loss and tokens of each optimizer step of a round; not under differential privacy."""
        return self.path / "steps" / f"round-{server_round:04d}.jsonl"

    def rewritings(self, part: Literal["train", "test"]) -> Path:
        """Examples of the training or test data with their rewritings, one on each line."""
        return self.path / ("distilled.jsonl" if part == "train" else "distilled-test.jsonl")

    def answers(self, server_round: int, model: str) -> Path:
        """Answers of the "global" or "personalised" model after a round, one on each line."""
        return self.path / "evaluation" / f"round-{server_round:04d}-{model}.jsonl"

    def final_answers(self, num_rounds: int) -> Mapping[str, Path]:
        """Answers of the base model, and of the others after the last round, by model."""
        return {
            "base": self.answers(0, "global"),
            "global": self.answers(num_rounds, "global"),
            "personalised": self.answers(num_rounds, "personalised"),
        }

    def fusion(self, server_round: int) -> Path:
        """Weights that fuse the client's adapters after a round, once evaluated."""
        return self.path / "evaluation" / f"round-{server_round:04d}-fusion.json"


class RunFolder:
    """Paths in a run's folder, which may not exist yet."""

    def __init__(self, path: str | Path) -> None:
        """Define the paths; nothing is read or created."""
        self.path = path = Path(path)
        self.config = path / "config.toml"
        """The settings. A folder with this file holds a run."""
        self.environment = path / "environment.json"
        """Versions, machine, model and data at the start of the run."""
        self.log = path / "metrics.jsonl"
        """The events, one on each line."""
        self.report = path / "report.html"
        self.nonce = internal(path / "nonce")
        """Only for a run over Flower: distinguishes it from others with the same name."""
        self.ended = internal(path / "ended")
        """Token of the last submission by `fedsdr run --on`, and on further lines why it stopped early."""
        self.benchmark_answers = path / "measurements" / "benchmark-answers.jsonl"
        self.data = path / "data"
        """Rows passed by a program (`data.given`)."""
        self.server = path / "server"
        self.survivors = self.server / "survivors.json"
        """The clients in the last secure sum, and its round."""
        self.clients = path / "clients"
        """Only if the clients are on this machine."""

    def require_new(self) -> None:
        """Raise UserError if the folder already contains a run."""
        if any(path.exists() for path in (self.config, self.server, self.clients)):
            raise UserError(
                f"{self.path} already contains a run; continue it by `fedsdr resume {self.path}`, or set"
                " another folder by run.dir=..."
            )

    def round(self, number: int) -> Path:
        """The global model after a round (`server.checkpoint`)."""
        return round_folder(self.server, number)

    def updates(self, number: int) -> Path:
        """Each client's update in a round, if `server.keep_updates` is set."""
        return round_folder(self.server / "updates", number)

    def evaluation(self, number: int) -> Path:
        """Pooled scores of a round; the file exists once the evaluation is complete."""
        return round_folder(self.path / "evaluation", number).with_suffix(".json")

    def evaluations(self) -> dict[int, Scores]:
        """Scores of all evaluated rounds, by round; 0 is the base model."""
        paths = sorted((self.path / "evaluation").glob("round-*.json"))
        return {int(path.stem.removeprefix("round-")): read_json(path) for path in paths}

    def logger_id(self, logger: str) -> Path:
        """The run's id for a logger (`loggers`)."""
        return internal(self.path / "loggers") / logger

    def measurement(self, name: str) -> Path:
        """A measurement by `fedsdr measure`."""
        return self.path / "measurements" / f"{name}.json"

    def measurements(self) -> dict[str, Path]:
        """All existing measurements, by name."""
        return {path.stem: path for path in sorted(self.measurement("*").parent.glob("*.json"))}

    def client(self, client: str) -> ClientFolder:
        """The folder of a client."""
        return ClientFolder(self.clients / client)

    def client_folders(self) -> list[ClientFolder]:
        """The folders of all clients, by client id; empty if they are on other machines."""
        return [ClientFolder(path) for path in sorted(self.clients.glob("*")) if path.is_dir()]

    def last_round(self) -> int:
        """The last finished round, -1 if there is none."""
        return max(list_rounds(self.server), default=-1)

    def is_finished(self) -> bool:
        """Whether the run has all its rounds, and the scores of the base model and of the last round."""
        if not self.config.exists():
            return False
        last = read_settings(self.path).server.num_rounds
        return self.evaluation(0).exists() and self.evaluation(last).exists()


@dataclass(frozen=True)
class Result:
    """Scores and files of a finished run."""

    folder: Path
    base: Scores
    """Scores of the base model: {"global": {domain or "mean": {metric: value}}}."""
    final: Scores
    """Scores after the last round, "global" and, with a private adapter, "personalised"."""

    @property
    def report(self) -> Path:
        """The page of the run."""
        return RunFolder(self.folder).report

    @property
    def adapter(self) -> Path:
        """Folder of the final shared adapter, in PEFT's format."""
        folder = RunFolder(self.folder)
        return folder.round(folder.last_round())

    @property
    def history(self) -> list[Record]:
        """A record of metrics for each round (`history`); round 0 is the base model."""
        folder = RunFolder(self.folder)
        return history(read_lines(folder.log), folder.evaluations())

    def to_pandas(self) -> "DataFrame":
        """The history as a data frame with a row for each round; needs pandas."""
        from pandas import DataFrame

        return DataFrame(self.history).set_index("round")


def read_settings(folder: Path) -> Settings:
    """Settings of the run in a folder; `run.dir` is the folder, even after it was moved.

    Raises:
        UserError: The folder contains no run.
    """
    path, environment = RunFolder(folder).config, RunFolder(folder).environment
    if not path.is_file():
        is_grid = (folder / PLAN).is_file()
        inner = sorted(str(run.parent) for run in folder.glob(f"*/{'seed-*/' * is_grid}{path.name}"))
        outer = [run for run in folder.parents if (run / path.name).is_file()]
        hint = f"; it lies in the run {outer[0]}: name that, and a round by --round" if outer else ""
        if inner:
            more = ["..."] * (len(inner) > MOST_RUNS)
            hint = f"; runs in it: {', '.join([*inner[:MOST_RUNS], *more])}"
        found = "is the folder of a grid" if is_grid else f"contains no run: {path.name} is missing"
        raise UserError(f"{folder} {found}{hint}")
    if environment.exists():
        restore_rows(read_json(environment).get("settings", {}).get("rows", {}))
    settings = saved_settings(path)
    return settings.model_copy(update={"run": settings.run.model_copy(update={"dir": str(folder)})})


def read_result(folder: Path) -> Result:
    """Read the scores of a finished run.

    Raises:
        UserError: The run is not finished.
    """
    last, run = read_settings(folder).server.num_rounds, RunFolder(folder)
    if not run.is_finished():
        raise UserError(f"the run in {folder} is not finished; continue it by `fedsdr resume {folder}`")
    return Result(folder, read_json(run.evaluation(0)), read_json(run.evaluation(last)))


def checked_round(folder: Path, server_round: int | None) -> int:
    """Return the round, or the last finished one for None.

    Raises:
        UserError: The round is not finished.
    """
    last = RunFolder(folder).last_round()
    if last < 0:
        raise UserError(f"no round of the run in {folder} is finished yet")
    number = last if server_round is None else server_round
    if not 0 <= number <= last:
        raise UserError(f"{folder} has no round {number}; finished are rounds 0 to {last}")
    if number not in (there := list_rounds(RunFolder(folder).server)):
        kept = ", ".join(map(str, there))
        raise UserError(f"round {number} of {folder} was not kept (server.keep_rounds); kept rounds: {kept}")
    return number


def round_folder(folder: Path, number: int) -> Path:
    """Folder of a round; rounds have four digits or more."""
    return folder / f"round-{number:04d}"


def list_rounds(folder: Path) -> list[int]:
    """Rounds whose folders exist, ascending; other names, such as "round-0003.bak", are ignored."""
    names = [path.name for path in folder.glob("round-*") if path.is_dir()]
    return sorted(int(name.removeprefix("round-")) for name in names if re.fullmatch(r"round-\d{4,}", name))
