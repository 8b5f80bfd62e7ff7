"""The private parts of Flower that every engine needs (as of 1.41); `deployment` alone uses others.

`Message` cannot be made before the process has a task identity, and a reply cannot name its question
without a message id. Flower sets both where it starts an app itself.
"""

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_FAILED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Code of a reply that says no more than that the client failed, or that cannot be read."""
AWAY = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
"""Codes of a message, a reply or a node that is not there, as when a node is restarted."""

__all__ = ["AWAY", "CLIENT_FAILED", "Run", "become_server", "set_message_id"]


def become_server(run: Run, node_id: int = 0, task_id: int = 0) -> None:
    """Make this process the server of a run, as far as Flower's messages are concerned."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.run_id, node_id, task_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id by which its reply will name it."""
    message.metadata.__dict__["_message_id"] = message_id
