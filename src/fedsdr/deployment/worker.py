"""The long-lived client process that answers a SuperNode's messages and keeps the model loaded between them.

Flower itself starts a new process for each message, which loads the model each time and runs whatever code
the server sends with the run. A worker takes the messages from the SuperNode's Runtime API instead
(`--isolation process`) and answers them with the installed client app, and nothing else: code that comes
with a run is never unpacked.

The calls are those of Flower's own `run_clientapp`, of its private parts (as of 1.41). The retries differ:
Flower's end the process by a signal if the SuperNode no longer knows a message's token, as after this
machine slept for a minute.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import httpx
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedsdr.messages.flower import CLIENT_FAILED
from fedsdr.progress import say

POLL = 0.5
"""Seconds between two looks for a message."""
PATIENCE = 30.0
"""Seconds for which a call to a SuperNode that does not answer is tried again."""
BETWEEN = 4
"""Most seconds between two tries."""
BUSY = (502, 503, 504)
"""HTTP status codes after which a call is tried again."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def work(app: ClientApp, address: str, secret: bytes, is_alive: Callable[[], bool]) -> None:
    """Answer the messages of a SuperNode, one after the other, as long as it is alive.

    Args:
        app: The installed client app.
        address: Of the SuperNode's Runtime API, host:port on this machine.
        secret: By which the SuperNode authenticates its worker.
        is_alive: Whether the SuperNode still runs.
    """
    authentication = SuperExecAuthHttpInterceptor(
        master_secret=secret, protected_methods=frozenset({ACQUIRE})
    )
    client = _client(address, authentication, patience=0.0)
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while is_alive():
        try:
            found = client.AcquireTask(request)
        except httpx.HTTPError:  # it starts, or ends, or the clock jumped
            time.sleep(POLL)
            continue
        if found.HasField("task") and found.token:
            _answer(app, address, found.token)
        else:
            time.sleep(POLL)


def _answer(app: ClientApp, address: str, token: str) -> None:
    """Take a message, answer it, deliver the reply."""
    client = _client(address, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(lambda: _beat(client))
    heartbeat.start()
    message = context = None
    try:
        message, context, _run, _code = pull_task_input(client)
        reply = app(message=message, context=context)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.COMPLETED, "")
    except Exception as error:  # the run or the SuperNode ended, or the message is not of this app
        say(f"a message is not answered: {type(error).__name__}; the client's work is saved in its folder")
        if message and context:
            with suppress(Exception):
                reason = Error(CLIENT_FAILED, type(error).__name__)
                push_message(client, Message(reason, reply_to=message), context)
                push_task_output(client, context, SubStatus.FAILED, "")
    finally:
        heartbeat.stop()
        client.close()


def _beat(client: RuntimeHttpClient) -> bool:
    """Report to the SuperNode that its message is being worked on; False if that failed."""
    try:
        return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
    except httpx.HTTPError:
        return False


def _client(
    address: str, *interceptors: ProtobufClientInterceptor, patience: float = PATIENCE
) -> RuntimeHttpClient:
    retry = RetryInvoker(
        lambda: exponential(max_delay=BETWEEN),
        httpx.HTTPError,
        max_tries=None,
        max_time=patience,
        should_giveup=_is_final,
    )
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # on this machine alone
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],
        retry_invoker=retry,
    )


def _is_final(error: Exception) -> bool:
    """Whether another try cannot succeed."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in BUSY
