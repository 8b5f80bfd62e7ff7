"""`fedsdr run` and `fedsdr resume`: one run folder, from settings to scores, local or on Ray."""

import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.callbacks import Callback, Watch, checked_callbacks, watching_steps
from fedsdr.config import Client, Federation, Settings
from fedsdr.data.given import ClientRows, save_rows
from fedsdr.errors import UserError
from fedsdr.federation.environment import (
    describe_environment,
    describe_performance,
    reported_data,
    require_same,
    resolve,
)
from fedsdr.federation.preflight import check_alone, check_data, check_deployed, check_engine, check_fit
from fedsdr.loggers import open_loggers
from fedsdr.methods import METHODS
from fedsdr.metrics import Scores
from fedsdr.model.allocator import peak_memory
from fedsdr.progress import say
from fedsdr.recipe import as_settings, dump_settings, with_values
from fedsdr.rows import Method
from fedsdr.run_folder import Result, RunFolder, checked_round, read_result, read_settings
from fedsdr.storage import locked, read_json, read_lines, rewrite_lines, write_file, write_json

if TYPE_CHECKING:
    from flwr.serverapp import Grid


def run(
    settings: Settings | str | Path | Mapping[str, Any],
    *,
    data: Mapping[str, ClientRows] | None = None,
    model: str | tuple[Any, Any] | None = None,
    callbacks: Callback | Sequence[Callback] = (),
) -> Result:
    """Run a federation from the beginning, in this process.

    Args:
        settings: Settings, the path of a recipe, or values by dotted key, such as {"method": "fedit",
            "server.num_rounds": 1}.
        data: Client id -> its rows, or a pair of its training and test rows; saved with the run. Without test
            rows, `test_share` of the rows is held out. None: the data in the settings.
        model: A name, or a pair of a transformers model and its tokenizer, which stay unchanged.
        callbacks: Called during the run, after the loggers of `run.log_to`.

    Raises:
        UserError: The folder already contains a run, or settings and data do not fit.
    """
    settings = as_settings(settings)
    if not settings.run.dir:
        raise UserError("run.dir is empty; set a folder, or use load_settings, which sets one")
    folder = RunFolder(settings.run.dir)
    with _working_in(folder), _named(model) as name:
        folder.require_new()
        settings = _with_given(settings, data, name)
        check_alone(settings)
        watch = Watch([*open_loggers(settings), *checked_callbacks(callbacks)])
        domains = check_data(settings)
        settings = resolve(settings)
        check_fit(settings, domains)
        environment = describe_environment(settings)
        _begin(settings, environment)
        _introduce(settings, environment)
        with _simulated(settings) as grid:
            return _drive(settings, grid, watch)


@contextmanager
def _named(model: str | tuple[Any, Any] | None) -> Iterator[str]:
    """Name of a passed model within the block; "" if there is none."""
    if model is None or isinstance(model, str | Path):
        yield str(model or "")
        return
    from fedsdr.model.in_memory import lent

    with lent(model) as name:
        yield name


def _with_given(settings: Settings, data: Mapping[str, ClientRows] | None, model: str) -> Settings:
    """The settings with the passed data and model applied."""
    values: dict[str, Any] = {"model.name": model} if model else {}
    if data is not None:
        if settings.data.root or settings.data.sources:
            raise UserError("data was passed, but data.root or data.sources is set too; leave out one")
        values["data.sources"] = save_rows(data, RunFolder(settings.run.dir).data)
    return with_values(settings, values) if values else settings


def run_over(grid: "Grid", settings: Settings) -> Result:
    """Start a run on clients in other processes, or continue the one in its folder.

    Raises:
        UserError: As `run` and `resume`; `federation` may change.
    """
    from fedsdr.federation.model_cache import model_of

    folder = RunFolder(settings.run.dir)
    check_deployed(settings)
    # When a SuperLink is killed, the process of a run may survive, and continue with the next SuperLink.
    with _working_in(folder, settings.federation.wait):
        settings = resolve(settings)
        watch = Watch(open_loggers(settings))
        if folder.config.exists():
            environment = require_same(settings, has_data=False)
        else:
            environment = describe_environment(settings, has_data=False)
        if not folder.nonce.exists():
            write_file(folder.nonce, secrets.token_hex(4))
        _begin(settings, environment)
        for line in [
            *describe_performance(settings.model, settings.run.threads),
            *model_of(settings).describe(),
        ]:
            say(f"  {line}")
        return _drive(settings, grid, watch, has_data=False)


def _begin(settings: Settings, environment: dict[str, Any]) -> None:
    folder = RunFolder(settings.run.dir)
    write_json(folder.environment, environment)
    write_file(folder.config, dump_settings(settings))


def resume(
    folder: str | Path,
    on_other_machine: bool = False,
    *,
    model: tuple[Any, Any] | None = None,
    callbacks: Callback | Sequence[Callback] = (),
) -> Result:
    """Continue a run after its last finished round; for a finished run, only write the report again.

    Args:
        folder: The run's folder.
        on_other_machine: Allow another CPU and other library versions. The last bits of results differ from
            here on, which is recorded.
        model: The same as for `run`, if that was passed in memory.
        callbacks: As for `run`.

    Raises:
        UserError: The folder contains no run, its settings or data changed, or this machine would compute
            other bits than the original one.
    """
    settings = read_settings(Path(folder))
    run = RunFolder(folder)
    _require_local(run)
    check_engine(settings)
    with _working_in(run), _named(model) as name:
        if name and name != settings.model.name:
            raise UserError(
                f"{folder} was started with the model {settings.model.name}, not with the passed one ({name})"
            )
        watch = Watch([*open_loggers(settings), *checked_callbacks(callbacks)])
        environment = require_same(settings, on_other_machine=on_other_machine)
        if on_other_machine:
            write_json(run.environment, environment)
        _introduce(settings, environment)
        with _simulated(settings) as grid:
            return _drive(settings, grid, watch)


def evaluate_round(
    folder: Path, server_round: int | None, on_other_machine: bool = False
) -> tuple[Scores, Scores]:
    """Scores of the base model and of a round; computed if the run has no record of them.

    The personalised model is scored if the clients still have their private adapters of that round.

    Raises:
        UserError: The folder contains no run, or the round is not finished. Or as `resume`, whose
            `on_other_machine` it takes.
    """
    settings, run = read_settings(folder), RunFolder(folder)
    number = checked_round(folder, server_round)
    missing = [one for one in sorted({0, number}) if not run.evaluation(one).exists()]
    if missing:
        _require_local(run)
        check_engine(settings)
        with _working_in(run):
            require_same(settings, on_other_machine=on_other_machine)
            from fedsdr.federation.server_app import serve

            with _simulated(settings) as grid:
                for one in missing:
                    serve(grid, _without_federation(settings), only_round=one)
    return read_json(run.evaluation(0)), read_json(run.evaluation(number))


def _require_local(run: RunFolder) -> None:
    """Raise UserError if the run's data is at the clients of a deployment instead of this machine."""
    if run.nonce.exists():
        raise UserError(
            f"{run.path}: this run used clients on other machines, which have the data: only rounds that it"
            " scored itself can be shown (eval.every). Continue it by the command that started it"
            " (`fedsdr run RECIPE ... --on SERVER`, or `flwr run`)"
        )


def _drive(settings: Settings, grid: "Grid", watch: Watch, has_data: bool = True) -> Result:
    """Run all remaining rounds."""
    with watching_steps(watch):
        result = _finish(settings, grid, watch, has_data)
        watch.end(result)
    return result


def _finish(settings: Settings, grid: "Grid", watch: Watch, has_data: bool) -> Result:
    from fedsdr.federation.server_app import serve
    from fedsdr.report.page import write_report

    folder, begun = RunFolder(settings.run.dir), time.monotonic()
    is_whole = not folder.server.exists()
    if is_old := folder.is_finished():
        say(f"{folder.path}: all {settings.server.num_rounds} rounds are finished; nothing is left to do")
    if has_data or not is_old:  # a finished run needs no clients
        serve(grid, _without_federation(settings) if has_data else settings, watch=watch)
    if not has_data:  # by now the clients have reported their numbers
        described = read_json(folder.environment) | {"data": reported_data(folder)}
        write_json(folder.environment, described)
    # The process may have been killed between the last scores and the end of the log.
    events = read_lines(folder.log)
    if all(event["event"] != "end" for event in events):
        # This process knows only the costs of its own part.
        costs = {"seconds": time.monotonic() - begun, "peak_memory": peak_memory()} if is_whole else {}
        costs = {name: value for name, value in costs.items() if value is not None}
        end = {"event": "end", "round": settings.server.num_rounds, **costs}
        rewrite_lines(folder.log, [*events, end])
    write_report(folder.path, settings)
    return read_result(folder.path)


def _introduce(settings: Settings, environment: dict[str, Any]) -> None:
    """Print the plan of the run, and the training budget."""
    from fedsdr.client.update import before_training, count_steps
    from fedsdr.data.summary import program_notices
    from fedsdr.federation.client_context import data_of
    from fedsdr.federation.model_cache import model_of
    from fedsdr.model.chat_template import describe_template
    from fedsdr.report.notices import data_notices

    data, client = environment["data"], settings.client
    method, largest = METHODS[settings.method], max(data["num_train"].values())

    def steps(method: Method, client: Client) -> str:
        return ", then ".join(
            f"{'+'.join(stage.train)} on {stage.on}"
            f" {count_steps(client, method, number, largest * (1 + (stage.on == 'mixed')))} steps"
            for number, stage in enumerate(method.stages)
        )

    say(
        f"{settings.method}: {len(data['num_train'])} clients, {sum(data['num_train'].values())} training and"
        f" {sum(data['num_test'].values())} test examples ({data['origin']}), folder {settings.run.dir}"
    )
    say(f"  model: {environment['model']['origin']}, seed {settings.run.seed}")
    for choice in describe_performance(settings.model, settings.run.threads):
        say(f"  {choice}")
    model = model_of(settings)
    for line in [*model.describe(), *describe_template(settings.model, model.base.tokenizer)]:
        say(f"  {line}")
    if method.before_rounds:
        before = steps(method.before(), before_training(client, settings.fdlora))
        say(f"  before round 1, at each client: {before}")
    say(
        f"  each of {settings.server.num_rounds} rounds, at each client: {steps(method, client)}, of"
        f" {client.batch_size * client.accumulation} examples, by {client.optimizer}, drift correction"
        f" {client.drift_correction}"
    )
    for notice in data_notices(data):
        say(f"  {notice}")
    if settings.eval.run_programs:  # depends on this machine, so it is not recorded
        for line in program_notices(data_of(settings)[0], True):
            say(f"  {line}")


def _without_federation(settings: Settings) -> Settings:
    """The settings of clients on this machine: none has to connect."""
    return settings.model_copy(update={"federation": Federation()})


@contextmanager
def _simulated(settings: Settings) -> Iterator["Grid"]:
    """All clients of the run on this machine or a cluster, within the block."""
    from fedsdr.federation.client_app import app
    from fedsdr.federation.client_context import data_of
    from fedsdr.federation.local_engine import LocalGrid
    from fedsdr.federation.rewritings import rewrite_all

    # Absolute: a worker of a Ray cluster runs in a folder of its own.
    clients, cache = RunFolder(settings.run.dir).clients.resolve(), settings.run.cache
    node = {"cache": cache and str(Path(cache).resolve()), "distill-url": settings.distill.url}
    num_clients = len(data_of(settings)[1])
    grid: LocalGrid
    if settings.run.engine == "simulation":
        from fedsdr.federation.simulation_engine import SimulationGrid

        grid = SimulationGrid(app, num_clients, clients, settings.run, **node)
        workers, threads = grid.backend.num_workers, settings.run.threads
        say(f"  engine: Flower's simulation, {workers} workers of {threads} threads")
    else:
        rewrite_all(settings, clients)
        grid = LocalGrid(app, num_clients, clients, **node)
    try:
        yield grid
    finally:
        grid.close()


@contextmanager
def _working_in(folder: RunFolder, patience: float = 0.0) -> Iterator[None]:
    """Let one process at a time work in a run's folder, with the model's files of now; then forget the data.

    If the run is rejected before it begins, a folder made here is removed again.

    Raises:
        UserError: Another process still works there after `patience` seconds, or the folder is a file.
    """
    if folder.path.is_file():
        raise UserError(f"run.dir = {folder.path} is a file; name a folder, or one that does not exist yet")
    new_parents = [path for path in folder.path.parents if not path.exists()]
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    is_new = True
    try:
        folder.path.mkdir()
    except FileExistsError:
        is_new = False
    with locked(folder.path, patience):
        for left in folder.path.rglob(".*.aside"):  # left from files whose writer was killed
            if left.is_file():
                left.unlink()
        if loaded := sys.modules.get("fedsdr.federation.model_cache"):  # which imports torch
            loaded.forget_changed_model()
        try:
            yield
        finally:
            if heavy := sys.modules.get("fedsdr.federation.client_context"):  # which imports torch
                heavy.close_clients()
            if is_new and not folder.config.exists():
                with suppress(OSError):  # another run uses it by now
                    shutil.rmtree(folder.path)
                    for path in new_parents:
                        path.rmdir()
