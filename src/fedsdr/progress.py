"""What happens now: messages of the logger "fedsdr", and bars by tqdm.

A program that uses this package sees nothing until it asks, by logging's own means or by `show`.
"""

import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
log = logging.getLogger("fedsdr")
say = log.info
_place: ContextVar[str] = ContextVar("place", default="")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)  # above a bar, if one is shown


class _Bar(tqdm):
    monitor_interval = 0  # no thread

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.fp is sys.stderr:
            super().display(msg, pos)
        elif msg is None:  # a log file takes lines
            say(f"  {self}")


def duration(seconds: float) -> str:
    """Write a time in its two largest units, such as 5 min 39 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def show(quiet: bool = False) -> None:
    """Write messages and bars to standard error; `quiet`: warnings only."""
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.handlers = [_Handler()]
    log.propagate = False


@contextmanager
def within(place: str) -> Iterator[None]:
    """Name what is being done, such as "round 3, math"; names of inner places follow those of outer ones."""
    token = _place.set(f"{_place.get()}{place}: ")
    try:
        yield
    finally:
        _place.reset(token)


def here() -> str:
    """Where the work is, for messages: the names given by `within`."""
    return _place.get().removesuffix(": ")


def track(items: Sequence[Item], unit: str, sizes: Sequence[int] | None = None) -> Iterator[Item]:
    """Pass items through and show how far they are, after 3 s: a bar on a terminal, else a line every 20 s.

    Args:
        items: The work.
        unit: What is counted, such as "examples".
        sizes: How many units each item is worth; one each by default.
    """
    sizes, is_live = sizes or [1] * len(items), sys.stderr.isatty()
    options: dict[str, Any] = {"mininterval": 0.5, "file": sys.stderr}
    if not is_live:
        options = {"mininterval": 20.0, "file": io.StringIO()}
    options |= {"total": sum(sizes), "desc": here(), "unit": f" {unit}", "delay": 3.0, "miniters": 1}
    with _Bar(**options, leave=False, disable=not log.isEnabledFor(logging.INFO)) as bar:
        for item, size in zip(items, sizes, strict=True):
            yield item
            bar.update(size)
