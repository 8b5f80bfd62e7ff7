"""The generated part of each method's page: its round, settings, cost and results.

They follow from the tables and the records. `docs_pages` appends them to docs/methods/<name>.md, with the
idea and the equation. `python -m tools.docs_methods` writes the table of allowed combinations into
docs/methods.md.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.catalogue import Row, all_rows
from fedsdr.compatibility import CHOICES, allowed_with, as_markdown
from fedsdr.methods import METHODS, PERSONAL
from fedsdr.rows import Method, Stage, View
from fedsdr.rules import USES

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
RECORDS = {
    "compare-demo": "Four methods, five seeds",
    "refute-demo": "Rectification",
    "disputed": "Disputed facts",
}
"""Grids whose tables are shown, and their titles."""
DATA: Mapping[View, str] = {
    "raw": "raw data",
    "distilled": "rewritten data",
    "mixed": "raw and rewritten data together",
    "likely": "raw data, weighed by token",
}
STEPS = 8
"""client.local_steps of the example."""


def generated(name: str) -> str:
    """Everything on a method's page that follows from the tables and the records."""
    method = METHODS[name]
    parts = [f"Source: {method.paper}.", "## A round", *_round(method)]
    parts += ["## Settings", *_settings(name, method)]
    parts += ["## Cost", *_cost(name, method)]
    parts += ["## Results", *_results(name)]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _round(method: Method) -> Iterator[str]:
    rows = [_stage("once, before round 1", stage, "as many as a stage") for stage in method.before_rounds]
    steps = method.divide(STEPS)
    rows += [
        _stage(f"stage {number + 1}", stage, f"{steps[number]} of {STEPS}")
        for number, stage in enumerate(method.stages)
    ]
    yield _table(("when", "learns", "on", "in the forward pass", "steps, `per_round`"), rows)
    if method.has_personal:
        kept = (
            "keeps its own adapter" if method.keeps_private else "starts a new private adapter in each round"
        )
        yield f"A client {kept}. Personalised model: {PERSONAL[method.personal]}."
    else:
        yield "There are no personalised models."


def _stage(when: str, stage: Stage, steps: str) -> tuple[str, ...]:
    weights = stage.mix or (1.0,) * len(stage.active)
    active = [
        f"{weight:g} × {name}" if weight != 1 else name
        for name, weight in zip(stage.active, weights, strict=True)
    ]
    drop = (
        f" (the one that does not learn is left out of {stage.drop:.0%} of the steps)" if stage.drop else ""
    )
    return when, " and ".join(stage.train), DATA[stage.on], ", ".join(["base", *active]) + drop, steps


def _settings(name: str, method: Method) -> Iterator[str]:
    own = [row for row in all_rows() if _is_own(row, name)]
    if own:
        yield _table(
            ("key", "default", "meaning"),
            [(f"`{row.key}`", f"`{row.default}`", row.text.replace("|", "\\|")) for row in own],
        )
    if method.needs_rewritings:
        yield "How responses are rewritten: [`[distill]`](../settings.md#distill)."
    if not own and not method.needs_rewritings:
        yield "None of its own. Those of every method: [every setting](../settings.md)."
    allowed = allowed_with("method", name)
    refused = []
    for key, names in allowed.items():
        barred = [one for one in CHOICES[key] if one not in names]
        few, words = (names, "any but ") if len(names) < len(barred) else (barred, "")
        if barred:
            refused.append(f"`{key}` = {words}{', '.join(f'`{one}`' for one in few)}")
    if refused:
        yield f"It does not go with {'; '.join(refused)} ([why](../methods.md#what-goes-with-what))."


def _is_own(row: Row, name: str) -> bool:
    return any(
        use.key == "method" and use.setting in (row.key, row.key.partition(".")[0]) and _passes(use.by, name)
        for use in USES
    )


def _passes(test, name: str) -> bool:  # type: ignore[no-untyped-def]
    return name in test if isinstance(test, tuple) else bool(test(METHODS[name]))


def _cost(name: str, method: Method) -> Iterator[str]:
    times = f"{method.times_rank} × " if method.times_rank > 1 else ""
    before = [
        "every training response is written once by the base model" if method.needs_rewritings else "",
        "one forward pass of the base over the training data" if "likely" in method.views else "",
        "one stage of the private adapter" if method.before_rounds else "",
    ]
    two = any(len(stage.active) > 1 for stage in method.stages)
    rows = [
        ("sent, each way", f"{times}the shared adapter's bytes" if method.shares else "nothing"),
        ("adapters in a training step", "two, which cost about what one does" if two else "one"),
        ("before round 1", " and ".join(filter(None, before)) or "nothing"),
        (
            "kept at the client",
            "an adapter for each client" if method.has_personal and method.keeps_private else "nothing",
        ),
    ]
    yield _table(("", "relative to `fedit`"), rows)
    measured = [
        (arm, f"{one['num_steps']:.0f}", f"{one['num_tokens']:,.0f}", f"{one['num_bytes_up'] / 1e6:.1f} MB",
         f"{one['peak_memory'] / 1e9:.1f} GB")
        for table in _tables("compare-demo", "Costs")
        for one in table["records"]
        if (arm := one["arm"]) in (name, f"{name}-per_stage")
    ]  # fmt: skip
    if measured:
        yield "Measured on the built-in data, five clients together ([record](../results/compare-demo.md)):"
        head = ("arm", "steps", "response tokens", "up, and down", "peak memory")
        yield _table(head, list(dict.fromkeys(measured)))


def _results(name: str) -> Iterator[str]:
    rows = []
    for record, title in RECORDS.items():
        losses, unsupported, scores = (
            [one for table in _tables(record, f"{metric}, mean over domains") for one in table["records"]]
            for metric in ("Loss, true responses", "Unsupported", "Exact score")
        )
        for group in zip(losses, unsupported, scores, strict=True):
            arm, model = group[0]["arm"], group[0]["model"]
            if arm in ("base", name, f"{name}-per_stage"):
                values = (f"{one['mean']:.3f} ({one['sd']:.3f})" for one in group)
                rows.append((f"[{title}](../results/{record}.md)", arm, model, *values))
    rows = [row for row in dict.fromkeys(rows) if any(r[0] == row[0] and r[1] != "base" for r in rows)]
    if rows:
        yield (
            "Means over domains and seeds, in brackets the standard deviation over seeds. Unsupported answers"
            " and exact scores are by the old checks ([records](../results/README.md#records))."
        )
        yield _table(("study", "arm", "model", "loss, true responses", "unsupported", "exact score"), rows)
    if any(RESULTS.glob(f"study/{name}-seed-*.json")):
        yield "Gain at equal cost, against scaled plain federated LoRA: [the study](../results/study.md)."
    elif not rows:
        yield "No finished record of this method is kept yet. [All results](../results/README.md)."


def _tables(record: str, begins: str) -> list[dict[str, Any]]:
    tables = json.loads((RESULTS / record / "comparison.json").read_text("utf-8"))
    return [one for one in tables if one["table"].startswith(begins)]


if __name__ == "__main__":
    page = DOCS / "methods.md"
    before, begin, rest = page.read_text("utf-8").partition("<!-- fedsdr.compatibility -->\n")
    _, end, after = rest.partition("\n<!-- end -->")
    page.write_text(before + begin + as_markdown() + end + after, "utf-8")
