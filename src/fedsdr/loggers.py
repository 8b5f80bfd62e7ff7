"""Loggers: `run.log_to` sends the numbers of a run to TensorBoard, Weights & Biases, MLflow or Trackio.

Each is a callback. The library's own variables say where and as whom it logs (WANDB_MODE, WANDB_PROJECT,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, TRACKIO_DIR). A resumed run continues its own curves.
"""

import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsdr.callbacks import Callback
from fedsdr.config import LogTo, Settings
from fedsdr.errors import UserError
from fedsdr.history import Record
from fedsdr.recipe import flat
from fedsdr.run_folder import Result, RunFolder
from fedsdr.storage import write_file

Numbers = dict[str, float]


class Logger(Callback):
    """Sends flat metrics with their step: the round, or the client's own step."""

    def on_step(self, step: Record) -> None:
        """Log the loss of a step as "step/<client>/<stage>/loss"."""
        self.log({_name(f"step/{step['client']}/{step['stage']}/loss"): step["loss"]}, step["step"], "step")

    def on_round(self, record: Record) -> None:
        """Log all metrics of a round."""
        numbers = {_name(key): float(value) for key, value in record.items() if key != "round"}
        self.log(numbers, record["round"], "round")

    on_evaluate = on_round

    def log(self, numbers: Numbers, at: int, axis: str) -> None:
        """Log metrics at a position on an axis, "round" or "step"."""
        raise NotImplementedError


class TensorBoard(Logger):
    """Writes <run>/tensorboard."""

    def on_start(self, settings: Settings, server_round: int) -> None:
        """Open a file of events."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(settings.run.dir) / "tensorboard"))
        lines = (f"    {key} = {value!r}" for key, value in _config(settings).items())
        self.writer.add_text("settings", "\n".join(lines), server_round)

    def log(self, numbers: Numbers, at: int, axis: str) -> None:
        """Add scalars."""
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, at)
        if axis == "round":
            self.writer.flush()

    def on_end(self, result: Result | None) -> None:
        """Close the file."""
        self.writer.close()


def _run_name(settings: Settings) -> str:
    """The last two folders of the run, such as fedit/seed-0 of a grid."""
    return "/".join(Path(settings.run.dir).absolute().parts[-2:])


class Wandb(Logger):
    """Logs to Weights & Biases, project "fedsdr" unless WANDB_PROJECT names another."""

    def on_start(self, settings: Settings, server_round: int) -> None:
        """Begin or continue a run."""
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedsdr"),
            name=_run_name(settings),
            id=_identity(settings, "wandb"),
            resume="allow",
            dir=settings.run.dir,
            config=_config(settings),
            settings=wandb.Settings(silent=True),
        )
        # Its own steps only grow, and clients take theirs one after the other.
        self.run.define_metric("*", step_metric="round")
        self.run.define_metric("step/*", step_metric="step")

    def log(self, numbers: Numbers, at: int, axis: str) -> None:
        """Log numbers with their axis."""
        self.run.log({**numbers, axis: at})

    def on_end(self, result: Result | None) -> None:
        """Finish; mark as failed if the run stopped early."""
        self.run.finish(exit_code=0 if result else 1)


class MLflow(Logger):
    """Logs to MLflow, experiment "fedsdr" unless MLFLOW_EXPERIMENT_NAME names another."""

    def on_start(self, settings: Settings, server_round: int) -> None:
        """Begin or continue a run."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedsdr")

        def create() -> str:
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            run = self.client.create_run(experiment, run_name=_run_name(settings))
            params = [Param(key, str(value)) for key, value in _config(settings).items()]
            self.client.log_batch(run.info.run_id, params=params)
            return str(run.info.run_id)

        self.id = _identity(settings, "mlflow", create)
        self.client.update_run(self.id, status="RUNNING")

    def log(self, numbers: Numbers, at: int, axis: str) -> None:
        """Log a batch of metrics."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self.client.log_batch(self.id, [Metric(key, value, now, at) for key, value in numbers.items()])

    def on_end(self, result: Result | None) -> None:
        """End the run; mark as failed if it stopped early."""
        self.client.set_terminated(self.id, "FINISHED" if result else "FAILED")


class Trackio(Logger):
    """Logs to Trackio, project "fedsdr" unless TRACKIO_PROJECT names another."""

    def on_start(self, settings: Settings, server_round: int) -> None:
        """Begin or continue a run."""
        import trackio

        with redirect_stdout(sys.stderr):  # standard output is for results
            self.run = trackio.init(
                os.environ.get("TRACKIO_PROJECT", "fedsdr"),
                name=_identity(settings, "trackio"),
                resume="allow",
                config=_config(settings),
                embed=False,
            )

    def log(self, numbers: Numbers, at: int, axis: str) -> None:
        """Log numbers."""
        self.run.log(numbers, step=at)

    def on_end(self, result: Result | None) -> None:
        """Finish the run."""
        with redirect_stdout(sys.stderr):
            self.run.finish()


LOGGERS: Mapping[LogTo, type[Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def open_loggers(settings: Settings) -> list[Logger]:
    """Loggers of `run.log_to`.

    Raises:
        UserError: The library of a logger is not installed.
    """
    if missing := ",".join(name for name in settings.run.log_to if find_spec(name) is None):
        raise UserError(f"run.log_to requires {missing}: pip install 'fedsdr[{missing}]'")
    return [LOGGERS[name]() for name in settings.run.log_to]


def _config(settings: Settings) -> dict[str, Any]:
    return dict(flat(settings.model_dump(mode="json")))


def _identity(settings: Settings, logger: str, create: Callable[[], str] | None = None) -> str:
    """The run's id for a logger, created once and saved in the run's folder."""
    folder = RunFolder(settings.run.dir)
    path = folder.logger_id(logger)
    if not path.exists():
        write_file(path, create() if create else f"{folder.path.name[:40]}-{secrets.token_hex(4)}")
    return path.read_text()


def _name(key: str) -> str:
    """A name that all loggers accept: MLflow allows the fewest characters."""
    return re.sub(r"[^\w./ -]", "_", key)
