"""Whether clients' gradients of the shared adapter agree: their cosines at the same weights."""

import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsdr.analysis.alignment import VIEWS, pair_records
from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import response_loss
from fedsdr.progress import track, within
from fedsdr.seeds import seed_for
from fedsdr.stats import half_samples
from fedsdr.storage import Event

NUM_GROUPS = 8
"""Groups of a client's examples, whose gradients are kept separate for the interval of a cosine."""
MEASURES = ("gradient", "gradient_corrected")


def gradient_alignment(
    model: LoraModel,
    views: Mapping[str, Mapping[str, Sequence[Conversation]]],
    batch_size: int,
    seed: int,
) -> list[Event]:
    """Cosine of the clients' gradients with respect to the shared adapter, at its current values.

    g_k is the gradient of the sum of -log p over the response tokens of client k, for both factors of all
    layers, with only the shared adapter in the forward pass.

    - gradient: <g_a, g_b> / (|g_a| |g_b|).
    - gradient_corrected: noise of the examples increases norms and so decreases cosines. Here the squared
    norm is that of the expected gradient, from products of different groups of examples: n / (n - 1) sum over
    i != j of <g_i, g_j>, for n groups.

    Examples are divided into 8 groups at random, the same in both views. Intervals come from random halves
    of the groups (`half_samples`).

    Args:
        model: Holds the shared adapter's values.
        views: "raw" and "distilled" -> client -> its conversations, the same examples in the same order.
        batch_size: Conversations in one forward pass.
        seed: Seed of the groups.

    Returns:
        Records as in `alignment.text_alignment`.

    Raises:
        UserError: Fewer than two clients, or one has fewer examples than groups.
    """
    names = list(views["raw"])
    groups = {
        name: _groups(len(views["raw"][name]), seed_for(seed, "gradients", name), name) for name in names
    }
    if len(names) < 2:
        raise UserError("gradients are compared between clients: there is one, but at least two are required")
    grams = np.stack(
        [_gram(model, views[view], groups, batch_size, view) for view in VIEWS]
    )  # (views, clients * groups, clients * groups)
    rng = np.random.default_rng(seed_for(seed, "gradients", "halves"))
    everything = [np.arange(NUM_GROUPS)] * len(names)
    values = _cosines(grams, everything)
    draws = np.stack([_cosines(grams, halves) for halves in half_samples([NUM_GROUPS] * len(names), rng)])
    return [
        {"measure": measure, **record}
        for number, measure in enumerate(MEASURES)
        for record in pair_records(names, values[number], draws[:, number], NUM_GROUPS - 1)
    ]


def _groups(num_examples: int, seed: int, name: str) -> list[list[int]]:
    if num_examples < NUM_GROUPS:
        raise UserError(f"{name} has {num_examples} examples; {NUM_GROUPS} are required to compare gradients")
    order = list(range(num_examples))
    random.Random(seed).shuffle(order)
    return [order[start::NUM_GROUPS] for start in range(NUM_GROUPS)]


def _gram(
    model: LoraModel,
    conversations: Mapping[str, Sequence[Conversation]],
    groups: Mapping[str, Sequence[Sequence[int]]],
    batch_size: int,
    view: str,
) -> NDArray[np.float64]:
    """Inner products of the gradients of all groups of all clients."""
    batches = [[conversations[name][place] for place in group] for name in groups for group in groups[name]]
    model.set(active=("shared",), train=("shared",))
    model.training(False)
    with within(f"gradients on {view} responses"):
        vectors = torch.stack(list(_gradients(model, batches, batch_size)))
    model.set(active=(), train=())
    gram: NDArray[np.float64] = (vectors @ vectors.T).double().numpy()
    return gram


def _gradients(
    model: LoraModel, batches: Sequence[Sequence[Conversation]], batch_size: int
) -> Iterator[Tensor]:
    """Gradient of each batch's summed loss, as one vector on the host."""
    parameters = model.parameters(("shared",))
    for batch in track(batches, "groups", [1] * len(batches)):
        for start in range(0, len(batch), batch_size):
            loss, _ = response_loss(model.base, batch[start : start + batch_size])
            loss.backward()
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        yield torch.cat([gradient.flatten().cpu() for gradient in found])
        for parameter in parameters:
            parameter.grad = None


def _cosines(grams: NDArray[np.float64], chosen: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
    """Cosines (measures, views, pairs) of the sums of the chosen groups of each client."""
    places = [number * NUM_GROUPS + part for number, part in enumerate(chosen)]
    # (clients, clients, views)
    products = np.array([[grams[:, a[:, None], b].sum(axis=(1, 2)) for b in places] for a in places])
    own = np.array([grams[:, place, place].sum(axis=1) for place in places])
    squares, size = np.einsum("aav->av", products), len(chosen[0])
    a, b = np.triu_indices(len(places), 1)
    with np.errstate(invalid="ignore"):  # NaN if noise exceeds the norm
        norms = [np.sqrt(squares), np.sqrt(size / (size - 1) * (squares - own))]
    return np.array([(products[a, b] / (norm[a] * norm[b])).T for norm in norms])
