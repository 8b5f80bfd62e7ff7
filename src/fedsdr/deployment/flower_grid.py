"""Flower's grid to other machines, made resilient: neither a bad reply nor a clock jump stops a round.

Flower's own `send_and_receive` waits by the wall clock, returns all replies when the last has arrived, and
raises if one of them cannot be read (as of 1.42). Here replies are yielded on arrival, one at a time, so that
the aggregation holds few in memory. An unreadable reply counts as an error of its sender. A reply that the
SuperLink fails to deliver is requested again, which helps if delivery had not begun: otherwise Flower forgets
the reply. Flower also waits minutes to hours for the rest of an incomplete reply, whatever the timeout; here
the wait ends at the timeout, with a last check for other replies.
"""

import math
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import httpx
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from fedsdr.errors import UserError
from fedsdr.messages.flower import CLIENT_FAILED, Run
from fedsdr.progress import say

POLL = 1.0
"""Seconds between two checks for replies."""
PATIENCE = 60.0
"""Time limit in seconds for a failing SuperLink to recover, and for a client's first reply to arrive
completely."""


class ResilientGrid(Grid):
    """A grid around Flower's own."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.questions: dict[str, Message] = {}
        """Messages without a reply so far, by id."""
        self.failed: set[str] = set()
        """Those whose reply the SuperLink failed to deliver."""

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self.grid.run

    def create_message(self, *values: Any, **options: Any) -> Message:
        """Create a message (Flower's older API)."""
        return self.grid.create_message(*values, **options)

    def get_node_ids(self) -> Iterable[int]:
        """Connected nodes.

        Raises:
            UserError: The SuperLink answers with errors for a minute.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.grid.get_node_ids()
            except httpx.HTTPError as error:
                if time.monotonic() > until:
                    raise UserError(f"the SuperLink does not list the connected nodes: {error}") from None
            time.sleep(POLL)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; skip those that Flower refuses because their node is gone.

        Raises:
            UserError: The SuperLink accepts none of them.
        """
        sent = list(messages)
        try:
            ids = list(self.grid.push_messages(sent))
        except httpx.HTTPError as error:
            raise UserError(f"the SuperLink does not accept messages: {error}; run again to resume") from None
        self.questions |= {one: message for one, message in zip(ids, sent, strict=False) if one}
        return [one for one in ids if one]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have arrived, each read separately."""
        return list(self._pull(message_ids, time.monotonic() + PATIENCE))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and yield replies on arrival, until all have arrived or the time is over."""
        waiting = set(self.push_messages(messages))
        until = math.inf if timeout is None else time.monotonic() + timeout
        is_over = False
        try:
            while waiting and not is_over:
                is_over = time.monotonic() >= until
                for reply in self._pull(sorted(waiting), until):
                    waiting.discard(reply.metadata.reply_to_message_id)
                    yield reply
                if waiting and not is_over:
                    time.sleep(POLL)
        finally:  # each message holds the broadcast adapter
            for one in waiting:
                self._forget(one)

    def _pull(self, message_ids: Iterable[str], until: float) -> Iterator[Message]:
        for one in message_ids:
            left = max(0.0, until - time.monotonic())
            http_grid.pull_objects = partial(pull_objects, max_time=left)
            try:
                replies = list(self.grid.pull_messages([one]))
            except httpx.HTTPError as error:  # its database may be busy, or its disk temporarily full
                if one not in self.failed:
                    self.failed.add(one)
                    say(f"  the SuperLink failed to deliver a reply: {error}; requesting it again")
                continue
            except Exception as error:
                if one not in self.questions:
                    raise
                reason = f"its reply cannot be read ({type(error).__name__})"
                replies = [Message(Error(CLIENT_FAILED, reason), reply_to=self.questions[one])]
            if replies:
                self._forget(one)
            yield from replies

    def _forget(self, one: str) -> None:
        self.questions.pop(one, None)
        self.failed.discard(one)
