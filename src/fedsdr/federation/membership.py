"""Which clients are connected: each prepares once, and may disconnect and come back.

On other machines clients come late, restart, and fail. A run begins when all are connected; after that a
round needs a quorum, and clients that were away take part again when they are back.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsdr.config import Federation, Server
from fedsdr.errors import UserError
from fedsdr.messages.flower import AWAY
from fedsdr.progress import say
from fedsdr.server.validate import Rejected, check_prepared
from fedsdr.storage import Event, read_json

POLL = 1.0
"""Seconds between two looks at who is connected."""
AGAIN = 60.0
"""Seconds after which a node that was refused is asked again: its owner may have fixed it."""


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
        """Begin with no one connected.

        Args:
            grid: The way to the nodes.
            config: What goes with each message.
            identity: Of the server's base model.
            federation: How many clients there are, and how long to wait for them.
            server: Says which share of them is enough to resume a run, and how many domains one may name.
            known: Client id -> what it reported when it prepared; {} at first. A run that is resumed has
                these clients, and no others.
            on_prepared: Called for each client that has prepared for the first time.
        """
        self.grid = grid
        self.config = ConfigRecord({**config, "round": 0, "model": identity})
        self.identity = identity
        self.federation = federation
        self.server = server
        self.known = known
        self.on_prepared = on_prepared
        self.is_open = not known
        """Whether clients may still join: until all are there for the first time."""
        self.roster: dict[int, str] = {}
        """Node id -> client id, of the nodes that have prepared."""
        self.nodes: dict[str, int] = {}
        """The same by client: a look through the roster for each of many clients would take long."""
        self.connected: set[int] = set()
        self.pending: dict[str, int] = {}
        """Nodes that are preparing, by the id of the message that asked them."""
        self.refused: dict[int, float] = {}
        """Nodes that were refused, until when they are left alone."""
        self.reasons: dict[int, str] = {}
        self.names: dict[int, str] = {}
        """Node id -> the client whose key it has; {} where keys are not bound to names."""

    def absent(self) -> set[str]:
        """Clients of the federation that are not connected."""
        return self.known.keys() - {self.roster[node] for node in self.connected & self.roster.keys()}

    def wait_for_all(self) -> None:
        """Wait for all clients of the federation; to resume a run a quorum of them is enough.

        While a connected client prepares, time does not count: rewriting may take hours, and has a limit of
        its own.

        Raises:
            UserError: Too few connect in `federation.wait` seconds; or a simulated one cannot prepare.
        """
        federation, wanted = self.federation, self.federation.num_clients or 1
        wait, begun, said = federation.wait, time.monotonic(), -1
        until = begun + wait
        # Simulated clients are all there at once: one that cannot prepare now never will.
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
                        f"; {len(self.pending)} did not end preparing in {federation.prepare:g} s"
                        " (federation.prepare)"
                    )
                raise UserError(
                    f"{num} of {wanted} clients have connected in {wait:g} s (federation.wait,"
                    f" federation.num_clients): start the others"
                    f"{', fix what follows' if reasons else ''} and run again{reasons}"
                )
            if num != said:
                say(f"  {num} of {wanted} clients are connected, waiting for the others")
                said = num
            time.sleep(POLL)
        if said >= 0:
            say(f"  {num} of {wanted} clients are connected")
        self.is_open = False

    def wait_for(self, clients: Sequence[str], num: int, server_round: int) -> None:
        """Wait until so many of these clients are connected; admit those that come back.

        Raises:
            UserError: They are not in `federation.wait` seconds.
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
        """See who is connected, ask new nodes to prepare, and admit those that have; never wait.

        Raises:
            UserError: One cannot, and `is_strict`; else it is refused, and asked again after a while.
        """
        now = time.monotonic()
        self.connected = set(self.grid.get_node_ids())
        if folder := self.federation.nodes:  # read again: a key may have been replaced
            self.names = {node: client for client, (node, _) in registered(folder).items()}
            self.connected &= self.names.keys()
        self.refused = {node: until for node, until in self.refused.items() if until > now}
        busy = self.roster.keys() | self.refused.keys() | set(self.pending.values())
        for node in sorted(self.connected - busy):
            # The client then finds a wrong name itself, before it rewrites its data.
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
                continue  # it is asked again when it is back
            try:
                self._admit(reply, node)
                self.reasons.pop(node, None)
            except Rejected as reason:
                who = f"client {self.names[node]}" if node in self.names else "a client"
                if is_strict:
                    raise UserError(f"{who} could not prepare: {reason}") from None
                say(f"  {who} is not let in: {reason}; it is asked again in {AGAIN:g} s")
                self.refused[node] = now + AGAIN
                self.reasons[node] = f"{who} is not let in: {reason}"
        self.pending = {one: node for one, node in self.pending.items() if node in self.connected}

    def _admit(self, reply: Message, node: int) -> None:
        """Admit a client, for the first time or again.

        Raises:
            Rejected: With the reason.
        """
        client, metrics = check_prepared(reply, self.identity, self.server.max_domains)
        event = {"event": "prepare", "round": 0, "client": client, **metrics}
        if self.federation.nodes and self.names.get(node) != client:
            raise Rejected(f"it says that it is client {client}, whose registered key is not its own")
        before = self.nodes.get(client)
        if before in self.connected:
            raise Rejected(f"two nodes say that they are client {client}")
        if client not in self.known:
            if not self.is_open:
                raise Rejected(f"client {client} was not there when the run began")
            self.known[client] = event
            self.on_prepared()
        for name in ("num_train", "num_test"):
            if self.known[client][name] != event[name]:
                raise Rejected(f"client {client} had {name} = {self.known[client][name]}, now {event[name]}")
        if before is not None:
            del self.roster[before]
        self.roster[node], self.nodes[client] = client, node


def registered(folder: str) -> dict[str, tuple[int, str]]:
    """Client -> id of the node that has its key, and the key; {} of no folder.

    Raises:
        UserError: A file there is none that `fedsdr deploy register` wrote.
    """
    nodes: dict[str, tuple[int, str]] = {}
    for path in sorted(Path(folder).glob("*.json")) if folder else ():
        try:
            kept = read_json(path)
        except FileNotFoundError:  # removed this instant
            continue
        except UserError:  # refused below, with how to fix it
            kept = None
        if not isinstance(kept, dict) or (type(kept.get("node-id")), type(kept.get("key"))) != (int, str):
            raise UserError(
                f"{path}: found no node-id and key, as `fedsdr deploy register` wrote them; restore the file"
                " from a backup, or delete it: its client must then make a new key"
            )
        nodes[path.stem] = kept["node-id"], kept["key"]
    return nodes
