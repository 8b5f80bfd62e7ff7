"""Rewritings of all clients' responses in a simulation, generated in shared batches.

The elapsed time is divided among the clients by their numbers of examples.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fedsdr.config import Settings
from fedsdr.data.examples import Example
from fedsdr.distill.rewrite import rewrite_together
from fedsdr.federation.client_context import (
    allowed,
    cache_of,
    data_of,
    distill_of,
    rewritings_ahead,
    seconds_ahead,
)
from fedsdr.federation.model_cache import model_of
from fedsdr.methods import METHODS
from fedsdr.run_folder import ClientFolder

MOST_PARTS = 64
"""Most parts of clients' data that are rewritten together: each locks its file."""


def rewrite_all(settings: Settings, root: Path) -> None:
    """Rewrite everything that the clients of a simulation will need, until each is opened.

    If a server generates the answers, each client rewrites its own data later.
    """
    model, longest = model_of(settings), settings.model.max_length
    if settings.distill.url:
        return
    parts: list[Literal["train", "test"]] = ["train"] * METHODS[settings.method].needs_rewritings
    parts += ["test"] * settings.eval.rewritings
    # Test responses are selected differently from training ones, and then have separate batches.
    groups = [parts] if settings.distill.only == "all" else [[part] for part in parts]
    for group in groups:
        wanted: list[tuple[Path, str, Sequence[Example]]] = []
        for client in data_of(settings)[1]:
            data, folder = allowed(settings, client), root / client.id
            for part in group:
                examples = data.train if part == "train" else data.test
                if examples and not ClientFolder(folder).rewritings(part).exists():
                    wanted.append((folder, part, examples))
        for start in range(0, len(wanted), MOST_PARTS):
            some, begun = wanted[start : start + MOST_PARTS], time.monotonic()
            pairs = [
                (examples, cache_of(settings.run, folder) / "rewritings") for folder, _, examples in some
            ]
            found = rewrite_together(model, pairs, distill_of(settings, group[0]), 2 * longest)
            each = (time.monotonic() - begun) / sum(len(examples) for examples, _ in pairs)
            for (folder, part_of, _), new in zip(some, found, strict=True):
                rewritings_ahead[folder, part_of] = new
                seconds_ahead[folder.name] = seconds_ahead.get(folder.name, 0.0) + each * len(new)
