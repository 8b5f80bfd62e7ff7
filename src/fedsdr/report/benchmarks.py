"""The table of standard benchmarks, of all models that were asked."""

from collections.abc import Sequence

from fedsdr.report.tables import Sheet, number
from fedsdr.storage import Event


def benchmark_sheet(records: Sequence[Event]) -> Sheet:
    """Scores by task, model and metric, with standard errors.

    Args:
        records: Those of `measure.benchmarks.run_benchmarks`, with "model": "base", "global" or
            "personalised". Rows are of whole tasks; the sheet's records hold the subjects too.

    Returns:
        Rows in the order of the tasks and their metrics, models one below the other.
    """
    whole = [record for record in records if not record.get("subject")]
    places = {key: place for place, key in enumerate(dict.fromkeys(map(_asked, whole)))}
    whole.sort(key=lambda record: places[_asked(record)])
    return Sheet(
        "Standard benchmarks: share of right answers ± standard error",
        "lllrrr",
        ("task", "model", "metric", "score", "chance", "n"),
        tuple(
            (
                record["task"],
                record["model"],
                record["metric"],
                number(record["value"], 2) + ("" if error is None else f" ± {error:.2f}"),
                number(record["chance"], 2),
                str(record["num"]),
            )
            for record in whole
            for error in (record["stderr"],)
        ),
        tuple(records),
        note="Without examples in the prompt. Likelihood: the likeliest of the choices as the whole answer."
        " Strict: what follows “answer is”, or the whole answer. Flexible: the choice or accepted phrase that"
        " stands in the answer, or its last number; a long answer may hold it by chance. Pass@1: greedy"
        " programs that pass their tests. Chance: what guessing among the choices gets. Errors cover the draw"
        " of questions; models answered the same ones, so overlapping errors do not show that two are alike.",
    )


def _asked(record: Event) -> tuple[str, str]:
    return record["task"], record["metric"]
