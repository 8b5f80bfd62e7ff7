"""The server's side of a round as a Flower strategy: draw clients, guard, aggregate, optimize.

It keeps no random state and no state between rounds that is not on disk, so a resumed run goes on
as if nothing had happened.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.messages.privacy import noise_seed, private_mean
from fedsdr.messages.wire import (
    CONTROL_VARIATES,
    Arrays,
    Float32,
    broadcast,
    cut,
    going_down,
    pack,
    travelling,
)
from fedsdr.methods import AGGREGATIONS, DRIFT_CORRECTIONS, METHODS, ROBUST_AGGREGATORS, has_global
from fedsdr.progress import say
from fedsdr.seeds import seed_for
from fedsdr.server.aggregate import AGGREGATE, Before, Target, add_residual
from fedsdr.server.checkpoint import forget_updates, keep_update
from fedsdr.server.optimize import OPTIMIZE, Float64, Moments
from fedsdr.server.validate import Rejected, Update, check_reply, check_scores
from fedsdr.storage import Event


class FedStrategy(Strategy):
    """Aggregation and server optimizer of `settings`, with the guard before them.

    `events` collects one record for each reply; the server app writes them to metrics.jsonl.
    """

    def __init__(
        self,
        settings: Settings,
        roster: dict[int, str],
        prepared: Mapping[str, Event],
        arrays: Arrays,
        moments: Moments,
        residual: Arrays,
    ) -> None:
        """Start from the current shared adapter and residual.

        Args:
            settings: The run's settings.
            roster: Node id -> client id, of the nodes that have connected.
            prepared: Client id -> what it told when it prepared, with `num_train` and `num_test`; of all
                clients of the federation.
            arrays: Shared adapter by PEFT key.
            moments: What the server optimizer keeps between rounds, and c; empty at first.
            residual: What the aggregation added to the base, as factors by PEFT key; {} for nothing.
        """
        self.settings = settings
        self.roster = roster
        self.prepared = prepared
        self.arrays = arrays
        self.moments = moments
        self.residual = residual
        self.events: list[Event] = []
        self.absent: set[str] = set()
        """Clients that are not connected now."""
        self.asked: set[int] = set()
        self.num_asked = 0
        self.messages: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with the shared adapter to the clients drawn for this round."""
        del grid
        forget_updates(Path(self.settings.run.dir) / "server", server_round)
        drawn = draw_clients(self.settings, self.prepared, server_round)
        return self._messages(drawn, MessageType.TRAIN, server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Guard the replies, order them by client id, aggregate, and step.

        Raises:
            UserError: Fewer replies passed than the quorum asks.
        """
        server = self.settings.server
        updates = self._updates(server_round, replies)
        control_variates = self.control_variates()
        if not self.sent():  # a method that shares nothing
            for _ in updates:
                pass
        else:
            changes = np.zeros(0 if control_variates is None else control_variates.size)
            target = self._aggregate(_adding(updates, changes), server_round)
            new, self.moments = OPTIMIZE[server.optimizer](self.sent(), target.shared, self.moments, server)
            self.arrays = self.arrays | new
            self.residual = add_residual(self.residual, target.added)
            if control_variates is not None:
                # In float32, as the clients keep theirs: alone, a client's stays equal to the server's.
                renewed = (control_variates + changes / len(self.prepared)).astype(np.float32)
                self.moments[CONTROL_VARIATES] = renewed.astype(np.float64)
        self.events.sort(key=lambda event: (event["event"], event["client"]))
        return self.record(), None

    def _aggregate(self, updates: Iterable[Update], server_round: int) -> Target:
        """What the updates make of the shared adapter, before the server optimizer."""
        privacy, server = self.settings.privacy, self.settings.server
        if privacy.kind == "central":
            seed = noise_seed(privacy, self.settings.run.seed, "server", "round", server_round)
            arrays = (update.arrays for update in updates)
            return Target(private_mean(arrays, self.sent(), self.num_asked, privacy, seed), {})
        return AGGREGATE[server.aggregation](updates, server, Before(self.sent(), server_round))

    def _updates(self, server_round: int, replies: Iterable[Message]) -> Iterator[Update]:
        """Yield the updates that pass the guard in the order of client ids, each as soon as it can be.

        An update is held back until all clients before it have answered. Where they answer in order, as
        simulated ones do, one is in memory at a time.

        Raises:
            UserError: Fewer passed than the quorum or the robust aggregator asks, after the last.
        """
        sent = self.sent()
        waiting = sorted((self.roster[node], node) for node in self.asked)
        held: dict[str, Update] = {}
        num_good = 0
        for reply in replies:
            if update := self._check(reply, sent, server_round):
                if self.settings.server.keep_updates:
                    keep_update(
                        Path(self.settings.run.dir) / "server", server_round, update.client, update.arrays
                    )
                held[update.client] = update
                num_good += 1
            while waiting and waiting[0][1] not in self.asked:
                client, _ = waiting.pop(0)
                if client in held:
                    yield held.pop(client)
        yield from (held[client] for client in sorted(held))
        self._drop_silent("train", server_round)
        self._demand_quorum(num_good, server_round)
        self._demand_enough(num_good, server_round)

    def _check(self, reply: Message, sent: Arrays, server_round: int) -> Update | None:
        """Put a training reply through the guard and into the log; None if it is dropped."""
        client = self._sender(reply)
        num = self._told(client, "num_train")
        dtype, max_norm = self.settings.communication.dtype, self.settings.server.max_norm
        sent = cut(sent, self.settings.adapter.rank_of(client))
        try:
            has_control_variates = DRIFT_CORRECTIONS[
                self.settings.client.drift_correction
            ].has_control_variates
            update = check_reply(
                reply, client, num, sent, dtype, server_round, max_norm, has_control_variates
            )
        except Rejected as reason:
            self._drop("train", client, server_round, str(reason))
            return None
        self.events.append(
            {"event": "train", "round": server_round, "client": client, "num_bytes_up": update.num_bytes}
            | {key: value for key, value in update.metrics.items() if key != "round"}
        )
        return update

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with the shared adapter to all clients."""
        del grid
        return self._messages(sorted(self.prepared), MessageType.EVALUATE, server_round, arrays, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Guard the replies' metrics; they are pooled by the server app from the events."""
        num_good = 0
        # In round 0 the base model is scored in its place.
        method, server = METHODS[self.settings.method], self.settings.server
        is_global = server_round == 0 or has_global(method, AGGREGATIONS[server.aggregation])
        for reply in replies:
            client = self._sender(reply)
            num = self._told(client, "num_test")
            try:
                metrics = check_scores(reply, client, num, server_round, is_global)
            except Rejected as reason:
                self._drop("evaluate", client, server_round, str(reason))
                continue
            num_good += 1
            self.events.append(
                {"event": "evaluate", "round": server_round, "client": client}
                | {key: value for key, value in metrics.items() if key != "round"}
            )
        self._drop_silent("evaluate", server_round)
        self._demand_quorum(num_good, server_round)
        self.events.sort(key=lambda event: (event["event"], event["client"]))
        return None

    def summary(self) -> None:
        """Print what this server does."""
        server = self.settings.server
        say(f"  server: {server.aggregation}, {server.robust}, {server.optimizer}")

    def sent(self) -> Arrays:
        """The part of the shared adapter that learns and travels."""
        return travelling(self.settings, self.arrays)

    def record(self, trains: bool = True) -> ArrayRecord:
        """What goes down to the clients, with c where they train."""
        control_variates = self.control_variates() if trains else None
        return broadcast(going_down(self.settings, self.arrays), self.residual, control_variates)

    def control_variates(self) -> Float32 | None:
        """The clients' mean control variates c (num_values,), zero at first; None without any."""
        if not DRIFT_CORRECTIONS[self.settings.client.drift_correction].has_control_variates:
            return None
        return self.moments.get(CONTROL_VARIATES, np.zeros(pack(self.sent()).size)).astype(np.float32)

    def take_events(self) -> list[Event]:
        """Hand over the events since the last call."""
        events, self.events = self.events, []
        return events

    def _messages(
        self, clients: Sequence[str], kind: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> list[Message]:
        """Messages to those of the clients that are connected; the others are dropped at once."""
        nodes = {client: node for node, client in self.roster.items()}
        there = [nodes[client] for client in clients if client not in self.absent]
        self.asked, self.num_asked = set(there), len(clients)
        for client in clients:
            if client in self.absent:
                self._drop(kind, client, server_round, "it is not connected")
        config = ConfigRecord({**config, "round": server_round})
        self.messages = [
            Message(RecordDict({"arrays": arrays, "config": config}), node, kind, group_id=str(server_round))
            for node in there
        ]
        return self.messages

    def _sender(self, reply: Message) -> str:
        """Client id of a reply that is awaited; empty if none is, or that node has already answered.

        Flower itself answers for a node that is gone, and such an error names its question alone.
        """
        node = reply.metadata.src_node_id
        if reply.has_error():
            asked = {one.metadata.message_id: one.metadata.dst_node_id for one in self.messages}
            node = asked.get(reply.metadata.reply_to_message_id, node)
        if node not in self.asked:
            return ""
        self.asked.remove(node)
        return self.roster[node]

    def _told(self, client: str, name: str) -> int:
        """What a client told when it prepared; 0 for a sender that is not awaited."""
        return int(self.prepared[client][name]) if client else 0

    def _drop_silent(self, work: str, server_round: int) -> None:
        """Give up on those that were asked and have not answered in time."""
        for node in sorted(self.asked, key=self.roster.__getitem__):
            seconds = self.settings.federation.timeout
            self._drop(work, self.roster[node], server_round, f"no answer in {seconds:g} s")
        self.asked = set()

    def _drop(self, work: str, client: str, server_round: int, reason: str) -> None:
        say(f"  dropped the reply of {client or 'an unknown node'}: {reason}")
        self.events.append(
            {"event": "dropped", "work": work, "round": server_round, "client": client or "-"}
            | {"reason": reason}
        )

    def _demand_enough(self, num_good: int, server_round: int) -> None:
        server = self.settings.server
        needed = ROBUST_AGGREGATORS[server.robust].num_needed(server.num_byzantine)
        if num_good < needed:
            raise UserError(
                f"round {server_round}: {num_good} usable replies, but server.robust ="
                f" {server.robust!r} with server.num_byzantine = {server.num_byzantine} needs {needed}"
            )

    def quorum(self, num_asked: int) -> int:
        """How many usable replies of so many asked clients a round needs."""
        return max(1, math.ceil(self.settings.server.quorum * num_asked))

    def _demand_quorum(self, num_good: int, server_round: int) -> None:
        needed = self.quorum(self.num_asked)
        if num_good < needed:
            reasons = "; ".join(
                f"{event['client']}: {event['reason']}"
                for event in self.events
                if event["event"] == "dropped"
            )
            raise UserError(
                f"round {server_round}: {num_good} of {self.num_asked} asked clients gave a usable reply,"
                f" server.quorum = {self.settings.server.quorum} asks for {needed}. Dropped: {reasons}"
            )


def _adding(updates: Iterable[Update], changes: Float64) -> Iterator[Update]:
    """Pass updates on, and add the changes of their control variates up in `changes`.

    c <- c + (|S| / N) mean over S of dc_k, S the clients whose updates are used and N all clients: so the sum
    over S, divided by N. Plain means, whatever the clients' numbers of examples.

    Paper: Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, algorithm 1.
    """
    for update in updates:
        if update.control_variates is not None:
            changes += update.control_variates
        yield update


def draw_clients(settings: Settings, clients: Iterable[str], server_round: int) -> list[str]:
    """Clients of a round, sorted; drawn anew from run seed and round, whoever is connected."""
    known, wanted = sorted(clients), settings.server.clients_per_round
    if not wanted:
        return known
    rng = random.Random(seed_for(settings.run.seed, "server", "clients", "round", server_round))
    return sorted(rng.sample(known, wanted))


def num_trainings(settings: Settings, clients: Iterable[str], server_round: int) -> int:
    """In how many rounds up to this one the most drawn client is asked; draws are public."""
    known = sorted(clients)
    rounds = range(1, server_round + 1)
    drawn = Counter(client for number in rounds for client in draw_clients(settings, known, number))
    return max(drawn.values(), default=0)
