"""The seeds of every random choice of a run; there is no global random state."""

import hashlib


def seed_for(run_seed: int, *path: str | int) -> int:
    """Derive the seed of one random choice from the run's seed and the choice's name.

    Example: ``seed_for(0, "client", "finance", "round", 7, "stage", 1)``. Distinct paths give
    independent seeds; the same path always gives the same one.

    Args:
        run_seed: The user's seed.
        path: Words and numbers that name the choice.

    Returns:
        An integer in [0, 2**63), accepted by ``random``, numpy and torch generators alike.
    """
    # A slash inside a part is doubled, so that "a/str:b" is not the path "a", "b".
    parts = (f"{type(part).__name__}:{part}".replace("/", "//") for part in (run_seed, *path))
    name = "/".join(parts)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 1
