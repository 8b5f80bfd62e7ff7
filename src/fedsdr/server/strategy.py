"""The server side of a round as a Flower strategy: sample clients, validate replies, aggregate, step.

It keeps no random state, and all state between rounds is on disk, so a resumed run continues as if it had
never stopped.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsdr.config import Settings
from fedsdr.messages.privacy import noise_seed, private_mean
from fedsdr.messages.wire import (
    CONTROL_VARIATES,
    Arrays,
    Float32,
    Shapes,
    broadcast,
    cut,
    downloaded,
    pack,
    rank_of,
    shapes_of,
    uploaded,
)
from fedsdr.methods import AGGREGATIONS, DRIFT_CORRECTIONS, METHODS, OPTIMIZERS, ROBUST_AGGREGATORS
from fedsdr.progress import say
from fedsdr.rows import has_global
from fedsdr.run_folder import RunFolder
from fedsdr.server.aggregate import AGGREGATE, Before, Target, add_residual, checked
from fedsdr.server.checkpoint import load_round, remove_updates, save_update
from fedsdr.server.exchange import Exchange
from fedsdr.server.limits import change_norm, has_limits, too_large
from fedsdr.server.optimize import OPTIMIZE, Float64, Moments, extrapolation
from fedsdr.server.sampling import draw_clients
from fedsdr.server.spool import Spool
from fedsdr.server.validate import Update, check_reply, check_scores
from fedsdr.storage import Event


class FedStrategy(Strategy):
    """Aggregation and server optimizer of `settings`, preceded by validation."""

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
            roster: Node id -> client id, for nodes that have connected.
            prepared: Client id -> its report from `prepare`, with `num_train` and `num_test`, and `weight` if
                that is less than num_train; for all clients of the federation.
            arrays: Shared adapter by PEFT key.
            moments: Saved state of the server optimizer, and c; empty at first.
            residual: The accumulated change of the base, as factors by PEFT key; {} for none.
        """
        self.settings = settings
        self.method = METHODS[settings.method]
        self.aggregation = AGGREGATIONS[settings.server.aggregation]
        self.correction = DRIFT_CORRECTIONS[settings.client.drift_correction]
        self.folder = RunFolder(settings.run.dir)
        self.roster = roster
        self.prepared = prepared
        self.arrays = arrays
        self.moments = moments
        self.residual = residual
        self.absent: set[str] = set()
        """Clients that are currently not connected."""
        self.exchange: Exchange
        """The most recent exchange."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the sampled clients to train from the shared adapter."""
        remove_updates(self.folder, server_round)
        clients, server = self.sampled(server_round), self.settings.server
        rule = f"server.robust = {server.robust!r} with server.num_byzantine = {server.num_byzantine}"
        needed = ROBUST_AGGREGATORS[server.robust].num_needed(server.num_byzantine)
        self.exchange = self._exchange("train", server_round, clients, {rule: needed})
        return self.exchange.ask(arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Validate the replies, aggregate them in the order of client ids, and step.

        The round's median norm is known only after the last reply. Until then updates are stored on disk.

        Raises:
            UserError: Fewer replies passed than the quorum or the robust aggregator requires.
        """
        control_variates = self.control_variates()
        changes = np.zeros(0 if control_variates is None else control_variates.size)
        # In the run's folder, whose disk has room for it: /tmp may be in memory.
        with tempfile.TemporaryFile(dir=self.folder.path) as file:
            spool = Spool(file)
            spread = self._collect(replies, spool)
            target = self._aggregate(_adding(self._used(spool), changes), server_round)
        self._step(target, spread)
        if control_variates is not None:
            # In float32, like the clients': a single client's stays equal to the server's.
            renewed = (control_variates + changes / len(self.prepared)).astype(np.float32)
            self.moments[CONTROL_VARIATES] = renewed.astype(np.float64)
        return self.record(), None

    def _step(self, target: Target, spread: float = 0.0) -> None:
        """Let the server optimizer step towards the aggregated target."""
        server = self.settings.server
        sent = self.sent()
        if OPTIMIZERS[server.optimizer].extrapolates:
            rate = extrapolation(sent, target.shared, spread, server.tau)
            server = server.model_copy(update={"learning_rate": rate})
        new, moments = OPTIMIZE[server.optimizer](sent, target.shared, self.moments, server)
        self.arrays = self.arrays | self._checked("optimizer", new, shapes_of(sent))
        self.moments = moments
        if self.exchange.server_round == server.num_rounds and server.mean_of_rounds > 1:
            self.arrays = self._mean_of_rounds()
        self.residual = add_residual(self.residual, target.added)

    def _collect(self, replies: Iterable[Message], spool: Spool) -> float:
        """Store valid updates on disk, drop those with too large a norm, and log.

        Returns:
            Mean over the clients, weighted by their examples, of the squared norm of their changes.

        Raises:
            UserError: Fewer are left than the quorum or the robust aggregator requires.
        """
        server, exchange, sent = self.settings.server, self.exchange, self.sent()
        norms: dict[str, float] = {}
        weights: dict[str, int] = {}
        reported: dict[str, Event] = {}
        for client, update in exchange.usable(replies, self._check_update):
            norms[client] = change_norm(update, sent, self.aggregation.is_fresh)
            weights[client] = update.num_examples
            reported[client] = {"num_bytes_up": update.num_bytes} | update.metrics
            spool.add(update)
        if has_limits(self.settings):
            for client, reason in too_large(norms, server.max_change).items():
                exchange.drop(client, reason)
        for client in sorted(exchange.accepted):
            self._log("train", client, reported[client])
        exchange.require_enough()
        total = sum(weights[client] for client in exchange.accepted)
        return sum(weights[client] * norms[client] ** 2 for client in sorted(exchange.accepted)) / total

    def _mean_of_rounds(self) -> Arrays:
        """For the last round: the mean of the shared adapters of the last `server.mean_of_rounds` rounds."""
        server, rank = self.settings.server, self.settings.adapter.rank
        first = max(1, server.num_rounds - server.mean_of_rounds + 1)
        past = [load_round(self.folder, number, rank)[0] for number in range(first, server.num_rounds)]
        rounds = [*past, self.arrays]
        means = {key: np.mean([arrays[key] for arrays in rounds], axis=0) for key in self.arrays}
        return {key: np.asarray(mean, np.float32) for key, mean in means.items()}

    def _used(self, spool: Spool) -> Iterator[Update]:
        """Updates of the accepted replies, in the order of client ids."""
        for client in sorted(self.exchange.accepted):
            update = spool.read(client)
            if self.settings.server.keep_updates:
                save_update(self.folder, self.exchange.server_round, client, update.arrays)
            yield update

    def _aggregate(self, updates: Iterable[Update], server_round: int) -> Target:
        """The new shared adapter, before the server optimizer, and the change of the base."""
        privacy, server, sent = self.settings.privacy, self.settings.server, self.sent()
        if privacy.kind == "central":
            seed = noise_seed(privacy, self.settings.run.seed, "server", "round", server_round)
            arrays = (update.arrays for update in updates)
            return Target(private_mean(arrays, sent, len(self.exchange.clients), privacy, seed), {})
        shared, added = AGGREGATE[server.aggregation](updates, server, Before(sent, server_round))
        shapes = shapes_of(self.arrays, rank_of(added)) if added else {}
        return Target(
            self._checked("aggregation", shared, shapes_of(sent)), self._checked("aggregation", added, shapes)
        )

    def _checked(self, choice: str, found: Arrays, shapes: Shapes) -> Arrays:
        name = f"server.{choice} = {getattr(self.settings.server, choice)!r}"
        return checked(f"round {self.exchange.server_round}: {name}", found, shapes)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the `tested` clients to evaluate the shared adapter."""
        self.exchange = self._exchange("evaluate", server_round, self.tested(), {})
        return self.exchange.ask(arrays, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Validate the scores and log them; the server app pools them.

        Raises:
            UserError: Fewer replies passed than the quorum requires.
        """
        for _ in self.exchange.usable(replies, self._check_scores):
            pass
        self.exchange.require_enough()

    def sampled(self, server_round: int) -> list[str]:
        """Clients of a round."""
        num, seed = self.settings.server.clients_per_round, self.settings.run.seed
        return draw_clients(self.prepared, num, seed, server_round)

    def tested(self) -> list[str]:
        """Clients that have test examples; all, if none has or if each fuses its adapters when evaluated."""
        everyone = sorted(self.prepared)
        if self.method.personal == "fused":
            return everyone
        return [client for client in everyone if self.prepared[client]["num_test"]] or everyone

    def quorum(self, num_sampled: int) -> int:
        """Number of usable replies that a round requires from so many sampled clients."""
        # Rounded first: in floating point, 0.07 * 100 is above 7.
        return max(1, math.ceil(round(self.settings.server.quorum * num_sampled, 9)))

    def sent(self) -> Arrays:
        """The trained and transmitted part of the shared adapter."""
        return uploaded(self.method, self.aggregation, self.arrays)

    def record(self, trains: bool = True) -> ArrayRecord:
        """The message content for the clients, with c for training."""
        control_variates = self.control_variates() if trains else None
        sent = downloaded(self.method, self.aggregation, self.arrays)
        return broadcast(sent, self.residual, control_variates)

    def control_variates(self) -> Float32 | None:
        """The clients' mean control variates c (num_values,), zero at first; None if unused."""
        if not self.correction.has_control_variates:
            return None
        return self.moments.get(CONTROL_VARIATES, np.zeros(pack(self.sent()).size)).astype(np.float32)

    def events(self) -> list[Event]:
        """A record of each reply of the last exchange, by kind and client."""
        return sorted(self.exchange.events, key=lambda event: (event["event"], event["client"]))

    def summary(self) -> None:
        """Print the server's settings."""
        server = self.settings.server
        say(f"  server: {server.aggregation}, {server.robust}, {server.optimizer}")

    def _exchange(
        self, kind: str, server_round: int, clients: Sequence[str], required: Mapping[str, int]
    ) -> Exchange:
        quorum = {f"server.quorum = {self.settings.server.quorum}": self.quorum(len(clients))}
        timeout = self.settings.federation.timeout
        return Exchange(
            kind, server_round, clients, self.roster, self.absent, {**quorum, **required}, timeout
        )

    def _check_update(self, client: str, reply: Message) -> Update:
        """Validate a training reply.

        Raises:
            Rejected: With the reason.
        """
        prepared = self.prepared[client]
        update = check_reply(
            reply,
            client,
            int(prepared["num_train"]),
            cut(self.sent(), self.settings.adapter.rank_of(client)),
            self.settings.communication.dtype,
            self.exchange.server_round,
            self.settings.server.max_norm,
            self.correction.has_control_variates,
        )
        return replace(update, num_examples=int(prepared.get("weight") or prepared["num_train"]))

    def _check_scores(self, client: str, reply: Message) -> None:
        """Validate an evaluation reply and log it.

        Raises:
            Rejected: With the reason.
        """
        server_round, num_test = self.exchange.server_round, int(self.prepared[client]["num_test"])
        # In round 0 the base model is scored as the global model.
        is_global = server_round == 0 or has_global(self.method, self.aggregation)
        most = self.settings.server.max_domains
        self._log("evaluate", client, check_scores(reply, num_test, server_round, is_global, most))

    def _log(self, kind: str, client: str, metrics: Mapping[str, float]) -> None:
        about = {"event": kind, "round": self.exchange.server_round, "client": client}
        self.exchange.events.append(about | {key: metrics[key] for key in metrics if key != "round"})


def _adding(updates: Iterable[Update], changes: Float64) -> Iterator[Update]:
    """Pass updates through, and sum the changes of their control variates in `changes`.

    c <- c + (|S| / N) mean over S of dc_k, where S are the clients whose updates are used and N counts all
    clients: the sum over S divided by N. The means are unweighted, regardless of the clients' numbers of
    examples.

    Paper: Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, algorithm 1.
    """
    for update in updates:
        if update.control_variates is not None:
            changes += update.control_variates
        yield update
