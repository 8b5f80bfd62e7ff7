"""The long-lived client process that answers a SuperNode's messages and keeps the model loaded between them.

Flower itself starts a new process for each message, which loads the model each time and runs any code that
the server sends with the run. A worker instead takes the messages from the SuperNode's Runtime API
(`--isolation process`) and answers them only with the installed client app: code that comes with a run is
never unpacked.
"""

from collections.abc import Callable
from contextlib import suppress

from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedsdr.deployment.runtime import beat, connect, take_tasks
from fedsdr.messages.flower import CLIENT_FAILED
from fedsdr.progress import say


def work(app: ClientApp, address: str, secret: bytes, is_alive: Callable[[], bool]) -> None:
    """Answer the messages of a SuperNode sequentially, as long as it is alive.

    Args:
        app: The installed client app.
        address: Address of the SuperNode's Runtime API, host:port on this machine.
        secret: Secret by which the SuperNode authenticates its worker.
        is_alive: Whether the SuperNode still runs.
    """
    take_tasks(address, secret, TaskType.CLIENT_APP, lambda token: _answer(app, address, token), is_alive)


def _answer(app: ClientApp, address: str, token: str) -> None:
    """Receive a message, answer it, deliver the reply."""
    client = connect(address, RuntimeTokenHttpInterceptor(token))
    heartbeat = HeartbeatSender(lambda: bool(beat(client)))
    heartbeat.start()
    message = context = None
    try:
        message, context, _run, _code = pull_task_input(client)
        reply = app(message=message, context=context)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.COMPLETED, "")
    except Exception as error:  # the run or the SuperNode ended, or the message is for another app
        say(f"a message is not answered: {type(error).__name__}; the client's work is saved in its folder")
        if message and context:
            with suppress(Exception):
                reason = Error(CLIENT_FAILED, type(error).__name__)
                push_message(client, Message(reason, reply_to=message), context)
                push_task_output(client, context, SubStatus.FAILED, "")
    finally:
        heartbeat.stop()
        client.close()
