"""Figures of the results pages, from the committed records: `python -m tools.figures` draws them."""

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from fedsdr.report.plots import Scale, nice_ticks, tick_labels

RESULTS = Path(__file__).parents[1] / "docs" / "results"
WIDTH, LEFT, TOP, ROW = 640, 210, 44, 24
COLOURS = ("#0b6bb5", "#c8530a", "#0c8a62")
"""Readable on white and on black."""
STYLE = (
    "svg{color-scheme:light dark}text{font:12px system-ui,sans-serif;fill:light-dark(#444,#ccc)}"
    ".grid{stroke:#8888;stroke-width:.6}"
)
Point = tuple[str, str, float, float]
"""Row, series, mean, and standard deviation over seeds (0: one seed, or the same in all)."""


def dots(title: str, points: Iterable[Point]) -> str:
    """Draw a row of dots for each label, with bars of one standard deviation to each side."""
    points = list(points)
    rows = list(dict.fromkeys(row for row, *_ in points))
    series = list(dict.fromkeys(name for _, name, *_ in points))
    ends = [mean + sign * sd for *_, mean, sd in points for sign in (-1, 1)]
    ticks = nice_ticks(min(0.0, *ends), max(ends))
    x = Scale(ticks[0], ticks[-1], LEFT, WIDTH - 20)
    bottom = TOP + ROW * len(rows)
    parts = [f'<text x="8" y="18">{escape(title)}</text>']
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(f'<path class="grid" d="M{x.at(tick)} {TOP - 8}V{bottom}"/>')
        parts.append(f'<text x="{x.at(tick)}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for place, row in enumerate(rows):
        parts.append(
            f'<text x="{LEFT - 12}" y="{TOP + ROW * place + 12}" text-anchor="end">{escape(row)}</text>'
        )
    for row, name, mean, sd in points:
        y = TOP + ROW * rows.index(row) + 8 + 4 * (series.index(name) - (len(series) - 1) / 2)
        colour = COLOURS[series.index(name)]
        if sd:
            parts.append(f'<path stroke="{colour}" d="M{x.at(mean - sd)} {y}H{x.at(mean + sd)}"/>')
        hint = f"{row}, {name}: {mean:.3f}" + f" (sd {sd:.3f})" * bool(sd)
        parts.append(
            f'<circle cx="{x.at(mean)}" cy="{y}" r="4" fill="{colour}"><title>{escape(hint)}</title></circle>'
        )
    for place, name in enumerate(series):
        left = LEFT + 140 * place
        parts.append(f'<circle cx="{left}" cy="{bottom + 32}" r="4" fill="{COLOURS[place]}"/>')
        parts.append(f'<text x="{left + 10}" y="{bottom + 36}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 46}"'
        f' width="{WIDTH}" role="img"'
        f' aria-label="{escape(title)}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _table(record: str, title: str) -> list[dict[str, Any]]:
    tables = json.loads((RESULTS / record / "comparison.json").read_text("utf-8"))
    found: list[dict[str, Any]] = next(one["records"] for one in tables if one["table"] == title)
    return found


def _row(arm: str, model: str) -> str:
    return arm if model == "-" else f"{arm}, {model}"


def _compare_demo() -> Iterable[Point]:
    for series, budget in (
        ("equal per round", "equal steps per round, over all stages"),
        ("equal per stage", "equal steps of each stage"),
    ):
        for one in _table("compare-demo", f"Loss, true responses, mean over domains; {budget}"):
            yield _row(one["arm"].removesuffix("-per_stage"), one["model"]), series, one["mean"], one["sd"]


def _refute_demo() -> Iterable[Point]:
    for one in _table("refute-demo", "Unsupported, mean over domains"):
        yield _row(one["arm"], one["model"]), "five seeds", one["mean"], one["sd"]


def _disputed() -> Iterable[Point]:
    for one in _table("disputed", "By domain: mean over seeds (standard deviation)"):
        if one["domain"] != "mean":
            yield _row(one["arm"], one["model"]), one["domain"], one["score"], one["score_sd"]


def _five_domains() -> Iterable[Point]:
    runs = [("base", "fedit", "round-0000.json")]
    arms = ("fedit", "fedsd-off", "fedsd-answer", "fedsdr-off", "fedsdr-answer", "dual-raw")
    for label, arm, file in [*runs, *(("", arm, "round-0004.json") for arm in arms)]:
        scores = json.loads((RESULTS / "five-domains" / arm / "evaluation" / file).read_text("utf-8"))
        for model, domains in scores.items():
            losses = [one["loss"] for name, one in domains.items() if name != "mean"]
            yield label or _row(arm, model), "one seed", sum(losses) / len(losses), 0.0


def figures() -> dict[Path, str]:
    """Every figure, by its file."""
    loss = "Held-out loss on true responses, nats per token, mean over domains"
    made = {
        "compare-demo": dots(loss, _compare_demo()),
        "refute-demo": dots("Share of unsupported answers, mean over domains", _refute_demo()),
        "disputed": dots("Share of right answers", _disputed()),
        "five-domains": dots(loss, _five_domains()),
    }
    return {RESULTS / name / "figure.svg": svg for name, svg in made.items()}


if __name__ == "__main__":
    for path, svg in figures().items():
        path.write_text(svg, "utf-8")
