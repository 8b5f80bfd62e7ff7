"""Counts of the rewrite paradox: rewriting makes texts more uniform, but less true, longer and padded.

For pairs (y, y~) given (c, x). Omission: y~ loses the label, final answer, a fact or a test that y
has. Unsupported: y~ holds another label or a number that (c, x, y) does not. Both are exact and
cover only examples that carry ground truth; the share covered is reported with them.

Paper: FedSDR, section 3 (about 47 % of rewritings do not entail the true response); the
definitions are our own (docs/paper_map.md).
"""

from collections import Counter
from collections.abc import Sequence

from fedsdr.data.checks import filler_rate, is_checkable, lost, num_words, redundancy, unsupported
from fedsdr.data.classes import classes_of
from fedsdr.data.examples import Example
from fedsdr.data.truth.labels import fold_label
from fedsdr.distill.rewriting import Rewriting
from fedsdr.metrics import LABEL_CHANGES

RATES = ("omission_rate", "omission_rate_true", "unsupported_rate", "redundancy", "redundancy_true")
"""Metrics that are shares, from 0 to 1."""
COUNTS = (
    *RATES,
    "num_examples",
    "num_checkable",
    "length_ratio",
    "words",
    "words_true",
    "filler_rate",
    "filler_rate_true",
)
"""What `paradox_counts` returns."""


def paradox_counts(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, float]:
    """Count the paradox over pairs of true responses and rewritings.

    Returns:
        Rates in [0, 1] over all pairs, except `omission_rate`, which covers the checkable ones; words per
        text, fillers per 100 words, and shares of repeated 3-grams, for the true responses (`..._true`) and
        for the rewritings. A rate over nothing is 0. `omission_rate_true` is the false-positive rate of the
        check: true responses that do not keep their own ground truth. (`unsupported` has no such rate: a
        response always supports itself.)
    """
    num = max(1, len(examples))
    checkable = [(e, t) for e, t in zip(examples, texts, strict=True) if is_checkable(e)]
    true_texts = [example.response for example in examples]
    words, words_true = (sum(map(num_words, side)) for side in (texts, true_texts))
    return {
        "num_examples": len(examples),
        "num_checkable": len(checkable),
        "omission_rate": sum(bool(lost(e, t)) for e, t in checkable) / max(1, len(checkable)),
        "omission_rate_true": sum(bool(lost(e, e.response)) for e, _ in checkable) / max(1, len(checkable)),
        "unsupported_rate": sum(map(unsupported, examples, texts)) / num,
        "length_ratio": words / max(1, words_true),
        "words": words / num,
        "words_true": words_true / num,
        "filler_rate": sum(map(filler_rate, texts)) / num,
        "filler_rate_true": sum(map(filler_rate, true_texts)) / num,
        "redundancy": sum(map(redundancy, texts)) / num,
        "redundancy_true": sum(map(redundancy, true_texts)) / num,
    }


def distill_metrics(examples: Sequence[Example], rewritings: Sequence[Rewriting]) -> dict[str, float]:
    """Paradox counts before and after fall-back, and counts of the prompts and of the reasons to fall back.

    "Before" covers the examples that were shown to the teacher. For each domain whose labels are classes
    there are also counts by class index: of the examples, and of those whose rewriting is used.
    """
    metrics: dict[str, float] = {}
    shown = [(e, new.first) for e, new in zip(examples, rewritings, strict=True) if new.first is not None]
    taught = [(e, new.distilled) for e, new in zip(examples, rewritings, strict=True)]
    for when, pairs in (("before", shown), ("after", taught)):
        counts = paradox_counts([example for example, _ in pairs], [text for _, text in pairs])
        metrics |= {f"{name}@{when}": value for name, value in counts.items()}
    for kind, names in (
        ("fallback", Counter(new.fallback for new in rewritings if new.fallback)),
        ("prompt", Counter(new.prompt for new in rewritings if new.prompt)),
    ):
        metrics |= {f"num_{kind}/{name.replace(' ', '_')}": num for name, num in names.items()}
    for domain in sorted({example.domain for example in examples}):
        of_domain = [pair for pair in zip(examples, rewritings, strict=True) if pair[0].domain == domain]
        place = {label: n for n, label in enumerate(classes_of(example for example, _ in of_domain))}
        for example, new in of_domain if place else ():
            if example.label:
                number = place[fold_label(example.label)]
                for name, num in (("examples", 1), ("kept", int(not new.fallback))):
                    key = f"{LABEL_CHANGES}/{domain}/num_{name}-{number}"
                    metrics[key] = metrics.get(key, 0) + num
    return metrics
