"""What a finished cell of a grid has to show, and its answers against those of another arm."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsdr.metrics import Scores
from fedsdr.stats import Difference, clustered
from fedsdr.storage import Event

VERDICTS = {"score": "right", "unsupported_rate": "unsupported"}
"""Metrics that are means of verdicts on single answers, and the key of the verdict."""


@dataclass(frozen=True)
class Cell:
    """What a finished cell has to show."""

    arm: str
    seed: int
    base: Scores
    final: Scores
    events: Sequence[Event]
    answers: Mapping[str, Sequence[Event]]
    """Model ("base", "global" or "personalised") -> one record for each test prompt."""
    method: str = ""
    rest: str = ""
    """Hash of the settings but for method, learning rate and [run]."""


def over_examples(
    cells: Sequence[Cell], arm: str, baseline: str, model: str, verdict: str
) -> Difference | None:
    """Test over seeds and examples: answers of the arm's model against the baseline's to the same prompts."""
    mine, others = (_verdicts(cells, name, model, verdict) for name in (arm, baseline))
    seeds = sorted(mine.keys() & others.keys())
    if not seeds:
        return None
    common = [of_seed[seed].keys() for seed in seeds for of_seed in (mine, others)]
    prompts = [prompt for prompt in mine[seeds[0]] if all(prompt in found for found in common)]
    if not prompts:
        return None
    differences = np.array(
        [[float(mine[seed][prompt]) - float(others[seed][prompt]) for prompt in prompts] for seed in seeds]
    )
    return clustered(differences, [domain for domain, *_ in prompts])


def _verdicts(
    cells: Sequence[Cell], arm: str, model: str, verdict: str
) -> dict[int, dict[tuple[str, str, int], bool]]:
    """Seed -> prompt -> verdict; a prompt is told by its domain, its texts, and which of equal ones it is."""
    found: dict[int, dict[tuple[str, str, int], bool]] = {}
    for cell in cells:
        if cell.arm != arm:
            continue
        seen: Counter[tuple[str, str]] = Counter()
        for record in cell.answers.get(model, ()):
            texts = "\0".join(record[key] for key in ("instruction", "input", "output"))
            seen[record["domain"], texts] += 1
            if record[verdict] is not None:
                place = (record["domain"], texts, seen[record["domain"], texts])
                found.setdefault(cell.seed, {})[place] = record[verdict]
    return found
