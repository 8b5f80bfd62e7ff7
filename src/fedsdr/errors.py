"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake in settings, data or environment that the user can mend.

    The message names what was found, where, and what would do. The command line prints it without
    a traceback and exits with code 2.
    """


class UnfitAttention(UserError):
    """Our attention does not give what the model's own does."""


class AnotherBaseModel(UserError):
    """A client's base model is not its server's. The name of this class is all that the server is told."""


class Diverged(UserError):
    """Training left the numbers: the learning rate is too high."""


class Unreachable(UserError):
    """What lies on the hub cannot be had: no network, no such id, no access, no package to read it."""
