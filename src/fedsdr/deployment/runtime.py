"""Calls of Flower's Runtime API, through which a SuperNode or SuperLink hands its tasks to another process.

They are the calls of Flower's own programs, from its private APIs (as of 1.42). The retries differ: Flower's
end the process by a signal if the other side no longer knows a task's token, for example after this machine
slept for a minute.
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
"""Seconds between two checks for a task."""
PATIENCE = 30.0
"""Seconds for which an unanswered call is retried."""
BETWEEN = 4
"""Maximum seconds between two attempts."""
BUSY = (502, 503, 504)
"""HTTP status codes after which a call is retried."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def take_tasks(
    address: str,
    secret: bytes,
    kind: str,
    do: Callable[[str], None],
    is_alive: Callable[[], bool],
    certificates: bytes | None = None,
) -> None:
    """Process tasks sequentially, as long as the other side is alive.

    Args:
        address: Address of the Runtime API, host:port on this machine.
        secret: Secret by which the other side authenticates the process.
        kind: Flower's TaskType.
        do: Processes a task, given its token.
        is_alive: Whether the other side still runs.
        certificates: Certificates of its authority; None: no TLS.
    """
    authentication = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods=frozenset({ACQUIRE})
    )
    client = connect(address, authentication, certificates=certificates, patience=0.0)
    request = AcquireTaskRequest(supported_task_types=[kind])
    while is_alive():
        try:
            found = client.AcquireTask(request)
        except httpx.HTTPError:  # it is starting or ending, or the clock jumped
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
    """A client of the Runtime API that retries a call for the given number of seconds."""
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
    """Send a task's heartbeat; False: its run was stopped, None: the call failed."""
    try:
        return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
    except httpx.HTTPError:
        return None


def _is_final(error: Exception) -> bool:
    """Whether a retry cannot succeed."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in BUSY
