"""Results of a finished run of a grid, and differences of two arms over seeds and test examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsdr.metrics import Scores, all_fell_back
from fedsdr.report.sheets import NONE
from fedsdr.stats import Difference, clustered, holm, paired
from fedsdr.storage import Event

VERDICTS = {"score": "right", "unsupported_rate": "unsupported"}
"""Metrics that are means of verdicts on single answers -> key of the verdict."""
SAME_LOSS = 1e-3
"""Largest difference of two losses of the base on the same texts, by the rounding of other batches."""
BASE = ("base", NONE)
Arm = tuple[str, str]
"""Name of an arm and of its model; the base model is a separate arm."""


@dataclass(frozen=True)
class GridRun:
    """One finished run: one arm with one seed."""

    arm: str
    seed: int
    base: Scores
    final: Scores
    events: Sequence[Event]
    answers: Mapping[str, Sequence[Event]]
    """Model ("base", "global" or "personalised") -> one record for each test prompt."""
    method: str = ""
    rest: str = ""
    """Hash of all settings except method, learning rate and [run]."""
    rounds: Mapping[int, Scores] = field(default_factory=dict)
    """Scores of every evaluated round; 0 is the base model."""

    def scores(self, arm: Arm) -> Mapping[str, dict[str, float]]:
        """Scores of a model by domain; {} if the run belongs to another arm or has no such model.

        Without the loss on rewritings of a domain where all of them fell back, and its mean.
        """
        if arm == BASE:
            found = self.base.get("global", {})
        else:
            found = self.final.get(arm[1], {}) if self.arm == arm[0] else {}
        if not (without := all_fell_back(self.base, self.final)):
            return found
        return {
            domain: {
                name: value
                for name, value in row.items()
                if name != "loss_distilled" or domain not in (*without, "mean")
            }
            for domain, row in found.items()
        }


@dataclass(frozen=True)
class Gain:
    """An arm's model against the baseline's, on their common seeds."""

    by_seed: Sequence[float]
    over_seeds: Difference | None
    over_examples: Difference | None
    """Test over seeds and examples, for a metric in `VERDICTS`."""


def means(runs: Sequence[GridRun], metric: str) -> dict[Arm, dict[int, float]]:
    """Arm -> seed -> mean over domains. The base model is an arm if all runs have the same."""
    is_one = len({run.scores(BASE).get("mean", {}).get(metric) for run in runs}) == 1
    arms = [BASE] * is_one + [(run.arm, model) for run in runs for model in ("global", "personalised")]
    values = {
        arm: {run.seed: mean[metric] for run in runs if metric in (mean := run.scores(arm).get("mean", {}))}
        for arm in dict.fromkeys(arms)
    }
    return {arm: of_seed for arm, of_seed in values.items() if of_seed}


def compare_arms(runs: Sequence[GridRun], arm: Arm, baseline: Arm, metric: str) -> Gain | None:
    """Compare an arm with another, or with the base model, on the same seeds and prompts.

    Returns:
        None if they have no common seed in which the metric is of the same texts.
    """
    runs = [run for run in runs if run.arm in (arm[0], baseline[0])]  # each also has a base model
    by_arm = means(runs, metric)
    mine, others = by_arm.get(arm, {}), by_arm.get(baseline, {})
    seeds = [seed for seed in sorted(mine.keys() & others.keys()) if _is_of_same_texts(runs, seed, metric)]
    if arm == baseline or not seeds:
        return None
    values = [[of_seed[seed] for seed in seeds] for of_seed in (mine, others)]
    gains = [a - b for a, b in zip(*values, strict=True)]
    of_answers = over_examples(runs, arm, baseline, seeds, VERDICTS[metric]) if metric in VERDICTS else None
    return Gain(gains, paired(*values), of_answers)


def _is_of_same_texts(runs: Sequence[GridRun], seed: int, metric: str) -> bool:
    """Whether the runs of a seed score the same texts: the test rewritings of two arms may differ."""
    if metric != "loss_distilled":
        return True
    bases = [run.scores(BASE).get("mean", {}).get(metric) for run in runs if run.seed == seed]
    known = [loss for loss in bases if loss is not None]
    return not known or max(known) - min(known) < SAME_LOSS


def over_examples(
    runs: Sequence[GridRun], arm: Arm, baseline: Arm, seeds: Sequence[int], verdict: str
) -> Difference | None:
    """Test over seeds and examples: answers of the arm's model against the baseline's to the same prompts.

    Returns:
        None unless both have answers of all these seeds, and to a common prompt.
    """
    mine, others = (_verdicts(runs, one, verdict) for one in (arm, baseline))
    answered = [of_seed.get(seed, {}) for seed in seeds for of_seed in (mine, others)]
    prompts = [prompt for prompt in answered[0] if all(prompt in one for one in answered)]
    if not prompts:
        return None
    differences = np.array(
        [[float(mine[seed][prompt]) - float(others[seed][prompt]) for prompt in prompts] for seed in seeds]
    )
    return clustered(differences, [domain for domain, *_ in prompts])


def ends(test: Difference | None, suffix: str = "") -> Event:
    """Ends of a test's interval, for a record."""
    return {f"low{suffix}": test and test.low, f"high{suffix}": test and test.high}


def correct(records: Sequence[Event], key: str = "p_holm", difference: str = "difference") -> None:
    """Correct the p values under a key by Holm's method for the number of differences."""
    compared = [record for record in records if record[difference] is not None]
    for record, p in zip(compared, holm([record[key] for record in compared]), strict=True):
        record[key] = p


def _verdicts(runs: Sequence[GridRun], arm: Arm, verdict: str) -> dict[int, dict[tuple[str, str, int], bool]]:
    """Seed -> prompt -> verdict. A prompt is its domain, its texts, and its number among equal prompts."""
    found: dict[int, dict[tuple[str, str, int], bool]] = {}
    for run in runs:
        seen: Counter[tuple[str, str]] = Counter()
        model = "base" if arm == BASE else arm[1]
        for record in run.answers.get(model, ()) if arm == BASE or run.arm == arm[0] else ():
            texts = "\0".join(record[key] for key in ("instruction", "input", "output"))
            seen[record["domain"], texts] += 1
            if record[verdict] is not None:
                place = (record["domain"], texts, seen[record["domain"], texts])
                found.setdefault(run.seed, {})[place] = record[verdict]
    return found
