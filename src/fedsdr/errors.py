"""Exceptions with a message for the user."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in settings, data or environment that the user can fix.

    The message names what was found, where, and how to fix it. The command line prints it without a traceback
    and exits with code 2.
    """


class UnfitAttention(UserError):
    """Our attention and the model's own differ in their results."""


class AnotherBaseModel(UserError):
    """A client's base model is not its server's. The client reports only the name of this class."""


class Diverged(UserError):
    """Training diverged to infinity or NaN: the learning rate is too high."""


class Unreachable(UserError):
    """A resource on the hub is unreachable: no network, no such id, no access, or no package to read it."""


class Problems(list[UserError]):
    """Collected errors, so that the user sees all of them together."""

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Collect the error of a block."""
        try:
            yield
        except UserError as error:
            self.append(error)

    def refuse(self) -> None:
        """Raise one error for all, with each text once; do nothing if there are none.

        Raises:
            UserError: The only error unchanged, or one with a line for each.
        """
        if len(self) == 1:
            raise self[0]
        if self:
            raise UserError("\n".join(dict.fromkeys(map(str, self))))
