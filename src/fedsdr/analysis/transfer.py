"""Whether training that helps one client helps the others: train on one, measure the loss on all."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from fedsdr.analysis.alignment import VIEWS
from fedsdr.client.update import local_update
from fedsdr.config import Client
from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.methods import METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base
from fedsdr.model.loss import token_losses
from fedsdr.progress import within
from fedsdr.seeds import seed_for
from fedsdr.stats import with_error
from fedsdr.storage import Event

Floats = NDArray[np.float64]
Changes = dict[tuple[str, str, str], Floats]
"""(view of the tests, trained on, tested on) -> change of each test example's summed loss."""
TEXTS = {"true responses": "raw", "rewritings": "distilled"}
METHOD = {"raw": "fedit", "distilled": "fedsd"}
"""The method whose only stage trains the shared adapter on the view."""


def loss_transfer(
    model: LoraModel,
    training: Mapping[str, Mapping[str, Sequence[Conversation]]],
    tests: Mapping[str, Mapping[str, Sequence[Conversation]]],
    steps: Client,
    batch_size: int,
    seed: int,
) -> list[Event]:
    """Change of the held-out loss on each client's test examples by training on one client's data only.

    Training: a fresh shared adapter, `steps.local_steps` steps, on raw or on rewritten responses. Negative
    is better. The interval covers the draw of test examples, not of training: with d_i the change of example
    i's summed -log p and n_i its response tokens, the change is r = sum d_i / sum n_i, its standard error
    sqrt(n / (n - 1) sum (d_i - r n_i)^2) / sum n_i.

    Paper: FedSDR (arXiv 2605.18028) shows such a matrix without its training procedure.

    Args:
        model: Its shared adapter is overwritten.
        training: "raw" and "distilled" -> client -> conversations.
        tests: "raw" and "distilled" (empty if they were not rewritten) -> client -> test conversations.
        steps: Steps, batches and learning rate.
        batch_size: Conversations in one forward pass without gradient.
        seed: Seed of the adapter and the data order.

    Returns:
        Records with view ("raw", "distilled", and "difference", distilled minus raw, example by example),
        trained_on, tested_on, on, value in nats per response token, low and high. trained_on = "others" is
        the mean over all other clients, tested_on = "mean" the mean over all clients.

    Raises:
        UserError: There is one client, or none has test examples.
    """
    names = list(training["raw"])
    if len(names) < 2:
        raise UserError("transfer is from client to client: there is one, but at least two are required")
    if not any(tests["raw"].values()):
        raise UserError("transfer is measured on test examples, and no client has any")
    tested = {view: {name: texts for name, texts in some.items() if texts} for view, some in tests.items()}
    sides = {on: tested[view] for on, view in TEXTS.items() if tested[view]}
    model.initialise("shared", seed_for(seed, "transfer"))  # B is zero, which is the base
    before = {on: _losses(model, side, batch_size) for on, side in sides.items()}
    changes: dict[str, Changes] = {view: {} for view in VIEWS}
    for view in VIEWS:
        for trained_on in names:
            model.initialise("shared", seed_for(seed, "transfer"))
            with within(f"transfer, {trained_on}"):
                local_update(
                    model,
                    METHODS[METHOD[view]],
                    {view: training[view][trained_on]},  # type: ignore[dict-item]
                    steps,
                    steps.learning_rate,
                    seed_for(seed, "transfer", trained_on),
                )
            for on, side in sides.items():
                after = _losses(model, side, batch_size)
                changes[view] |= {(on, trained_on, name): after[name] - before[on][name] for name in side}
    changes["difference"] = {key: changes["distilled"][key] - raw for key, raw in changes["raw"].items()}
    return [
        record
        for view, found in changes.items()
        for on, side in sides.items()
        for record in _records(view, on, names, found, _num_tokens(side))
    ]


def _num_tokens(side: Mapping[str, Sequence[Conversation]]) -> dict[str, Floats]:
    return {
        name: np.array([text.num_response_tokens for text in texts], float) for name, texts in side.items()
    }


def _records(
    view: str,
    on: str,
    names: Sequence[str],
    changes: Changes,
    num_tokens: Mapping[str, Floats],
) -> list[Event]:
    found = {
        (trained_on, tested_on): ratio(changes[on, trained_on, tested_on], num_tokens[tested_on])
        for trained_on, tested_on in product(names, num_tokens)
    }
    for tested_on, sizes in num_tokens.items():
        others = [changes[on, name, tested_on] for name in names if name != tested_on]
        found["others", tested_on] = ratio(np.mean(others, axis=0), sizes)
    values, errors, freedom = zip(*(found["others", tested_on] for tested_on in num_tokens), strict=True)
    found["others", "mean"] = fmean(values), float(np.linalg.norm(errors)) / len(errors), min(freedom)
    return [
        {"view": view, "on": on, "trained_on": trained_on, "tested_on": tested_on, **with_error(*estimate)}
        for (trained_on, tested_on), estimate in found.items()
    ]


def ratio(sums: Floats, sizes: Floats) -> tuple[float, float, int]:
    """Ratio of two sums over examples, its standard error, and the error's degrees of freedom, n - 1.

    r = sum d_i / sum n_i; se = sqrt(n / (n - 1) sum (d_i - r n_i)^2) / sum n_i, NaN for one example.

    Source: Cochran, Sampling Techniques, third edition (1977), section 2.11.
    """
    num, total = len(sums), sizes.sum()
    value = sums.sum() / total
    if num < 2:
        return float(value), math.nan, 0
    spread = ((sums - value * sizes) ** 2).sum() * num / (num - 1)
    return float(value), float(np.sqrt(spread) / total), num - 1


def example_losses(base: Base, conversations: Sequence[Conversation], batch_size: int) -> Floats:
    """Summed -log p of the response tokens of each conversation (num_conversations,).

    Call it inside `LoraModel.inference`.
    """
    return np.array([sum(losses) for losses in token_losses(base, conversations, batch_size)])


def _losses(
    model: LoraModel, side: Mapping[str, Sequence[Conversation]], batch_size: int
) -> dict[str, Floats]:
    with model.inference(("shared",)):
        return {name: example_losses(model.base, texts, batch_size) for name, texts in side.items()}
