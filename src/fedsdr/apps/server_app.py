"""The ServerApp: prepare, then rounds of train, combine, checkpoint and evaluate. It never knows the engine.

A round is finished when its folder is there. Started anew on the same run folder, it goes on after
the last finished round.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsdr import __version__
from fedsdr.apps.site import model_of
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.measure.scores import table_of_round
from fedsdr.model.base import public_name
from fedsdr.progress import say
from fedsdr.recipe import check_settings
from fedsdr.seeds import seed_for
from fedsdr.server.checkpoint import last_round, load_moments, load_round, save_round
from fedsdr.server.guard import Rejected, check_prepared
from fedsdr.server.strategy import FedStrategy
from fedsdr.storage import Event, append_lines, read_lines, rewrite_lines, write_json

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or go on with the federation whose settings are in the run configuration.

    With `evaluate-round` there, only that round is evaluated, if it was not yet.
    """
    settings = check_settings(json.loads(str(context.run_config["settings"])), source="run configuration")
    folder = Path(settings.run.dir)
    server, log = folder / "server", folder / "metrics.jsonl"
    name = public_name(settings.model.name)
    _, adapters = model_of(settings)
    begun = last_round(server)
    if begun < 0:
        adapters.initialise("shared", seed_for(settings.run.seed, "shared"))
        fresh = {key: tensor.numpy() for key, tensor in adapters.state("shared").items()}
        save_round(server, 0, fresh, {}, {}, settings.adapter, name)
        begun = 0
    past = _events_until(log, begun, folder)
    # Only what differs from the defaults is sent; clients of another version refuse.
    sent = settings.model_dump_json(exclude_defaults=True, exclude={"run": {"dir", "cache"}})
    config = ConfigRecord({"settings": sent, "version": __version__})
    roster, prepared = _prepare(grid, config)
    # A client that only reads its rewritings again took no time for them: the first record stays.
    known = {event["client"]: event for event in past if event["event"] == "prepare"}
    first = [known.get(event["client"], event) for event in prepared]
    rewrite_lines(log, [*first, *(event for event in past if event["event"] != "prepare")])
    told = {str(event["client"]): event for event in prepared}
    rank = settings.adapter.rank
    arrays, residual = load_round(server, begun, rank)
    strategy = FedStrategy(settings, roster, told, arrays, load_moments(server, begun), residual)
    if "evaluate-round" in context.run_config:
        asked = int(context.run_config["evaluate-round"])
        strategy.arrays, strategy.residual = load_round(server, asked, rank)
        _evaluate(grid, strategy, settings, asked, config, log)
        return
    strategy.summary()
    if is_due(settings, begun):
        _evaluate(grid, strategy, settings, begun, config, log)
    for server_round in range(begun + 1, settings.server.num_rounds + 1):
        _train(grid, strategy, settings, server_round, config, log)
        # After the log: once the folder is there the round counts as finished and is not logged again.
        arrays, residual, moments = strategy.arrays, strategy.residual, strategy.moments
        save_round(server, server_round, arrays, residual, moments, settings.adapter, name)
        if is_due(settings, server_round):
            _evaluate(grid, strategy, settings, server_round, config, log)


def _prepare(grid: Grid, config: ConfigRecord) -> tuple[dict[int, str], list[Event]]:
    """Let every node rewrite its responses; learn who is who.

    Raises:
        UserError: A client failed: a federation does not begin without one of its members.
    """
    nodes = list(grid.get_node_ids())
    content = RecordDict({"config": ConfigRecord({**config, "round": 0})})
    messages = [Message(content, node, "query.prepare", group_id="0") for node in nodes]
    roster: dict[int, str] = {}
    events: list[Event] = []
    for reply in grid.send_and_receive(messages):
        try:
            client, metrics = check_prepared(reply)
        except Rejected as reason:
            raise UserError(f"a client could not prepare: {reason}") from None
        if client in roster.values():
            raise UserError(f"two nodes say that they are client {client}")
        roster[reply.metadata.src_node_id] = client
        events.append({"event": "prepare", "round": 0, "client": client, **metrics})
    return roster, sorted(events, key=lambda event: str(event["client"]))


def _train(
    grid: Grid, strategy: FedStrategy, settings: Settings, server_round: int, config: ConfigRecord, log: Path
) -> None:
    """Let the drawn clients train, combine what they send, and log it."""
    start = time.monotonic()
    record = strategy.record()
    num_bytes = sum(array.numpy().nbytes for array in record.values())
    messages = strategy.configure_train(server_round, record, config, grid)
    replies = grid.send_and_receive(messages)
    try:
        strategy.aggregate_train(server_round, replies)
    finally:  # why replies were dropped is on record even if too few are left
        events = strategy.take_events()
        append_lines(log, events)
    seconds = time.monotonic() - start
    done = {"event": "round", "round": server_round, "seconds": seconds, "num_bytes_down": num_bytes}
    append_lines(log, [done])
    say(f"round {server_round} of {settings.server.num_rounds}: {_losses(events)}, {seconds:.0f} s")


def _evaluate(
    grid: Grid, strategy: FedStrategy, settings: Settings, server_round: int, config: ConfigRecord, log: Path
) -> None:
    """Evaluate a round if that is not done yet; write the pooled numbers."""
    path = evaluation_file(Path(settings.run.dir), server_round)
    if path.exists():
        return
    messages = strategy.configure_evaluate(server_round, strategy.record(trains=False), config, grid)
    replies = grid.send_and_receive(messages)
    try:
        strategy.aggregate_evaluate(server_round, replies)
    finally:
        events = strategy.take_events()
        append_lines(log, events)
    num_test = sum(event["num_test"] for event in strategy.prepared.values())
    write_json(path, table_of_round([event for event in events if event["event"] == "evaluate"], num_test))


def is_due(settings: Settings, server_round: int) -> bool:
    """Whether a round is evaluated; 0 stands for the base model."""
    every, last = settings.eval.every, settings.server.num_rounds
    return server_round in (0, last) or (every > 0 and server_round % every == 0)


def evaluation_file(folder: Path, server_round: int) -> Path:
    """Where the pooled numbers of a round are; the file is there once the evaluation is complete."""
    return folder / "evaluation" / f"round-{server_round:04d}.json"


def _events_until(log: Path, begun: int, folder: Path) -> list[Event]:
    """Events of finished work: those of a round that was cut short will be written anew."""
    return [
        event
        for event in read_lines(log)
        if event["round"] <= begun
        and (
            event.get("work", event["event"]) != "evaluate"
            or evaluation_file(folder, event["round"]).exists()
        )
    ]


def _losses(events: Iterable[Event]) -> str:
    """Mean training losses of a round over its clients, for the user to watch."""
    found: dict[str, list[float]] = {}
    for event in events:
        for key, value in event.items():
            if key.startswith("train/") and key.endswith("/loss"):
                found.setdefault(key.split("/")[1], []).append(value)
    return ", ".join(f"{name} loss {sum(values) / len(values):.3f}" for name, values in sorted(found.items()))
