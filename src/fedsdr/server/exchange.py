"""One exchange with the clients: the sampled clients, the accepted replies, and why others were dropped."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedsdr.errors import UserError
from fedsdr.progress import say
from fedsdr.server.validate import Rejected
from fedsdr.storage import Event

Checked = TypeVar("Checked")


class Exchange:
    """Messages to the clients of a round, and their replies."""

    def __init__(
        self,
        kind: str,
        server_round: int,
        clients: Sequence[str],
        roster: Mapping[int, str],
        absent: Collection[str],
        required: Mapping[str, int],
        timeout: float,
    ) -> None:
        """Record the sampled clients; drop those that are not connected immediately.

        Args:
            kind: "train" or "evaluate".
            server_round: The round.
            clients: Ids of the sampled clients.
            roster: Node id -> client id, for nodes that have connected.
            absent: Clients that are not connected now.
            required: Rule, as worded in errors -> number of usable replies that it requires.
            timeout: Time limit for answers in seconds, for the log.
        """
        self.kind = kind
        self.server_round = server_round
        self.clients = clients
        self.required = required
        self.timeout = timeout
        nodes = {client: node for node, client in roster.items()}
        self.waiting = {nodes[client]: client for client in clients if client not in absent}
        """Node id -> client id, for nodes that have not answered yet."""
        self.messages: list[Message] = []
        self.events: list[Event] = []
        """One record per reply, for the log."""
        self.accepted: set[str] = set()
        """Clients whose replies were accepted."""
        for client in clients:
            if client in absent:
                self.drop(client, "it is not connected")

    def ask(self, arrays: ArrayRecord, config: ConfigRecord) -> list[Message]:
        """Messages to the connected clients."""
        content = RecordDict(
            {"arrays": arrays, "config": ConfigRecord({**config, "round": self.server_round})}
        )
        return self.send(dict.fromkeys(self.clients, content), self.kind)

    def send(self, contents: Mapping[str, RecordDict], kind: str) -> list[Message]:
        """Messages of one kind to the connected clients, each with its own content."""
        group = str(self.server_round)
        self.messages = [
            Message(contents[client], node, kind, group_id=group) for node, client in self.waiting.items()
        ]
        return self.messages

    def usable(
        self, replies: Iterable[Message], check: Callable[[str, Message], Checked]
    ) -> Iterator[tuple[str, Checked]]:
        """Yield client id and content of the replies that pass a check, in order of arrival.

        Args:
            replies: In any order; some may be missing.
            check: Receives client id and reply, and raises Rejected to drop the reply.
        """
        for reply in replies:
            client = self._sender(reply)
            try:
                if not client:
                    raise Rejected("it comes from a node that was not asked or already answered")
                checked = check(client, reply)
            except Rejected as reason:
                self.drop(client, str(reason))
                continue
            self.accepted.add(client)
            yield client, checked
        for client in sorted(self.waiting.values()):
            self.drop(client, f"no answer in {self.timeout:g} s")
        self.waiting = {}

    def drop(self, client: str, reason: str) -> None:
        """Drop a client's reply, and log the reason."""
        self.accepted.discard(client)
        say(f"  dropped the reply of {client or 'an unknown node'}: {reason}")
        self.events.append(
            {"event": "dropped", "work": self.kind, "round": self.server_round, "client": client or "-"}
            | {"reason": reason}
        )

    def require_enough(self) -> None:
        """Raise UserError if fewer replies were accepted than required."""
        num = len(self.accepted)
        for rule, needed in self.required.items():
            if num < needed:
                dropped = [event for event in self.events if event["event"] == "dropped"]
                reasons = "; ".join(f"{event['client']}: {event['reason']}" for event in dropped)
                raise UserError(
                    f"round {self.server_round}: {num} of {len(self.clients)} sampled clients"
                    f" gave a usable reply, {rule} needs {needed}. Dropped: {reasons}"
                )

    def _sender(self, reply: Message) -> str:
        """Client id of an expected reply, or ""."""
        node = reply.metadata.src_node_id
        if reply.has_error():  # Flower answers for a lost node, and identifies only the message
            nodes = {one.metadata.message_id: one.metadata.dst_node_id for one in self.messages}
            node = nodes.get(reply.metadata.reply_to_message_id, node)
        return self.waiting.pop(node, "")
