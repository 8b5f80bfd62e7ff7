"""Cost and gain: the table of a run's models, and the drawing of a grid's arms and the control's curve."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from fedsdr.report.blocks import Block, Table
from fedsdr.report.plots import Scale, nice_ticks, tick_labels
from fedsdr.report.sheets import Sheet, number
from fedsdr.storage import Event

WIDTH, HEIGHT, LEFT, BOTTOM = 430, 330, 52, 44
COLOURS = ("#0b6bb5", "#c8530a", "#0c8a62", "#a23b7a", "#8f7a12", "#6b4fc0", "#b3261e", "#3a7d8c")
"""Readable on white and on black."""
STYLE = (
    ".frontier text{font:12px system-ui,sans-serif;fill:light-dark(#444,#ccc)}"
    ".frontier{color-scheme:light dark}.frontier .soft{stroke:#8888;fill:none;stroke-width:.6}"
)


def frontier_blocks(name: str, record: Event) -> list[Block]:
    """Cost and gain of a run's models at each scale and round."""
    records = record["records"]
    domains = [key.removeprefix("gain_") for key in records[0] if key.startswith("gain_")]
    sheet = Sheet(
        "Cost and gain of the run's models, W0 + lambda times what the run added",
        "lrrrr" + "r" * len(domains),
        ("model", "round", "lambda", "cost", "gain", *domains),
        tuple(
            (r["model"], str(r["round"]), f"{r['scale']:g}", number(r["cost"], 4), number(r["gain"], 3),
             *(number(r[f"gain_{domain}"], 3) for domain in domains))
            for r in records
        ),
        tuple(records),
        note="Cost: mean KL(base || model) per token of the base's own answers, in nats. Gain: loss on true"
        " responses, base minus model, mean over domains. Self-distillation is favoured by the first and"
        " punished by the second.",
    )  # fmt: skip
    return [Table(name, sheet)]


def at_which_cost(measurements: Mapping[str, Event], server_round: int) -> list[str]:
    """State each model's gain and cost after a round; nothing if they were not measured."""
    return [
        f"At lambda = 1 the {r['model']} model gains {number(r['gain'], 3)} nats of loss at a"
        f" distance of {number(r['cost'], 4)} nats per token from the base."
        for r in measurements.get("frontier", {}).get("records", ())
        if r["scale"] == 1 and r["round"] == server_round
    ]


def frontier_svg(points: Sequence[Event], controls: Mapping[str, str]) -> str:
    """Draw gain over cost: the control's curve of each round, and each other arm's points after the last.

    Args:
        points: Means over seeds, with arm, model, round, scale, cost, gain, low and high.
        controls: Model -> its control arm; there is a panel for each model with points.
    """
    arms = dict.fromkeys([*controls.values(), *(p["arm"] for p in points)])
    colours = {arm: COLOURS[place % len(COLOURS)] for place, arm in enumerate(arms)}
    panels = [
        (model, control, [p for p in points if p["model"] == model])
        for model, control in controls.items()
        if any((p["model"], p["arm"]) == (model, control) for p in points)
    ]
    drawn = [_panel(*panel, WIDTH * place, colours) for place, panel in enumerate(panels)]
    rows = max((len({p["arm"] for p in some}) for _, _, some in panels), default=0) + 1
    width, height = WIDTH * len(panels), HEIGHT + 16 * rows
    return (
        f'<svg class="frontier" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" role="img"'
        ' aria-label="Gain over cost of each arm, and of the control at several scales">'
        f"<style>{STYLE}</style>{''.join(drawn)}</svg>\n"
    )


def _panel(model: str, control: str, points: Sequence[Event], left: float, colours: Mapping[str, str]) -> str:
    """One panel; the horizontal axis is linear in the root of the cost."""
    ends = [p[key] for p in points for key in ("gain", "low", "high") if p[key] is not None]
    y_ticks = nice_ticks(min([0.0, *ends]), max([0.0, *ends]))
    most = max(p["cost"] for p in points) * 1.05
    x = Scale(0, math.sqrt(most) or 1, LEFT, WIDTH - 14)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, 24)
    parts = [f'<text x="{LEFT}" y="14">{model} models: gain, nats per token</text>']
    for tick, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        parts.append(f'<path class="soft" d="M{LEFT} {y.at(tick)}H{WIDTH - 14}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y.at(tick) + 4}" text-anchor="end">{label}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        root = share * math.sqrt(most)
        parts.append(
            f'<text x="{x.at(root)}" y="{HEIGHT - 26}" text-anchor="middle">{root * root:.2g}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - 14}" y="{HEIGHT - 10}" text-anchor="end">cost: KL to the base per token</text>'
    )
    last = max(p["round"] for p in points)
    arms = [control, *dict.fromkeys(p["arm"] for p in points if p["arm"] != control)]
    for place, arm in enumerate(arms):
        colour = colours[arm]
        own = [p for p in points if p["arm"] == arm]
        rounds = dict.fromkeys(p["round"] for p in own if arm == control or p["round"] == last)
        for number_ in rounds:
            some = [p for p in own if p["round"] == number_]
            at = [(x.at(math.sqrt(max(p["cost"], 0))), y.at(p["gain"])) for p in some]
            dash = (
                ' stroke-dasharray="2 3"' if arm != control else ' stroke-dasharray="7 3"' * (number_ < last)
            )
            path = "L".join(f"{a} {b}" for a, b in [(x.at(0), y.at(0)), *at])
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}"{dash}/>')
            parts += _marks(some, at, colour, arm == control, y)
        earlier = "; dashed: after fewer rounds" * (len(rounds) > 1)
        title = f"{arm} (control{earlier})" if arm == control else f"{arm} (filled: lambda = 1)"
        top = HEIGHT + 16 * (place + 0.5)
        parts.append(f'<circle cx="{LEFT + 6}" cy="{top - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 18}" y="{top}">{escape(title)}</text>')
    return f'<g transform="translate({left} 0)">{"".join(parts)}</g>'


def _marks(
    points: Sequence[Event], at: Sequence[tuple[float, float]], colour: str, is_control: bool, y: Scale
) -> Iterable[str]:
    for p, (a, b) in zip(points, at, strict=True):
        place = f"{p['arm']}, round {p['round']}, lambda {p['scale']:g}"
        hint = f"{place}: cost {p['cost']:.3f}, gain {p['gain']:.3f}"
        size = 2.5 if is_control else 4.5
        fill = colour if is_control or p["scale"] == 1 else "none"
        if not is_control and p["low"] is not None:
            yield f'<path stroke="{colour}" d="M{a} {y.at(p["low"])}V{y.at(p["high"])}"/>'
        yield (
            f'<circle cx="{a}" cy="{b}" r="{size}" fill="{fill}" stroke="{colour}">'
            f"<title>{escape(hint)}</title></circle>"
        )
