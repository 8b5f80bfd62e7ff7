"""The server's side of a run: prepare, then rounds of train, aggregate, checkpoint, evaluate.

It never knows the engine. A round is finished when its folder is there. Started anew on the same run folder,
it goes on after the last finished round. Clients that are not connected miss rounds, and are asked again when
they are back; the run stops only where fewer than a quorum can be had.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from fedsdr import __version__
from fedsdr.config import Settings
from fedsdr.evaluate.scores import table_of_round
from fedsdr.federation.client_context import model_of
from fedsdr.federation.membership import Membership
from fedsdr.federation.preflight import check_budget, check_counts
from fedsdr.messages.privacy import epsilon
from fedsdr.model.base import public_name
from fedsdr.progress import say
from fedsdr.seeds import seed_for
from fedsdr.server.checkpoint import last_round, load_moments, load_round, save_round
from fedsdr.server.strategy import FedStrategy, draw_clients, num_trainings
from fedsdr.storage import Event, append_lines, content_hash, read_lines, rewrite_lines, write_json

NONCE = "nonce"
"""File in the folder of a run over Flower that tells it from others of its name."""


def serve(grid: Grid, settings: Settings, only_round: int | None = None) -> None:
    """Run or go on with a federation.

    Args:
        grid: The way to the clients.
        settings: Of the run in `run.dir`.
        only_round: Evaluate that round, if it was not yet, and nothing else.

    Raises:
        UserError: A client cannot prepare, or fewer than a quorum are connected or usable.
    """
    folder = Path(settings.run.dir)
    server, log = folder / "server", folder / "metrics.jsonl"
    name = public_name(settings.model.name)
    base, adapters = model_of(settings)
    begun = last_round(server)
    if begun < 0:
        adapters.initialise("shared", seed_for(settings.run.seed, "shared"))
        fresh = {key: tensor.numpy() for key, tensor in adapters.state("shared").items()}
        save_round(server, 0, fresh, {}, {}, settings.adapter, name)
        begun = 0
    past = _events_until(log, begun, folder)
    sent = sent_settings(settings)
    # A node may take part in several runs; one that was begun anew is another.
    nonce = (folder / NONCE).read_text() if (folder / NONCE).exists() else ""
    run = f"{folder.name[:40]}-{content_hash(sent, nonce)[:8]}"
    config = ConfigRecord({"settings": sent, "version": __version__, "run": run})
    # A client that only reads its rewritings again took no time for them: the first record stays.
    told = {str(event["client"]): event for event in past if event["event"] == "prepare"}
    membership = Membership(grid, config, base.identity, settings, told)
    membership.wait_for_all()
    events = sorted(told.values(), key=lambda event: str(event["client"]))
    rewrite_lines(log, [*events, *(event for event in past if event["event"] != "prepare")])
    check_counts(settings, sorted(told))
    check_budget(settings, sorted(told))
    rank = settings.adapter.rank
    arrays, residual = load_round(server, begun, rank)
    strategy = FedStrategy(settings, membership.roster, told, arrays, load_moments(server, begun), residual)
    work = Work(grid, membership, strategy, settings, config, log)
    if only_round is not None:
        strategy.arrays, strategy.residual = load_round(server, only_round, rank)
        work.evaluate(only_round)
        return
    strategy.summary()
    if begun:
        say(f"  going on after round {begun}")
    if is_due(settings, begun):
        work.evaluate(begun)
    for server_round in range(begun + 1, settings.server.num_rounds + 1):
        work.train(server_round)
        # After the log: once the folder is there the round counts as finished and is not logged again.
        arrays, residual, moments = strategy.arrays, strategy.residual, strategy.moments
        save_round(server, server_round, arrays, residual, moments, settings.adapter, name)
        if is_due(settings, server_round):
            work.evaluate(server_round)


def sent_settings(settings: Settings) -> str:
    """What clients need of the settings, as JSON: no path of the server, and only what is not a default.

    Clients of another version refuse it. Registered clients are those of a deployment, whose nodes decide
    model and data themselves.
    """
    apart: Any = {"run": {"dir", "cache"}, "federation": True}
    if settings.federation.nodes:
        apart |= {
            "model": {"name", "revision", "trust_remote_code"},
            "data": {"root", "sources", "domains", "built_in"},
        }
    return settings.model_dump_json(exclude_defaults=True, exclude=apart)


@dataclass(frozen=True)
class Work:
    """What a round's two halves need."""

    grid: Grid
    membership: Membership
    strategy: FedStrategy
    settings: Settings
    config: ConfigRecord
    log: Path

    def train(self, server_round: int) -> None:
        """Let the drawn clients train, aggregate what they send, and log it."""
        strategy = self.strategy
        self._gather(draw_clients(self.settings, strategy.prepared, server_round), server_round)
        start = time.monotonic()
        record = strategy.record()
        num_bytes = sum(array.numpy().nbytes for array in record.values())
        replies = self._exchange(strategy.configure_train(server_round, record, self.config, self.grid))
        try:
            strategy.aggregate_train(server_round, replies)
        finally:  # why replies were dropped is on record even if too few are left
            events = strategy.take_events()
            append_lines(self.log, events)
        seconds = time.monotonic() - start
        done = {"event": "round", "round": server_round, "seconds": seconds, "num_bytes_down": num_bytes}
        append_lines(self.log, [done | spent(strategy, server_round)])
        num_rounds = self.settings.server.num_rounds
        say(f"round {server_round} of {num_rounds}: {_losses(events)}, {seconds:.0f} s")

    def evaluate(self, server_round: int) -> None:
        """Evaluate a round if that is not done yet; write the pooled numbers."""
        path = evaluation_file(Path(self.settings.run.dir), server_round)
        if path.exists():
            return
        strategy = self.strategy
        self._gather(sorted(strategy.prepared), server_round)
        record = strategy.record(trains=False)
        replies = self._exchange(strategy.configure_evaluate(server_round, record, self.config, self.grid))
        try:
            strategy.aggregate_evaluate(server_round, replies)
        finally:
            events = strategy.take_events()
            append_lines(self.log, events)
        num_test = sum(event["num_test"] for event in strategy.prepared.values())
        write_json(
            path, table_of_round([event for event in events if event["event"] == "evaluate"], num_test)
        )

    def _gather(self, clients: Sequence[str], server_round: int) -> None:
        self.membership.wait_for(clients, self.strategy.quorum(len(clients)), server_round)
        self.strategy.absent = self.membership.absent()

    def _exchange(self, messages: Iterable[Message]) -> Iterable[Message]:
        return self.grid.send_and_receive(messages, timeout=self.settings.federation.timeout)


def spent(strategy: FedStrategy, server_round: int) -> Event:
    """Epsilon and delta of the most drawn client after a round; {} without differential privacy."""
    settings = strategy.settings
    if settings.privacy.kind == "none":
        return {}
    asked = num_trainings(settings, strategy.prepared, server_round)
    return {"epsilon": epsilon(settings.privacy, asked), "delta": settings.privacy.delta}


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
