"""Exceptions with a message for the user."""


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
