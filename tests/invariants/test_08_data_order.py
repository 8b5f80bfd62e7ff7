"""Invariant 8: the order of the data follows from run seed, client, round and stage; so does the draw of clients."""

from collections.abc import Callable, Iterator
from itertools import islice

import pytest

import fedsdr
from fedsdr.config import Settings
from fedsdr.data.batching import data_order
from fedsdr.server.sampling import draw_clients


@pytest.mark.parametrize(
    ("method", "per_client"),
    [("dual-raw", 2 * 2), ("fdlora", 1 + 2)],  # two stages in each of two rounds; one before, one in each
)
def test_every_seed_client_round_and_stage_has_its_own_order(
    run_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, method: str, per_client: int
) -> None:
    epochs: list[tuple[int, ...]] = []

    def listening(num_examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
        batches = islice(data_order(num_examples, batch_size, seed), num_examples // batch_size)
        epochs.append(tuple(index for batch in batches for index in batch))
        return data_order(num_examples, batch_size, seed)

    def orders(seed: int) -> list[tuple[int, ...]]:
        epochs.clear()
        fedsdr.run(
            run_settings(
                **{
                    "method": method,
                    "run.seed": seed,
                    "data.domains": ["general", "math"],
                    "data.num_train": 100,
                    "data.num_test": 1,
                    "client.local_steps": 1,
                    "eval.rewritings": False,
                }
            )
        )
        return list(epochs)

    monkeypatch.setattr("fedsdr.client.update.data_order", listening)
    first = orders(seed=0)
    assert all(sorted(epoch) == list(range(100)) for epoch in first)
    assert len(first) == 2 * per_client
    assert len({*first, *orders(seed=1)}) == 4 * per_client
    assert orders(seed=0) == first


def test_draw_of_clients_follows_from_the_seed_alone() -> None:
    clients = [f"client-{number:02}" for number in range(10)]

    def drawn(seed: int, known: list[str]) -> list[list[str]]:
        return [draw_clients(known, 3, seed, number) for number in range(1, 11)]

    first = drawn(0, clients)
    assert all(len(set(some)) == 3 for some in first)
    assert len(set(map(tuple, first))) > 1
    assert drawn(1, clients) != first
    assert drawn(0, clients) == first
    # On another engine they connect in another order; the same clients are drawn.
    assert drawn(0, clients[::-1]) == first
