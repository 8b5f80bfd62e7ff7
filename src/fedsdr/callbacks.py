"""Callbacks: programs that watch a run while it is running. The loggers are callbacks (`loggers`).

A callback cannot change a run: it receives copies, and torch's random state, on the CPU and the current GPU,
is restored after each call.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.history import Record
from fedsdr.run_folder import Result
from fedsdr.storage import Event

OnStep = Callable[[str, float, int], None]
"""Called after an optimizer step with the name of its stage, its loss and its number of response tokens."""


class Callback:
    """Hooks called during a run; override the ones you need. An exception stops the run."""

    def on_start(self, settings: Settings, server_round: int) -> None:
        """Before the rounds; `server_round` is the last finished one, 0 unless the run is resumed."""

    def on_step(self, step: Record) -> None:
        """After an optimizer step at a client of this process; not under differential privacy.

        Args:
            step: "round", "client", "stage"; "step", the number of this step among the client's, from 1;
                "loss", the mean over its response tokens; "num_tokens".
        """

    def on_round(self, record: Record) -> None:
        """After a round was saved, with `history.round_record`."""

    def on_evaluate(self, record: Record) -> None:
        """After an evaluation, with `history.score_record`; round 0 is the base model."""

    def on_end(self, result: Result | None) -> None:
        """At the end of the run; None if it stopped early."""


def checked_callbacks(callbacks: Callback | Sequence[Callback]) -> Sequence[Callback]:
    """The callbacks of a program, as a list.

    Raises:
        UserError: One is no callback.
    """
    given = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
    for one in given:
        if not isinstance(one, Callback):
            found = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
            raise UserError(f"callbacks: found {found}; expected a list of fedsdr.Callback objects")
    return given


class Watch:
    """Calls the callbacks of a run."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        """Watch with these callbacks, in this order."""
        self.callbacks = callbacks
        self.finished: Counter[str] = Counter()
        """Steps of each client in the finished rounds."""
        self.current: Counter[str] = Counter()
        """Steps of each client in this round."""
        self.has_begun = False

    def start(self, settings: Settings, server_round: int, past: Iterable[Event]) -> None:
        """Start after a round, with the events so far."""
        self.has_begun = True
        self._count(past)
        self._call("on_start", settings, server_round)

    def on_step(self, client: str, server_round: int, stage: str, loss: float, num_tokens: int) -> None:
        """Report a step."""
        self.current[client] += 1
        step = {"round": server_round, "client": client, "stage": stage}
        step |= {"step": self.finished[client] + self.current[client], "loss": loss, "num_tokens": num_tokens}
        self._call("on_step", step)

    def on_round(self, record: Record, events: Iterable[Event]) -> None:
        """Report a round."""
        self._count(events)
        self.current.clear()
        self._call("on_round", record)

    def on_evaluate(self, record: Record) -> None:
        """Report scores."""
        self._call("on_evaluate", record)

    def end(self, result: Result | None) -> None:
        """End the callbacks, if they have been started."""
        if self.has_begun:
            self.has_begun = False
            self._call("on_end", result)

    def _count(self, events: Iterable[Event]) -> None:
        for event in events:
            if event["event"] == "train":
                steps = (int(value) for key, value in event.items() if key.endswith("/num_steps"))
                self.finished[event["client"]] += sum(steps)

    def _call(self, hook: str, *arguments: object) -> None:
        """Call a hook of all callbacks.

        Raises:
            UserError: Names the callback that raised an exception.
        """
        import torch

        for callback in self.callbacks:
            try:
                used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
                with torch.random.fork_rng(used):  # dropout draws from this state
                    getattr(callback, hook)(*copy.deepcopy(arguments))
            except Exception as error:
                name = type(callback).__name__
                raise UserError(f"callback {name}.{hook}: {type(error).__name__}: {error}") from error


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching_steps(watch: Watch) -> Iterator[None]:
    """Report the steps of clients in this process; if the block fails, end the callbacks."""
    token = _watch.set(watch if watch.callbacks else None)
    try:
        yield
    except BaseException:
        with suppress(UserError):  # show the first error only
            watch.end(None)
        raise
    finally:
        _watch.reset(token)


def step_hook(settings: Settings, client: str, server_round: int) -> OnStep | None:
    """The hook to call after each step of a client; None if nobody watches."""
    watch = _watch.get()
    if watch is None or settings.privacy.kind != "none":
        return None
    return lambda stage, loss, num_tokens: watch.on_step(client, server_round, stage, loss, num_tokens)
