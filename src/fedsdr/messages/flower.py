"""Flower's private APIs (as of 1.42) that every engine needs; `deployment` and `simulation_engine` use more.

`Message` cannot be constructed before the process has a task identity, and a reply cannot refer to its
request without a message id. Flower sets both when it starts an app itself.
"""

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_FAILED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Code of a reply that reports only that the client failed, or that cannot be read."""
AWAY = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
"""Codes for a missing message, reply or node, as after a node restarts."""

__all__ = ["AWAY", "CLIENT_FAILED", "Run", "become_server", "set_message_id"]


def become_server(run: Run, node_id: int = 0, task_id: int = 0) -> None:
    """Make this process the server of a run for Flower's messages."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.run_id, node_id, task_id


def set_message_id(message: Message, message_id: str) -> None:
    """Set the message id that its reply will refer to."""
    message.metadata.__dict__["_message_id"] = message_id
