"""Which clients take part in a round: drawn from the run's seed and the round only."""

import random
from collections import Counter
from collections.abc import Iterable

from fedsdr.seeds import seed_for


def draw_clients(clients: Iterable[str], num: int, run_seed: int, server_round: int) -> list[str]:
    """Clients of a round, sorted.

    Args:
        clients: Ids of all clients, in any order.
        num: Number of clients to draw, without replacement; 0: all.
        run_seed: Seed of the run.
        server_round: The round, counted from 1.
    """
    known = sorted(clients)
    if not num:
        return known
    rng = random.Random(seed_for(run_seed, "server", "clients", "round", server_round))
    return sorted(rng.sample(known, num))


def num_trainings(clients: Iterable[str], num: int, run_seed: int, server_round: int) -> int:
    """Number of rounds up to this one of the client drawn most often; the draws are public."""
    known = sorted(clients)
    rounds = range(1, server_round + 1)
    drawn = Counter(client for one in rounds for client in draw_clients(known, num, run_seed, one))
    return max(drawn.values(), default=0)
