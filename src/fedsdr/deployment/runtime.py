"""Calls of Flower's Runtime API, by which a SuperNode or SuperLink gives its tasks to another process.

They are those of Flower's own programs, of its private parts (as of 1.41). The retries differ: Flower's end
the process by a signal if the other side no longer knows a task's token, as after this machine slept for a
minute.
"""

import time
from collections.abc import Callable

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient

POLL = 0.5
"""Seconds between two looks for a task."""
PATIENCE = 30.0
"""Seconds for which a call that is not answered is tried again."""
BETWEEN = 4
"""Most seconds between two tries."""
BUSY = (502, 503, 504)
"""HTTP status codes after which a call is tried again."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def take_tasks(
    address: str,
    secret: bytes,
    kind: str,
    do: Callable[[str], None],
    is_alive: Callable[[], bool],
    certificates: bytes | None = None,
) -> None:
    """Take tasks, one after the other, as long as the other side is alive.

    Args:
        address: Of the Runtime API, host:port on this machine.
        secret: By which the other side authenticates who takes its tasks.
        kind: Flower's TaskType.
        do: Does a task, given its token.
        is_alive: Whether the other side still runs.
        certificates: Of its authority; None: it answers without TLS.
    """
    authentication = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods=frozenset({ACQUIRE})
    )
    client = connect(address, authentication, certificates=certificates, patience=0.0)
    request = AcquireTaskRequest(supported_task_types=[kind])
    while is_alive():
        try:
            found = client.AcquireTask(request)
        except httpx.HTTPError:  # it starts, or ends, or the clock jumped
            time.sleep(POLL)
            continue
        if found.HasField("task") and found.token:
            do(found.token)
        else:
            time.sleep(POLL)


def connect(
    address: str,
    *interceptors: ProtobufClientInterceptor,
    certificates: bytes | None = None,
    patience: float = PATIENCE,
) -> RuntimeHttpClient:
    """A client of the Runtime API that tries a call again for so many seconds."""
    retry = RetryInvoker(
        lambda: exponential(max_delay=BETWEEN),
        httpx.HTTPError,
        max_tries=None,
        max_time=patience,
        should_giveup=_is_final,
    )
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=certificates is None,
        root_certificates=certificates,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedsdr"), *interceptors],
        retry_invoker=retry,
    )


def beat(client: RuntimeHttpClient) -> bool | None:
    """Report that a task is being worked on; False: its run was stopped, None: the call failed."""
    try:
        return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
    except httpx.HTTPError:
        return None


def _is_final(error: Exception) -> bool:
    """Whether another try cannot succeed."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in BUSY
