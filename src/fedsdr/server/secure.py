"""The server side of a secure sum (`messages.secure_sum`), and of rounds that use one.

Four steps follow training. Each is a message to all clients that answered the previous one: shares (encrypted
for each other), masked (vectors, summed as they arrive), confirm (signatures of who is in the sum), unmask
(shares that remove the remaining masks). Of n clients, `secure_sum.threshold` must answer to the end. The sum
must be of at least the round's quorum, which is checked before any client confirms it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsdr.errors import UserError
from fedsdr.messages import secure_sum
from fedsdr.messages.privacy import noise_seed, noised_mean
from fedsdr.messages.secure_sum import SHARE_BYTES, Card, Float64, Words
from fedsdr.messages.wire import VALUES, Arrays, pack, unpack
from fedsdr.server.aggregate import Target
from fedsdr.server.exchange import Checked, Exchange
from fedsdr.server.registry import registered
from fedsdr.server.strategy import FedStrategy
from fedsdr.server.validate import (
    Rejected,
    check_array,
    check_num_examples,
    check_tensor,
    content_of,
    numbers_of,
)
from fedsdr.storage import Event, read_json, write_json

SEALED_BYTES = 2 * SHARE_BYTES + 16


class Query(Protocol):
    """Sends each client its part of a step, and yields the answers that pass a check, by client."""

    def __call__(
        self,
        step: str,
        given: Mapping[str, ConfigRecord],
        check: Callable[[RecordDict], Checked],
        needed: int,
        kind: type = ConfigRecord,
    ) -> Iterator[tuple[str, Checked]]:
        """Raise UserError if fewer than `needed` pass."""


def secure_total(
    query: Query,
    cards: Mapping[str, Card],
    about: bytes,
    size: int,
    cap: int,
    remember: Callable[[Sequence[str]], None],
) -> tuple[Words, list[str]]:
    """Sum of the clients' encoded vectors (size,), and the names of the clients in it.

    Args:
        query: Sends a step to the clients.
        cards: Published by the clients that have trained.
        about: `secure_sum.round_digest`.
        size: Length of a vector.
        cap: Cap on the weights; 0: none.
        remember: Called with the names in the sum before any client signs them: if the round is repeated, it
            must have the same names. Raises UserError if they are too few.

    Raises:
        UserError: Too many clients dropped out, or one sent wrong shares.
    """
    names, least = sorted(cards), max(secure_sum.threshold(len(cards)), secure_sum.LEAST_CLIENTS)
    roll = secure_sum.write_roll(cards, cap)
    check = partial(check_secrets, names, SEALED_BYTES, len(names))
    rolls = {name: ConfigRecord({"roll": roll}) for name in names}
    sealed = dict(query("shares", rolls, check, least))
    senders = sorted(sealed)

    total, survivors = np.zeros(size, np.uint32), list[str]()
    parts = {name: ConfigRecord({sender: sealed[sender][name] for sender in senders}) for name in senders}
    for name, words in query("masked", parts, partial(check_words, size), least, ArrayRecord):
        total += words
        survivors.append(name)
    survivors.sort()
    remember(survivors)

    lists = {name: ConfigRecord({"survivors": survivors}) for name in survivors}
    signatures = dict(query("confirm", lists, check_signature, least))
    signed = {name: ConfigRecord({**signatures}) for name in signatures}
    shares: dict[str, dict[int, bytes]] = {name: {} for name in senders}
    for name, found in query("unmask", signed, partial(check_secrets, senders, SHARE_BYTES, 0), least):
        for owner, share in found.items():
            shares[owner][names.index(name) + 1] = share

    alive = {name: cards[name].mask for name in survivors}
    for name in senders:
        secret = _restored(name, shares[name], least)
        if name in alive:
            total -= secure_sum.expand(secret, size)
        elif secure_sum.public(secret) == cards[name].mask:
            secure_sum.add_pairwise(total, name, secret, alive, about)
        else:
            raise UserError(f"secure aggregation: some client gave a wrong share of the key of {name}")
    return total, survivors


def _restored(name: str, shares: Mapping[int, bytes], least: int) -> bytes:
    if len(shares) < least:
        raise UserError(
            f"secure aggregation: {len(shares)} clients could decrypt a share of {name}, {least} are required"
        )
    try:
        return secure_sum.join(dict(sorted(shares.items())[:least]))
    except ValueError:
        raise UserError("secure aggregation: some client gave a wrong share") from None


def check_secrets(names: Sequence[str], size: int, least: int, content: RecordDict) -> dict[str, bytes]:
    """Extract shares of a given size from a reply, one for each of at least `least` of these clients.

    An honest client sends no share that another client made up, since it could not decrypt it.

    Raises:
        Rejected: With the reason.
    """
    given: dict[str, Any] = dict(content["given"])
    if not given.keys() <= set(names) or len(given) < least:
        raise Rejected(f"it contains {len(given)} shares, too few or for other clients than the {len(names)}")
    for value in given.values():
        if not isinstance(value, bytes) or len(value) != size:
            raise Rejected(f"a share does not have {size} bytes")
    return given


def check_words(size: int, content: RecordDict) -> Words:
    """Extract a masked vector from a reply.

    Raises:
        Rejected: With the reason.
    """
    arrays: Any = content["given"]
    if set(arrays) != {VALUES}:
        raise Rejected(f"it contains {len(arrays)} arrays; expected the masked one")
    return check_array(VALUES, arrays[VALUES], "<u4", (size,))


def check_signature(content: RecordDict) -> bytes:
    """Extract a signature from a reply; other clients verify it."""
    match dict(content["given"]):
        case {"signature": bytes(signature), **others} if not others and len(signature) <= 256:
            return signature
    raise Rejected("it contains no signature")


def check_card(
    content: RecordDict, num_train: int, server_round: int, about: bytes, node_key: str | None
) -> tuple[Card, dict[str, float]]:
    """Extract a client's keys and its metrics from a training reply.

    Other clients would fail on a bad key or signature, and be dropped in its sender's place.

    Args:
        content: Of the reply.
        num_train: As in `check_reply`.
        server_round: The round of the exchange.
        about: `secure_sum.round_digest`.
        node_key: Registered public key of the client's node; None: clients have none, and sign nothing.

    Raises:
        Rejected: With the reason.
    """
    numbers = numbers_of(content, "train", server_round)
    check_num_examples(numbers, num_train)
    match dict(content["card"]):
        case {"mask": bytes(mask), "seal": bytes(seal), "signature": bytes(signature), **others} if (
            not others and len(mask) == len(seal) == secure_sum.BYTES and len(signature) <= 256
        ):
            card = Card(mask, seal, num_train, signature)
        case _:
            raise Rejected("it contains no keys for a secure sum")
    if not (secure_sum.is_usable(mask) and secure_sum.is_usable(seal)):
        raise Rejected("no key can be agreed on with its keys for a secure sum")
    if node_key and not secure_sum.has_signed(node_key.encode(), signature, card.signed(about)):
        raise Rejected(
            "its keys for a secure sum are not signed by its registered key, for this round and broadcast"
        )
    return card, numbers


class SecureStrategy(FedStrategy):
    """Rounds in which the server sees only the sum of the updates."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As `FedStrategy`; the later steps use the same channel to the same clients.

        If a round is interrupted after its sum was agreed on, only the clients in that sum are asked again.
        """
        self.grid, self.config = grid, config
        run, settings = str(config["run"]), str(config["settings"])
        sent = {name: array.numpy() for name, array in arrays.items()}
        self.about = secure_sum.round_digest(run, server_round, settings, sent)
        # Read again: a key may have been replaced.
        self.keys = {name: key for name, (_, key) in registered(self.settings.federation.nodes).items()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        waiting, path = self.exchange.waiting, self.folder.survivors
        begun = read_json(path) if path.exists() else {}
        if begun.get("round") == server_round:
            for node, client in list(waiting.items()):
                if client not in begun["clients"]:
                    del waiting[node]
                    self.exchange.drop(client, "the sum of this round was agreed on without it")
        return [message for message in messages if message.metadata.dst_node_id in waiting]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Validate the clients' keys, sum their changes without seeing them, and step.

        Raises:
            UserError: Too few clients are left, or the sum is not a sum of valid updates.
        """
        exchange, sent = self.exchange, self.sent()
        cards: dict[str, Card] = {}
        reported: dict[str, Event] = {}
        for client, (card, metrics) in exchange.usable(replies, self._check_card):
            cards[client], reported[client] = card, metrics
        exchange.require_enough()
        self.num_bytes_up = dict.fromkeys(cards, 0)
        size = sum(value.size for value in sent.values())
        caps = [int(event["weight"]) for event in self.prepared.values() if "weight" in event]
        total, survivors = secure_total(
            self._query, cards, self.about, size, max(caps, default=0), partial(self._remember, server_round)
        )
        for client in survivors:
            self._log("train", client, {"num_bytes_up": self.num_bytes_up[client]} | reported[client])
        self._step(Target(self._mean(total, cards, survivors, max(caps, default=0)), {}))
        return self.record(), None

    def _mean(self, total: Words, cards: Mapping[str, Card], survivors: Sequence[str], cap: int) -> Arrays:
        """The new shared adapter, from the sum of the changes."""
        privacy, sent = self.settings.privacy, self.sent()
        is_private = privacy.kind == "central"
        bound = secure_sum.bound_of(privacy.clipping_norm if is_private else None, len(cards))
        try:
            change: Float64 = secure_sum.decode(total, bound, len(survivors))
        except ValueError:
            raise UserError(
                f"round {self.exchange.server_round}: the secure sum of {', '.join(survivors)} is not a sum"
                " of updates: one client sent an invalid vector or wrong shares; it cannot be identified"
            ) from None
        if is_private:
            seed = noise_seed(privacy, self.settings.run.seed, "server", "round", self.exchange.server_round)
            return noised_mean(change, sent, len(self.exchange.clients), privacy, seed)
        weights = secure_sum.weights_of({name: card.num_examples for name, card in cards.items()}, cap)
        new = pack(sent) + change / sum(weights[name] for name in survivors)
        tensors = unpack(new.astype(np.float32), {key: value.shape for key, value in sent.items()})
        for key, value in tensors.items():
            try:
                check_tensor(key, value, self.settings.server.max_norm)
            except Rejected as reason:
                raise UserError(f"round {self.exchange.server_round}: in the secure sum, {reason}") from None
        return tensors

    def _query(
        self,
        step: str,
        given: Mapping[str, ConfigRecord],
        check: Callable[[RecordDict], Checked],
        needed: int,
        kind: type = ConfigRecord,
    ) -> Iterator[tuple[str, Checked]]:
        """One step, as `Query`."""
        server_round = self.exchange.server_round
        config = ConfigRecord({**self.config, "round": server_round, "step": step})

        def checked(client: str, reply: Message) -> Checked:
            content = content_of(reply, {"given": kind})
            found, values = check(content), content["given"].values()
            for value in cast(Iterable[Array | bytes], values):
                self.num_bytes_up[client] += len(value.data if isinstance(value, Array) else value)
            return found

        rule, timeout = {f"secure aggregation, {step},": needed}, self.exchange.timeout
        exchange = Exchange("train", server_round, sorted(given), self.roster, self.absent, rule, timeout)
        messages = exchange.send(
            {client: RecordDict({"config": config, "given": given[client]}) for client in exchange.clients},
            "query.secure",
        )
        yield from exchange.usable(self.grid.send_and_receive(messages, timeout=timeout), checked)
        for event in exchange.events:
            self.exchange.events.append(event | {"reason": f"secure aggregation, {step}: {event['reason']}"})
        exchange.require_enough()

    def _check_card(self, client: str, reply: Message) -> tuple[Card, dict[str, float]]:
        content = content_of(reply, {"card": ConfigRecord, "metrics": MetricRecord})
        num_train, key = int(self.prepared[client]["num_train"]), self.keys.get(client)
        return check_card(content, num_train, self.exchange.server_round, self.about, key)

    def _remember(self, server_round: int, survivors: Sequence[str]) -> None:
        self.exchange.accepted &= set(survivors)
        self.exchange.require_enough()
        write_json(self.folder.survivors, {"round": server_round, "clients": list(survivors)})
