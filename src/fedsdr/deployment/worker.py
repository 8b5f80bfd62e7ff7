"""The long-lived client process beside a SuperNode, which keeps the model loaded between messages.

Flower's own way is a new process for each message, which loads the model each time and runs whatever code
the server sends with the run. A worker takes the messages from the SuperNode's Runtime API instead
(`--isolation process`) and answers them with the client app that is installed here, and nothing else: code
that comes with a run is never unpacked.

The calls are Flower's, of its private parts (as of 1.41); they are those of its own `run_clientapp`. How they
are tried again is not: that ends the process by a signal where the SuperNode no longer knows a message's
token, as after this machine slept for a minute.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import httpx
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
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

from fedsdr.progress import say

POLL = 0.5
"""Seconds between two looks for a message."""
PATIENCE = 30.0
"""Seconds after which a SuperNode that does not answer is given up."""
BETWEEN = 4
"""Most seconds between two tries."""
BUSY = (502, 503, 504)
"""HTTP's codes after which it is tried again."""
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


def work(app: ClientApp, address: str, secret: bytes, is_alive: Callable[[], bool]) -> None:
    """Answer the messages of a SuperNode, one after the other, as long as it is alive.

    Args:
        app: What answers them.
        address: Of the SuperNode's Runtime API, host:port on this machine.
        secret: What the SuperNode was given to know its worker by.
        is_alive: Whether to go on.
    """
    known = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({ACQUIRE}))
    asking = _client(address, known, patience=0.0)
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while is_alive():
        try:
            found = asking.AcquireTask(request)
        except httpx.HTTPError:  # it starts, or ends, or the clock jumped
            time.sleep(POLL)
            continue
        if found.HasField("task") and found.token:
            _answer(app, address, found.token)
        else:
            time.sleep(POLL)


def _answer(app: ClientApp, address: str, token: str) -> None:
    """Take a message, answer it, hand over the reply."""
    client = _client(address, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(lambda: _beat(client))
    heartbeat.start()
    message = context = None
    try:
        message, context, _run, _code = pull_task_input(client)
        reply = app(message=message, context=context)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.COMPLETED, "")
    except Exception as error:  # the run ended, the SuperNode did, or a message is none of ours
        say(f"a message is not answered: {type(error).__name__}; what the client keeps is in its folder")
        if message and context:
            with suppress(Exception):
                reason = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__)
                push_message(client, Message(reason, reply_to=message), context)
                push_task_output(client, context, SubStatus.FAILED, "")
    finally:
        heartbeat.stop()
        client.close()


def _beat(client: RuntimeHttpClient) -> bool:
    """Tell the SuperNode that its message is being worked on; False if it did not hear it."""
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
    """Whether another try would fare no better."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in BUSY
