"""Whether the clients' changes of the shared adapter agree, and how much of a gain survives aggregation.

A referee of FedSDR asked: do the clients' corrections contradict each other, so that averaging dilutes them?
The clients' updates must have been saved (`server.keep_updates`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from fedsdr.analysis.transfer import example_losses, ratio
from fedsdr.data.conversation import Conversation
from fedsdr.messages.wire import Arrays, pairs
from fedsdr.model.adapters import PREFIX, LoraModel
from fedsdr.stats import with_error
from fedsdr.storage import Event


def update_consistency(before: Arrays, updates: Mapping[str, Arrays]) -> list[Event]:
    """Cosine and sign agreement of the clients' changes of one round, for each layer and over all.

    The change of client k in a layer is that of the product, D_k = B_k A_k - B A (d_out, d_in), since equal
    products can have different factors.

    - cosine: <D_a, D_b> / (|D_a| |D_b|).
      Batch noise reduces it; there is no correction for that.
    - sign_agreement: share of entries with the same sign, among those that both changed; 0.5 is chance.

    Args:
        before: The shared adapter as broadcast, by PEFT key.
        updates: Client -> its adapter after training.

    Returns:
        Records with layer ("all" over all layers), a, b ("mean" and "" for the mean over pairs), cosine and
        sign_agreement; none for fewer than two clients. A value is None if a client changed nothing, and
        is left out of the mean.
    """
    names = list(updates)
    if len(names) < 2:
        return []
    layers = {layer: _likeness(changes) for layer, changes in _changes(before, list(updates.values()))}
    layers["all"] = tuple(np.sum(sums, axis=0) for sums in zip(*layers.values(), strict=True))
    return [record for layer, sums in layers.items() for record in _pair_records(layer, names, *sums)]


def _likeness(changes: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Inner products of the changes, and for each pair the entries with equal sign and those both changed."""
    flat = changes.flatten(1)
    signs = torch.sign(flat)
    # +1 where the signs are equal, -1 where they are opposite, 0 if a client changed nothing.
    likeness = [a * b for a, b in combinations(signs, 2)]
    same = np.array([int((one > 0).sum()) for one in likeness], float)
    size = np.array([int((one != 0).sum()) for one in likeness], float)
    return (flat @ flat.T).double().numpy(), same, size


def _changes(before: Arrays, updates: Sequence[Arrays]) -> Iterator[tuple[str, torch.Tensor]]:
    """Path of each layer, and the changes of all clients in it (clients, d_out, d_in)."""
    whole = [before | new for new in updates]  # some aggregations send only one factor
    for key_a, key_b in pairs(before):
        start = torch.from_numpy(before[key_b]) @ torch.from_numpy(before[key_a])
        changes = [torch.from_numpy(new[key_b]) @ torch.from_numpy(new[key_a]) - start for new in whole]
        yield key_a.removeprefix(PREFIX).removesuffix(".lora_A.weight"), torch.stack(changes)


def _pair_records(
    layer: str, names: Sequence[str], gram: np.ndarray, same: np.ndarray, size: np.ndarray
) -> list[Event]:
    """Records of one layer: for each pair, and the mean over pairs."""
    norms, (a, b) = np.sqrt(np.diag(gram)), np.triu_indices(len(names), 1)
    with np.errstate(invalid="ignore"):  # NaN if a client changed nothing
        found = {"cosine": gram[a, b] / (norms[a] * norms[b]), "sign_agreement": same / size}
    records: list[Event] = [
        {"layer": layer, "a": a, "b": b} for a, b in [*combinations(names, 2), ("mean", "")]
    ]
    for name, values in found.items():
        known = values[~np.isnan(values)]
        mean = known.mean() if known.size else math.nan
        for record, value in zip(records, (*values, mean), strict=True):
            record[name] = None if math.isnan(value) else float(value)
    return records


class Round(NamedTuple):
    """One round's shared adapters."""

    number: int
    before: Arrays
    """As broadcast to the clients."""
    updates: Mapping[str, Arrays]
    """Client -> its adapter after training."""
    aggregated: Arrays
    """The shared adapter after the round."""


def gain_survival(
    model: LoraModel,
    rounds: Iterable[Round],
    tests: Mapping[str, Sequence[Conversation]],
    batch_size: int,
) -> list[Event]:
    """How much of a client's gain in one round, on its own test examples, survives aggregation.

    Losses, in nats per response token, of base + shared adapter on the client's own held-out true responses:
    before the round, with the client's own update, and with the aggregated one.

        kept = (before - aggregated) / (before - own)

    1: all of the gain; 0: none; below 0: the client is worse off than before the round; above 1: the others
    helped it further. It is undefined if the client gained nothing itself: None unless the interval of its
    own gain is above 0. Intervals are those of `ratio`, over test examples.

    Args:
        model: Its shared adapter is overwritten.
        rounds: In order; for consecutive rounds, `before` equals the previous `aggregated`.
        tests: Client -> its test conversations; clients without any are left out.
        batch_size: Conversations in one forward pass.

    Returns:
        Records with round, client, before, own, aggregated, own_low and own_high (ends of the 95 % interval
        of the own gain), and kept with low and high, the ends of its interval.
    """
    num_tokens = {
        name: np.array([text.num_response_tokens for text in texts], float) for name, texts in tests.items()
    }

    def losses(values: Arrays, names: Iterable[str]) -> dict[str, np.ndarray]:
        model.load("shared", values)
        with model.inference(("shared",)):
            return {name: example_losses(model.base, tests[name], batch_size) for name in names}

    records: list[Event] = []
    done, last = -1, dict[str, np.ndarray]()
    for number, before, updates, aggregated in rounds:
        first = last if done == number - 1 else losses(before, tests)
        done, last = number, losses(aggregated, tests)
        for name, new in updates.items():
            if name not in tests:
                continue
            own = losses(before | new, [name])[name]
            total = num_tokens[name].sum()
            gain = with_error(*ratio(first[name] - own, num_tokens[name]))
            kept: Event = dict.fromkeys(("value", "low", "high"))
            if gain["low"] is not None and gain["low"] > 0:
                kept = with_error(*ratio(first[name] - last[name], first[name] - own))
            records.append(
                {
                    "round": number,
                    "client": name,
                    "before": float(first[name].sum() / total),
                    "own": float(own.sum() / total),
                    "aggregated": float(last[name].sum() / total),
                    "own_low": gain["low"],
                    "own_high": gain["high"],
                    "kept": kept["value"],
                    "low": kept["low"],
                    "high": kept["high"],
                }
            )
    return records
