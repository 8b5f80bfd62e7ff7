"""The server side of a run: prepare, then rounds of train, aggregate, checkpoint, evaluate.

It does not depend on the engine. A round is finished when its folder exists. Restarted on the same folder, a
run continues after its last finished round. Disconnected clients miss rounds, and take part again when they
return; the run stops only if fewer than a quorum are connected.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from fedsdr import __version__
from fedsdr.callbacks import Watch
from fedsdr.config import Settings
from fedsdr.evaluate.scores import table_of_round
from fedsdr.federation.disk import check_disk, disk
from fedsdr.federation.membership import Membership
from fedsdr.federation.model_cache import model_of
from fedsdr.federation.node_config import OWN_DATA, OWN_MODEL
from fedsdr.federation.preflight import check_budget, check_counts
from fedsdr.history import round_record, score_record
from fedsdr.messages.privacy import epsilon
from fedsdr.model.base import public_name
from fedsdr.progress import Total, say
from fedsdr.report.notices import cut_notices, rewriting_notices, weight_notices
from fedsdr.report.page import REFRESH, PageWriter, write_report
from fedsdr.run_folder import RunFolder
from fedsdr.seeds import seed_for
from fedsdr.server.checkpoint import load_moments, load_round, remove_rounds, save_round
from fedsdr.server.limits import cap_weights, has_limits
from fedsdr.server.sampling import num_trainings
from fedsdr.server.secure import SecureStrategy
from fedsdr.server.strategy import FedStrategy
from fedsdr.storage import Event, append_lines, content_hash, read_json, read_lines, rewrite_lines, write_json


def serve(grid: Grid, settings: Settings, only_round: int | None = None, watch: Watch | None = None) -> None:
    """Run or continue a federation.

    Args:
        grid: The connection to the clients.
        settings: Settings of the run in `run.dir`.
        only_round: Only evaluate this round, if it has not been evaluated yet.
        watch: Calls the callbacks.

    Raises:
        UserError: A client cannot prepare, or fewer than a quorum are connected or usable.
    """
    folder, lora = RunFolder(settings.run.dir), settings.adapter
    name = public_name(settings.model.name)
    model = model_of(settings)
    begun = folder.last_round()
    if begun < 0:
        model.initialise("shared", seed_for(settings.run.seed, "shared"))
        fresh = {key: tensor.numpy() for key, tensor in model.state("shared").items()}
        save_round(folder, 0, fresh, {}, {}, lora, name)
        begun = 0
    past = _events_until(begun, folder)
    sent = sent_settings(settings)
    # A node may take part in several runs; a restarted run is a different one.
    nonce = folder.nonce.read_text() if folder.nonce.exists() else ""
    run = f"{folder.path.name[:40]}-{content_hash(sent, nonce)[:8]}"
    config = ConfigRecord({"settings": sent, "version": __version__, "run": run})
    # Rereading saved rewritings takes no time, so a client's first record stays.
    prepared = {str(event["client"]): event for event in past if event["event"] == "prepare"}
    total = _total_work(grid, settings, folder, begun, past) if only_round is None else Total({}, {})
    membership = Membership(
        grid,
        config,
        model.base.identity,
        settings.federation,
        settings.server,
        prepared,
        lambda: total.done("prepare"),
    )
    membership.wait_for_all()
    if has_limits(settings):
        cap_weights(prepared.values(), settings.server.max_weight)
    events = sorted(prepared.values(), key=lambda event: str(event["client"]))
    rewrite_lines(folder.log, [*events, *(event for event in past if event["event"] != "prepare")])
    check_counts(settings, sorted(prepared))
    check_budget(settings, sorted(prepared))
    shapes = {key: value.shape for key, value in model.state("shared").items()}
    check_disk(folder.path, disk(settings, shapes, len(prepared)), begun)
    number = begun if only_round is None else only_round
    arrays, residual = load_round(folder, number, lora.rank)
    moments = load_moments(folder, begun)
    kind = SecureStrategy if settings.privacy.secure_aggregation else FedStrategy
    strategy = kind(settings, membership.roster, prepared, arrays, moments, residual)
    watch = watch or Watch()
    rounds = Rounds(grid, membership, strategy, settings, config, folder, total, watch)
    if only_round is not None:
        rounds.evaluate(only_round)
        return
    strategy.summary()
    classes = read_json(folder.environment).get("data", {}).get("classes", {})
    for notice in (*rewriting_notices(events, classes), *cut_notices(events), *weight_notices(events)):
        say(f"  {notice}")
    if begun:
        say(f"  continuing after round {begun}")
    watch.start(settings, begun, past)
    if is_due(settings, begun):
        rounds.evaluate(begun)
    page = PageWriter(partial(write_report, folder.path, settings, REFRESH))
    for server_round in range(begun + 1, settings.server.num_rounds + 1):
        page.write()
        events = rounds.train(server_round)
        # After the log: once the folder exists, the round counts as finished and is not logged again.
        arrays, residual, moments = strategy.arrays, strategy.residual, strategy.moments
        save_round(folder, server_round, arrays, residual, moments, lora, name)
        watch.on_round(round_record(events), events)
        remove_rounds(folder, server_round, settings.server)
        if is_due(settings, server_round):
            rounds.evaluate(server_round)
    total.close()


def _total_work(grid: Grid, settings: Settings, folder: RunFolder, begun: int, past: list[Event]) -> Total:
    """The total work of this run, and the time spent before an interruption."""
    num_clients = settings.federation.num_clients or len(list(grid.get_node_ids()))
    num_rounds = settings.server.num_rounds
    due = [number for number in range(begun, num_rounds + 1) if is_due(settings, number)]
    left = {
        "prepare": num_clients - sum(event["event"] == "prepare" for event in past),
        "train": (num_rounds - begun) * (settings.server.clients_per_round or num_clients),
        "evaluate": num_clients * sum(not folder.evaluation(number).exists() for number in due),
    }
    return Total(left, {kind: [e["seconds"] for e in past if e["event"] == kind] for kind in left})


def is_due(settings: Settings, server_round: int) -> bool:
    """Whether a round is evaluated; round 0 is the base model."""
    every, last = settings.eval_every, settings.server.num_rounds
    return server_round in (0, last) or (every > 0 and server_round % every == 0)


def sent_settings(settings: Settings) -> str:
    """The settings that clients need, as JSON: no paths of the server, and no default values.

    Clients of another version reject them. Clients with registered keys belong to a deployment, whose nodes
    decide model and data themselves.
    """
    apart: Any = {"run": {"dir", "cache", "log_to"}, "federation": True}
    if settings.federation.nodes:
        apart |= {"model": set(OWN_MODEL), "data": {"root", *OWN_DATA}}
    return settings.model_dump_json(exclude_defaults=True, exclude=apart)


@dataclass(frozen=True)
class Rounds:
    """The two halves of a round, with their shared state."""

    grid: Grid
    membership: Membership
    strategy: FedStrategy
    settings: Settings
    config: ConfigRecord
    folder: RunFolder
    total: Total
    watch: Watch

    def train(self, server_round: int) -> list[Event]:
        """Let the sampled clients train, aggregate and log their updates; return the events."""
        strategy = self.strategy
        self._gather(strategy.sampled(server_round), server_round)
        start = time.monotonic()
        record = strategy.record()
        num_bytes = sum(array.numpy().nbytes for array in record.values())
        asked = strategy.configure_train(server_round, record, self.config, self.grid)
        # What clients send under local privacy is released, whatever becomes of the round.
        if self.settings.privacy.kind == "local":
            released = {"event": "release", "round": server_round} | self._spent(server_round)
            append_lines(self.folder.log, [released])
        replies = self._exchange(asked, "train")
        try:
            strategy.aggregate_train(server_round, replies)
        finally:  # log the reasons for dropped replies even if too few are left
            append_lines(self.folder.log, strategy.events())
        seconds = time.monotonic() - start
        done = {"event": "round", "round": server_round, "seconds": seconds, "num_bytes_down": num_bytes}
        done |= self._spent(server_round)
        append_lines(self.folder.log, [done])
        events, num_rounds = [*strategy.events(), done], self.settings.server.num_rounds
        left = ", ".join(filter(None, [f"{seconds:.0f} s", self.total.text()]))
        say(f"round {server_round} of {num_rounds}: {_losses(events)}, {left}")
        return events

    def evaluate(self, server_round: int) -> None:
        """Evaluate a round unless that is done already; write the pooled numbers."""
        path, strategy = self.folder.evaluation(server_round), self.strategy
        if path.exists():
            return
        self._gather(strategy.tested(), server_round)
        record = strategy.record(trains=False)
        asked = strategy.configure_evaluate(server_round, record, self.config, self.grid)
        replies = self._exchange(asked, "evaluate")
        try:
            strategy.aggregate_evaluate(server_round, replies)
        finally:
            append_lines(self.folder.log, strategy.events())
        scored = [event for event in strategy.events() if event["event"] == "evaluate"]
        num_test = sum(event["num_test"] for event in strategy.prepared.values())
        scores = table_of_round(scored, num_test)
        write_json(path, scores)
        self.watch.on_evaluate(score_record(server_round, scores))

    def _gather(self, clients: Sequence[str], server_round: int) -> None:
        self.membership.wait_for(clients, self.strategy.quorum(len(clients)), server_round)
        self.strategy.absent = self.membership.absent()

    def _exchange(self, messages: Iterable[Message], kind: str) -> Iterator[Message]:
        self.total.begin(kind)
        for reply in self.grid.send_and_receive(messages, timeout=self.settings.federation.timeout):
            self.total.done(kind)
            yield reply

    def _spent(self, server_round: int) -> Event:
        """Epsilon and delta of the client drawn most often up to a round; {} without differential privacy."""
        privacy, num = self.settings.privacy, self.settings.server.clients_per_round
        if privacy.kind == "none":
            return {}
        times = num_trainings(self.strategy.prepared, num, self.settings.run.seed, server_round)
        return {"epsilon": epsilon(privacy, times), "delta": privacy.delta}


def _events_until(begun: int, folder: RunFolder) -> list[Event]:
    """Events of finished work; those of an interrupted round will be written again."""
    return [
        event
        for event in read_lines(folder.log)
        if event["round"] <= begun
        and (event.get("work", event["event"]) != "evaluate" or folder.evaluation(event["round"]).exists())
    ]


def _losses(events: Iterable[Event]) -> str:
    """Mean training losses of a round over its clients, for the user to watch."""
    means = [(key.split("/"), value) for key, value in round_record(events).items()]
    return ", ".join(f"{names[1]} loss {value:.3f}" for names, value in means if names[0] == "train")
