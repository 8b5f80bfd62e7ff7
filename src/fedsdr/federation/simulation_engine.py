"""The `simulation` engine: Flower's simulation on Ray, several clients at a time, on one machine or many.

Messages, nodes and results equal those of the local engine; only the place of computation differs. Each
worker is one of Flower's Ray actors with its own base model, kept between messages. Replies are returned in
the order of the messages, so that sums are bit-identical for any number of workers.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsdr.config import Run
from fedsdr.errors import UserError
from fedsdr.federation.environment import gpus_of_worker
from fedsdr.federation.local_engine import LocalGrid

if TYPE_CHECKING:
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend


class SimulationGrid(LocalGrid):
    """Nodes 1 to `num_clients`, served by several workers."""

    serves_all = False

    def __init__(
        self, client_app: ClientApp, num_clients: int, folder: Path, resources: Run, **node: str
    ) -> None:
        """Start Ray, or connect to the cluster of `run.ray`, and start the workers.

        Args:
            client_app: As for `LocalGrid`.
            num_clients: As for `LocalGrid`.
            folder: As for `LocalGrid`; all workers must have access.
            resources: Threads and GPUs of each worker, and the number of workers.
            node: As for `LocalGrid`.

        Raises:
            UserError: The machine or cluster has too little for one worker.
        """
        super().__init__(client_app, num_clients, folder, **node)
        self.backend = _start(client_app, resources)
        self.threads = ThreadPoolExecutor(self.backend.num_workers)
        self.running: dict[str, Future[tuple[Message, Context]]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Assign each message to the next free worker."""
        ids = []
        for message in messages:
            request, node = self.request(message)
            ids.append(request.metadata.message_id)
            self.running[ids[-1]] = self.threads.submit(
                self.backend.process_message, request, self.contexts[node]
            )
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the replies to these messages."""
        replies = []
        for message_id in message_ids:
            reply, context = self.running.pop(message_id).result()
            self.contexts[context.node_id] = context
            replies.append(self.checked(reply, context))
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield replies in the order of the messages. Few are in flight at a time: each holds an adapter."""
        under_way: deque[str] = deque()
        for message in messages:
            under_way.extend(self.push_messages([message]))
            if len(under_way) > 2 * self.backend.num_workers:
                yield from self.pull_messages([under_way.popleft()])
        while under_way:
            yield from self.pull_messages([under_way.popleft()])

    def close(self) -> None:
        """Stop the workers after their messages: Ray must not end while a thread waits for it."""
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.backend.terminate()


def _start(client_app: ClientApp, resources: Run) -> "RayBackend":
    import ray
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    # Ray hides all GPUs from a worker that requests none.
    each = {"num_cpus": float(resources.threads), "num_gpus": gpus_of_worker(resources)}
    machine: dict[str, Any] = {"address": resources.ray} if resources.ray else {}
    if resources.workers and not resources.ray:
        machine["num_cpus"] = resources.workers * resources.threads
    config: Any = {"client_resources": each, "init_args": machine | {"log_to_driver": False}}
    try:
        backend = RayBackend(config)
        backend.build(partial(_open, client_app, Path.cwd()))
    except (ValueError, ConnectionError) as error:
        ray.shutdown()
        raise UserError(
            f"no worker of run.threads = {resources.threads} and run.gpus_per_client ="
            f" {each['num_gpus']:g} can be started: {error}"
        ) from None
    return backend


def _open(client_app: ClientApp, folder: Path) -> ClientApp:
    """The app, in a worker: a cluster's runs in another folder, where relative paths of data would differ."""
    with suppress(FileNotFoundError):  # another machine may lack this folder, if all paths are absolute
        os.chdir(folder)
    return client_app
