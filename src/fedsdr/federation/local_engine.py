"""The `local` engine: a Flower grid that calls the ClientApp in the same process.

No Ray, no sockets, no serialisation to disk; one frozen base serves all simulated clients in sequence.
Messages are the same as in a deployment: the client receives a copy, and only the contents of its reply come
back.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsdr.errors import Diverged, UserError
from fedsdr.messages.flower import Run, become_server, set_message_id
from fedsdr.model.allocator import return_pages


class LocalGrid(Grid):
    """Nodes 1 to `num_clients`, served in the order of the messages."""

    serves_all = True
    """Whether one process serves all nodes."""

    def __init__(self, client_app: ClientApp, num_clients: int, folder: Path, **node: str) -> None:
        """Create a grid of simulated clients.

        Args:
            client_app: Called once for each message.
            num_clients: Node n is partition n - 1.
            folder: Parent of the clients' folders.
            node: Further node configuration (`cache`, `distill-url`).
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
                    "serves-all": self.serves_all,
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
        """Become the server of this run for Flower's messages."""
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
        """Create a message (Flower's older API; equivalent to `Message(...)`)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, which are always connected."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the clients answer immediately, and store the replies."""
        ids: list[str] = []
        for message in messages:
            request, _ = self.request(message)
            ids.append(request.metadata.message_id)
            self.replies[ids[-1]] = self._answer(request)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages."""
        return [self.replies.pop(message_id) for message_id in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Let each client answer when its reply is consumed, so that replies do not pile up.

        A timeout cannot be enforced inside one process and is ignored. Messages of one call are of one type,
        so the memory of other work is returned first.
        """
        return_pages()
        for message in messages:
            yield from self.pull_messages(self.push_messages([message]))

    def _answer(self, request: Message) -> Message:
        context = self.contexts[request.metadata.dst_node_id]
        return self.checked(self.client_app(request, context), context)

    def close(self) -> None:
        """Do nothing: there are no workers to stop."""

    def request(self, message: Message) -> tuple[Message, int]:
        """Copy a message for its client, with a new id; also return the client's node."""
        self.num_messages += 1
        set_message_id(message, f"message-{self.num_messages}")
        content = copy.deepcopy(message.content)
        request = Message(content, metadata=copy.copy(message.metadata))  # type: ignore[call-overload]
        return request, message.metadata.dst_node_id

    def checked(self, reply: Message, context: Context) -> Message:
        """Return a reply, or raise the client's error: here one person runs all clients and can fix it.

        Raises:
            UserError: Raised by the client.
            Diverged: Raised by the client.
            OSError: Raised by the client: a full disk affects all clients.
        """
        failure = context.state.get("error")
        if reply.has_error() and isinstance(failure, ConfigRecord):
            for kind in (UserError, Diverged, OSError):
                if failure["type"] == kind.__name__:
                    raise kind(str(failure["text"]))
        return reply
