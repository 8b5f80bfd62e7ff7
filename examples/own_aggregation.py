"""An aggregation of your own in addition to the built-in ones: python examples/own_aggregation.py."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

import fedsdr
from fedsdr.config import Server
from fedsdr.rows import Aggregation
from fedsdr.server.aggregate import Before, Target
from fedsdr.server.validate import Update

HERE = Path(__file__).parent


@fedsdr.register(
    "cautious", Aggregation("the mean, moved towards by at most 0.0002 in each number", "an example")
)
def cautious(updates: Iterable[Update], server: Server, before: Before) -> Target:
    """Aggregate the clients' factors.

    Each value of the result depends only on the same value of every client. So the row is linear, and can be
    combined with server optimizers such as fedadam.

    Args:
        updates: The clients' updates, in the order of their ids: `arrays` by PEFT key, `num_examples`.
        server: The settings of [server].
        before: The broadcast factors, and the round.
    """
    received = list(updates)
    weights = np.array([update.num_examples for update in received], float)
    target = {}
    for key, sent in before.shared.items():
        mean = np.average([update.arrays[key] for update in received], axis=0, weights=weights)
        target[key] = (sent + np.clip(mean - sent, -0.0002, 0.0002)).astype(np.float32)
    return Target(target, {})  # {}: nothing is added to the base


for name in ("average", "cautious"):
    result = fedsdr.run(
        {
            "recipe": HERE / "small.toml",
            "run.dir": f"runs/own-aggregation/{name}",
            "server.aggregation": name,
            "data.domains": ["finance", "math"],
            "data.num_train": 8,
            "data.num_test": 2,
        }
    )
    print(f"{name}: held-out loss {result.final['global']['mean']['loss']:.4f}")
