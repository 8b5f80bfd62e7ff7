"""Progress: messages of the logger "fedsdr", and bars by tqdm.

A program that uses this package sees nothing until it enables them, by logging's own means or by `show`.
"""

import io
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
log = logging.getLogger("fedsdr")
say = log.info
_bars: list["_Bar"] = []
"""Visible bars, the innermost last."""
_place: ContextVar[str] = ContextVar("place", default="")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)  # above a bar, if one is shown


class _Bar(tqdm):
    monitor_interval = 0  # no thread

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.fp is sys.stderr:
            super().display(msg, pos)
        elif msg is None:  # a log file gets lines
            say(f"  {self}")


def duration(seconds: float) -> str:
    """Format a duration in its two largest units, such as 5 min 39 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def show(quiet: bool = False) -> None:
    """Show messages and bars on standard error; `quiet`: warnings only."""
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.handlers = [_Handler()]
    log.propagate = False


@contextmanager
def within(place: str) -> Iterator[None]:
    """Name the current work, such as "round 3, math"; inner names follow outer ones."""
    token = _place.set(f"{_place.get()}{place}: ")
    try:
        yield
    finally:
        _place.reset(token)


def here() -> str:
    """The current work, for messages: the names given by `within`."""
    return _place.get().removesuffix(": ")


def track(items: Iterable[Item], unit: str, sizes: Sequence[int]) -> Iterator[Item]:
    """Pass items through and show progress after 3 s: a bar on a terminal, otherwise a line every 20 s.

    Args:
        items: The work.
        unit: Name of the counted units, such as "examples".
        sizes: Number of units of each item.
    """
    is_live = sys.stderr.isatty()
    options: dict[str, Any] = {"mininterval": 0.5, "file": sys.stderr}
    if not is_live:
        options = {"mininterval": 20.0, "file": io.StringIO()}
    options |= {"total": sum(sizes), "desc": here(), "unit": f" {unit}", "delay": 3.0, "miniters": 1}
    with _Bar(**options, leave=False, disable=not log.isEnabledFor(logging.INFO)) as bar:
        _bars.append(bar)
        try:
            for item, size in zip(items, sizes, strict=True):
                yield item
                bar.update(size)
        finally:
            _bars.remove(bar)


def note(text: str) -> None:
    """Show a text, such as the loss of the last step, at the end of the innermost bar."""
    if _bars:
        _bars[-1].set_postfix_str(text, refresh=False)


class Total:
    """Progress of a whole run: one bar on a terminal above those of its parts, and the remaining time.

    The remaining time is the number of pieces of each kind of work times their mean time so far. In a resumed
    run, earlier times count too.
    """

    def __init__(self, left: Mapping[str, int], before: Mapping[str, Sequence[float]]) -> None:
        """Begin.

        Args:
            left: Kind of work -> number of remaining pieces.
            before: Kind of work -> seconds of earlier pieces.
        """
        self.left = Counter(left)
        self.num = Counter({kind: len(before.get(kind, ())) for kind in left})
        self.seconds = defaultdict(float, {kind: sum(before.get(kind, ())) for kind in left})
        self.last = time.monotonic()
        is_shown = log.isEnabledFor(logging.INFO) and sys.stderr.isatty()
        self.bar = _Bar(
            total=sum(left.values()), desc="run", leave=False, disable=not is_shown, file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f} % |{bar:20}| {n_fmt} of {total_fmt} pieces{postfix}",
        )  # fmt: skip

    def begin(self, kind: str) -> None:
        """Measure the time of the first piece of this kind from now on."""
        self.last = time.monotonic()
        self.bar.set_postfix_str(f"{kind}, {self.text()}" if self.text() else kind)

    def done(self, kind: str) -> None:
        """Count a piece of work."""
        now = time.monotonic()
        self.num[kind] += 1
        self.seconds[kind] += now - self.last
        self.last = now
        self.left[kind] = max(0, self.left[kind] - 1)
        self.bar.update()
        self.begin(kind)

    def text(self) -> str:
        """Remaining time as text; "" if it is unknown, or nothing is left."""
        open_kinds = [kind for kind, num in self.left.items() if num]
        known = [kind for kind in open_kinds if self.num[kind]]
        if not known:
            return ""
        left = sum(self.left[kind] * self.seconds[kind] / self.num[kind] for kind in known)
        return f"{'about' if known == open_kinds else 'more than'} {duration(left)} left"

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()
