"""Which clients are connected: each prepares once, and may disconnect and return.

On other machines, clients start late, restart, and fail. A run starts when all are connected. After that a
round needs a quorum, and clients that were away rejoin when they return.
"""

import time
from collections.abc import Callable, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsdr.config import Federation, Server
from fedsdr.errors import UserError
from fedsdr.messages.flower import AWAY
from fedsdr.progress import say
from fedsdr.server.registry import registered
from fedsdr.server.validate import Rejected, check_prepared
from fedsdr.storage import Event

POLL = 1.0
"""Seconds between two checks of who is connected."""
AGAIN = 60.0
"""Seconds after which a rejected node is asked again: its operator may have fixed the problem."""


class Membership:
    """The clients of a federation and their nodes."""

    def __init__(
        self,
        grid: Grid,
        config: ConfigRecord,
        identity: str,
        federation: Federation,
        server: Server,
        known: dict[str, Event],
        on_prepared: Callable[[], None] = lambda: None,
    ) -> None:
        """Start with no connected clients.

        Args:
            grid: The connection to the nodes.
            config: Sent with each message.
            identity: Identity of the server's base model.
            federation: Number of clients, and how long to wait for them.
            server: The quorum for resuming a run, and the limit on domains per client.
            known: Client id -> its report from `prepare`; {} for a new run. A resumed run has exactly these
                clients.
            on_prepared: Called once for each client after its first `prepare`.
        """
        self.grid = grid
        self.config = ConfigRecord({**config, "round": 0, "model": identity})
        self.identity = identity
        self.federation = federation
        self.server = server
        self.known = known
        self.on_prepared = on_prepared
        self.is_open = not known
        """Whether new clients may join: until all have been connected once."""
        self.roster: dict[int, str] = {}
        """Node id -> client id, of the nodes that have prepared."""
        self.nodes: dict[str, int] = {}
        """The same by client: a look through the roster for each of many clients would take long."""
        self.connected: set[int] = set()
        self.pending: dict[str, int] = {}
        """Nodes that are preparing, by the id of their request."""
        self.refused: dict[int, float] = {}
        """Rejected nodes, with the time of the next attempt."""
        self.reasons: dict[int, str] = {}
        self.names: dict[int, str] = {}
        """Node id -> the client that owns its key; {} if keys are not bound to names."""

    def absent(self) -> set[str]:
        """Clients of the federation that are not connected."""
        return self.known.keys() - {self.roster[node] for node in self.connected & self.roster.keys()}

    def wait_for_all(self) -> None:
        """Wait for all clients of the federation, or for a quorum if the run is resumed.

        Time does not count while a connected client prepares: rewriting may take hours, and has its own time
        limit.

        Raises:
            UserError: Too few connect within `federation.wait` seconds; or a simulated client cannot prepare.
        """
        federation, wanted = self.federation, self.federation.num_clients or 1
        wait, begun, said = federation.wait, time.monotonic(), -1
        until = begun + wait
        # All simulated clients are connected from the start: one that cannot prepare now never will.
        is_local = not federation.num_clients
        while True:
            self.look(is_strict=is_local)
            num = len(self.known.keys() - self.absent())
            if num >= wanted and not self.pending:
                break
            is_enough = num >= (wanted if self.is_open else self.server.quorum * wanted)
            if self.pending and not is_enough:
                until = max(until, min(time.monotonic() + POLL, begun + wait + federation.prepare))
            if time.monotonic() > until:
                if is_enough:
                    break
                reasons = "".join(f"; {reason}" for reason in self.reasons.values())
                if self.pending:
                    reasons += (
                        f"; {len(self.pending)} did not finish preparing in {federation.prepare:g} s"
                        " (federation.prepare)"
                    )
                is_short = len(self.connected) < wanted or not reasons
                steps = ["start the others"] * is_short + ["fix what follows"] * bool(reasons)
                raise UserError(
                    f"{num} of {wanted} clients were admitted in {wait:g} s (federation.wait,"
                    f" federation.num_clients): {', '.join(steps)}, then run again{reasons}"
                )
            if num != said:
                say(f"  {num} of {wanted} clients are admitted, waiting for the others")
                said = num
            time.sleep(POLL)
        if said >= 0:
            say(f"  {num} of {wanted} clients are admitted")
        self.is_open = False

    def wait_for(self, clients: Sequence[str], num: int, server_round: int) -> None:
        """Wait until `num` of these clients are connected; readmit returning clients.

        Raises:
            UserError: They do not connect within `federation.wait` seconds.
        """
        wait = self.federation.wait
        until = time.monotonic() + wait
        while True:
            self.look()
            there = set(clients) - self.absent()
            if len(there) >= num:
                return
            if time.monotonic() > until:
                raise UserError(
                    f"round {server_round}: {len(there)} of {len(clients)} sampled clients were connected"
                    f" after {wait:g} s (federation.wait), server.quorum = {self.server.quorum}"
                    f" needs {num}. Finished rounds are saved: run again when they are back"
                )
            time.sleep(POLL)

    def look(self, is_strict: bool = False) -> None:
        """Check who is connected, ask new nodes to prepare, and admit prepared ones, without waiting.

        Raises:
            UserError: A node cannot prepare, and `is_strict`; otherwise it is rejected, and asked again
                later.
        """
        now = time.monotonic()
        self.connected = set(self.grid.get_node_ids())
        if folder := self.federation.nodes:  # read again: a key may have been replaced
            self.names = {node: client for client, (node, _) in registered(folder).items()}
            self.connected &= self.names.keys()
        self.refused = {node: until for node, until in self.refused.items() if until > now}
        busy = self.roster.keys() | self.refused.keys() | set(self.pending.values())
        for node in sorted(self.connected - busy):
            # The client can then detect a wrong name before it rewrites its data.
            content = RecordDict(
                {"config": ConfigRecord({**self.config, "client": self.names.get(node, "")})}
            )
            for one in self.grid.push_messages([Message(content, node, "query.prepare", group_id="0")]):
                self.pending[one] = node
        if not self.pending:
            return
        for reply in self.grid.pull_messages(list(self.pending)):
            node = self.pending.pop(reply.metadata.reply_to_message_id)
            if reply.has_error() and reply.error.code in AWAY:
                continue  # it is asked again when it returns
            try:
                self._admit(reply, node)
                self.reasons.pop(node, None)
            except Rejected as reason:
                who = f"client {self.names[node]}" if node in self.names else "a client"
                if is_strict:
                    raise UserError(f"{who} could not prepare: {reason}") from None
                say(f"  {who} is not admitted: {reason}; next attempt in {AGAIN:g} s")
                self.refused[node] = now + AGAIN
                self.reasons[node] = f"{who} is not admitted: {reason}"
        self.pending = {one: node for one, node in self.pending.items() if node in self.connected}

    def _admit(self, reply: Message, node: int) -> None:
        """Admit a client, for the first time or again.

        Raises:
            Rejected: With the reason.
        """
        client, metrics = check_prepared(reply, self.identity, self.server.max_domains)
        event = {"event": "prepare", "round": 0, "client": client, **metrics}
        if self.federation.nodes and self.names.get(node) != client:
            raise Rejected(f"it claims to be client {client}, which is registered with another key")
        before = self.nodes.get(client)
        if before in self.connected:
            raise Rejected(f"two nodes claim to be client {client}")
        if client not in self.known:
            if not self.is_open:
                raise Rejected(f"client {client} was not part of the run when it began")
            self.known[client] = event
            self.on_prepared()
        for name in ("num_train", "num_test"):
            if self.known[client][name] != event[name]:
                raise Rejected(f"client {client} had {name} = {self.known[client][name]}, now {event[name]}")
        if before is not None:
            del self.roster[before]
        self.roster[node], self.nodes[client] = client, node
