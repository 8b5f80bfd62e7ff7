"""Progress of what takes longer than a few seconds: one line on standard error, with rate and time left.

On a terminal the line is redrawn; elsewhere (a log file) a line is written every so often.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")
SHOW_AFTER = 3.0
"""Seconds before the first line, so that quick work stays silent."""
REDRAW_EVERY = 0.5
LOG_EVERY = 20.0

quiet = False
"""Set by the command line's --quiet."""


def track(items: Iterable[Item], what: str, unit: str, sizes: Iterable[int] | None = None) -> Iterator[Item]:
    """Pass items through and show how far they are.

    Args:
        items: The work, with a length.
        what: What is being done, such as "rewriting finance".
        unit: What is counted, such as "examples".
        sizes: How many units each item is worth; one each by default.
    """
    assert isinstance(items, Sized)
    worth = list(sizes) if sizes is not None else [1] * len(items)
    total, done = sum(worth), 0
    start, live = time.monotonic(), sys.stderr.isatty()
    shown = start + SHOW_AFTER - (REDRAW_EVERY if live else LOG_EVERY)
    drawn = False
    for item, size in zip(items, worth, strict=True):
        yield item
        done += size
        now = time.monotonic()
        if quiet or now - shown < (REDRAW_EVERY if live else LOG_EVERY):
            continue
        shown, drawn = now, True
        rate = done / (now - start)
        left = (total - done) / rate
        line = f"  {what}: {done}/{total} {unit}, {rate:.1f} a second, {left:.0f} s left"
        print(f"\r\033[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
    if drawn and live:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    elif drawn and shown != now:  # a log should not end in the middle
        print(f"  {what}: {done}/{total} {unit}, {now - start:.0f} s in all", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Tell the user what happens now, on standard error."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)
