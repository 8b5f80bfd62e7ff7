"""The `local` engine: a Flower grid that calls the ClientApp in the same process.

No Ray, no sockets, no serialisation to disk; one frozen base serves all simulated clients, one
after the other. Messages are the same as in a deployment: the client gets a copy, and only what
it puts into its reply comes back.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsdr.errors import Diverged, UserError
from fedsdr.messages.flower import Run, become_server, set_message_id


class LocalGrid(Grid):
    """Nodes 1 to `num_clients`, served in the order in which messages come."""

    def __init__(self, client_app: ClientApp, num_clients: int, folder: Path, **node: str) -> None:
        """Make a grid of simulated clients.

        Args:
            client_app: Called once for each message.
            num_clients: Node n is partition n - 1.
            folder: Holds the clients' folders.
            node: More of the nodes' configuration (`cache`, `distill-url`).
        """
        self.client_app = client_app
        self.contexts = {
            node_id: Context(
                run_id=1,
                node_id=node_id,
                node_config={
                    **node,
                    "partition-id": node_id - 1,
                    "num-partitions": num_clients,
                    "folder": str(folder),
                },
                state=RecordDict(),
                run_config={},
            )
            for node_id in range(1, num_clients + 1)
        }
        self.replies: dict[str, Message] = {}
        self.num_messages = 0
        self.set_run(Run.create_empty(run_id=1))

    def set_run(self, run: Run) -> None:
        """Become the server of that run, as far as Flower's messages are concerned."""
        self._run = run
        become_server(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (Flower's older way; `Message(...)` is the same)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes are always there."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let each message's client answer at once and hold the replies."""
        ids: list[str] = []
        for message in messages:
            request, _ = self.request(message)
            ids.append(request.metadata.message_id)
            self.replies[ids[-1]] = self._answer(request)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the replies to these messages."""
        return [self.replies.pop(message_id) for message_id in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Let each message's client answer when its reply is taken, so that no replies pile up.

        A timeout cannot be enforced inside one process and is passed over.
        """
        for message in messages:
            yield from self.pull_messages(self.push_messages([message]))

    def _answer(self, request: Message) -> Message:
        context = self.contexts[request.metadata.dst_node_id]
        return self.checked(self.client_app(request, context), context)

    def close(self) -> None:
        """Nothing is left running."""

    def request(self, message: Message) -> tuple[Message, int]:
        """Copy a message for its client, with an id of its own; and the client's node."""
        self.num_messages += 1
        set_message_id(message, f"message-{self.num_messages}")
        content = copy.deepcopy(message.content)
        request = Message(content, metadata=copy.copy(message.metadata))  # type: ignore[call-overload]
        return request, message.metadata.dst_node_id

    def checked(self, reply: Message, context: Context) -> Message:
        """Return a reply, or raise the client's error: one person runs all clients here and can fix it.

        Raises:
            UserError: The client's own.
            Diverged: The client's own.
            OSError: A full disk concerns all clients.
        """
        failure = context.state.get("error")
        if reply.has_error() and isinstance(failure, ConfigRecord):
            for kind in (UserError, Diverged, OSError):
                if failure["type"] == kind.__name__:
                    raise kind(str(failure["text"]))
        return reply
