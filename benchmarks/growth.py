"""Measure how cost grows with examples, clients, rounds, LoRA rank and model size, and draw it.

    make bench-growth    (or: python benchmarks/growth.py docs/results/growth; 10 minutes on two idle cores)
    python benchmarks/growth.py docs/results/growth --axes rank model --threads 1
    python benchmarks/growth.py docs/results/growth --axes      (measures nothing, prints the table)

Each point is a process of its own (`measures.py`), measured once. After each, NAME.json and NAME.svg are
written anew; an axis that is not measured keeps its points. A slope is that of the logarithms: 1 where the
cost is proportional to the size, 0 where it is the same at all sizes. Steps from one size to the next are
listed if their slope departs from the expected one by more than `TOLERANCE`. The table, which is printed at
the end, stands in docs/performance.md.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench import TINY, Numbers, environment, measure
from check_gpu import SMOLLM2
from fedsdr.report.frontier import COLOURS, STYLE
from fedsdr.report.plots import HEIGHT, WIDTH, Scale

TOLERANCE = 0.15
SHAPES = {
    135: SMOLLM2,
    362: SMOLLM2
    | {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
       "num_key_value_heads": 5},
    1711: SMOLLM2
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
       "num_key_value_heads": 32},
}  # fmt: skip
"""Of SmolLM2 135M, 360M and 1.7B, by millions of weights."""
BRIEF = {"eval.every": 0, "partition.num_clients": 5}
Points = Sequence[tuple[float, float]]
"""Size and cost, in the order of sizes."""


@dataclass(frozen=True)
class Curve:
    """A cost along an axis."""

    label: str
    key: str
    """Of the measured numbers."""
    expected: float
    """Slope of the logarithms."""
    factor: float = 1.0
    """From the measured unit to the label's."""


@dataclass(frozen=True)
class Axis:
    """Sizes to measure at, and what is measured."""

    sizes: tuple[int, ...]
    measured: Callable[[int, int], Numbers]
    """Takes a size and the number of threads (0: all cores)."""
    curves: tuple[Curve, ...]


def training(threads: int, batch: int, length: int, steps: int, **more: object) -> Numbers:
    shape = {"batch": batch, "length": length, "steps": steps}
    return measure("train_ours", dtype="bfloat16", **shape, **{"run.threads": threads}, **more)


def simulated(threads: int, **settings: object) -> Numbers:
    return measure("federation", settings=TINY | BRIEF | {"run.threads": threads} | settings, per_client=4)


AXES: Mapping[str, Axis] = {
    "examples": Axis(
        (4, 16, 64, 256),
        lambda size, threads: training(threads, 4, 32, size // 4, updates=1),
        (Curve("training of one client, s", "update_seconds", 1), Curve("peak GB", "peak_gb", 0)),
    ),
    "clients": Axis(
        (5, 50, 200, 1000),
        lambda size, threads: simulated(threads, **{"partition.num_clients": size}),
        (Curve("ms a client", "client_seconds", 0, 1e3), Curve("peak GB", "peak_gb", 0)),
    ),
    "rounds": Axis(
        (2, 5, 20, 80),
        lambda size, threads: simulated(threads, **{"server.num_rounds": size}),
        (
            Curve("ms from round to round", "seconds_between_rounds", 0, 1e3),
            Curve("MB of the run's folder", "folder_bytes", 1, 1e-6),
        ),
    ),
    "rank": Axis(
        (4, 8, 16, 32, 64),
        lambda size, threads: training(threads, 4, 128, 4, **{"lora.rank": size, "lora.alpha": 2 * size}),
        (Curve("s a step", "step_seconds", 0), Curve("MB of a message", "message_bytes", 1, 1e-6)),
    ),
    "model": Axis(
        tuple(SHAPES),
        lambda size, threads: training(threads, 2, 128, 3, updates=1, shapes=SHAPES[size]),
        (
            Curve("s a step", "step_seconds", 1),
            Curve("peak GB", "peak_gb", 1),
            Curve("GFLOP/s as a share of a product's", "share_of_product_rate", 0),
        ),
    ),
}  # fmt: skip
TITLES = {
    "examples": "examples of a client",
    "clients": "clients",
    "rounds": "rounds",
    "rank": "LoRA rank",
    "model": "million weights",
}


def slope(points: Points) -> float:
    """Least-squares slope of log cost over log size."""
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def departures(points: Points, expected: float) -> list[tuple[float, float, float]]:
    """Steps from one size to the next whose slope departs from the expected one: both sizes, the slope."""
    steps = [(a[0], b[0], slope((a, b))) for a, b in pairwise(points)]
    return [step for step in steps if abs(step[2] - expected) > TOLERANCE]


def curves_of(axes: Mapping[str, Numbers]) -> Iterator[tuple[str, Curve, Points]]:
    """Every curve of what was measured so far, with its axis."""
    for name, axis in AXES.items():
        rows = axes.get(name, {})
        for curve in axis.curves:
            points = [
                (size, curve.factor * rows[str(size)][curve.key]) for size in axis.sizes if str(size) in rows
            ]
            if points:
                yield name, curve, points


def read(axes: Mapping[str, Numbers]) -> list[Numbers]:
    """Slopes of all curves with at least two points."""
    return [
        {"axis": name, "cost": curve.label, "points": points, "expected": curve.expected,
         "slope": slope(points), "departs": departures(points, curve.expected)}
        for name, curve, points in curves_of(axes)
        if len(points) > 1
    ]  # fmt: skip


def as_markdown(slopes: Sequence[Numbers]) -> str:
    """One row for each curve."""
    rows = [
        "| axis | cost | at these sizes | slope | expected | departs |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for one in slopes:
        sizes, costs = zip(*one["points"], strict=True)
        where = ", ".join(f"{a:,} to {b:,}: {found:.2f}" for a, b, found in one["departs"])
        cells = (
            f"{TITLES[one['axis']]}: {', '.join(f'{size:,}' for size in sizes)}",
            one["cost"],
            ", ".join(f"{cost:.3g}" for cost in costs),
            f"{one['slope']:.2f}",
            f"{one['expected']:g}",
            where,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def drawing(axes: Mapping[str, Numbers]) -> str:
    """Every curve in a panel with logarithmic axes; dashed: the expected slope."""
    panels = [panel(f"{curve.label}, by {TITLES[name]}", points, curve.expected)
              for name, curve, points in curves_of(axes)]  # fmt: skip
    width, height = 2 * WIDTH, (HEIGHT + 16) * math.ceil(len(panels) / 2)
    placed = (
        f'<g transform="translate({WIDTH * (place % 2)} {(HEIGHT + 16) * (place // 2)})">{one}</g>'
        for place, one in enumerate(panels)
    )
    return (
        f'<svg class="frontier" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" role="img" aria-label="Cost as work grows"><style>{STYLE}</style>'
        f"{''.join(placed)}</svg>\n"
    )


def panel(title: str, points: Points, expected: float) -> str:
    logs = [(math.log10(size), math.log10(cost)) for size, cost in points]
    sizes, costs = zip(*logs, strict=True)
    middle = [sum(values) / len(logs) for values in (sizes, costs)]
    line = [(at, middle[1] + expected * (at - middle[0])) for at in (sizes[0], sizes[-1])]
    ends = [*costs, *(cost for _, cost in line)]
    room = max(0.1, 0.6 - (max(ends) - min(ends))) / 2  # a flat curve looks flat
    low, high = min(ends) - room, max(ends) + room
    x, y = Scale(sizes[0] - 0.1, sizes[-1] + 0.1, 48, WIDTH - 14), Scale(low, high, HEIGHT - 26, 24)
    parts = [f'<text x="8" y="14">{title}</text>']
    factors = (1,) if high - low > 2 else (1, 2, 5)
    for tick in (factor * 10.0**power for power in range(-6, 7) for factor in factors):
        if low <= math.log10(tick) <= high:
            at = y.at(math.log10(tick))
            parts.append(f'<path class="soft" d="M48 {at}H{WIDTH - 14}"/>')
            parts.append(f'<text x="42" y="{at + 4}" text-anchor="end">{tick:g}</text>')
    for (size, _), at in zip(points, sizes, strict=True):
        parts.append(f'<text x="{x.at(at)}" y="{HEIGHT - 8}" text-anchor="middle">{size:,}</text>')
    for some, dash in ((line, ' stroke-dasharray="3 4"'), (logs, "")):
        path = "L".join(f"{x.at(a)} {y.at(b)}" for a, b in some)
        parts.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[0]}"{dash}/>')
    for (size, cost), (a, b) in zip(points, logs, strict=True):
        parts.append(f'<circle cx="{x.at(a)}" cy="{y.at(b)}" r="3.5" fill="{COLOURS[0]}">'
                     f"<title>{size:,}: {cost:.3g}</title></circle>")  # fmt: skip
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("to", type=Path, help="where to write NAME.json and NAME.svg")
    parser.add_argument("--axes", nargs="*", choices=AXES, default=AXES)
    parser.add_argument("--first", type=int, help="measure only so many of the smallest sizes of each axis")
    cores = int(os.environ.get("OMP_NUM_THREADS", 0))
    parser.add_argument(
        "--threads", type=int, default=cores, help="0: all cores; default: OMP_NUM_THREADS, else 0"
    )
    options = parser.parse_args()
    begun, known, machine = time.monotonic(), options.to.with_suffix(".json"), environment()
    axes: dict[str, Numbers] = json.loads(known.read_text())["axes"] if known.exists() else {}
    options.to.parent.mkdir(parents=True, exist_ok=True)
    for name in options.axes:
        axes[name] = {}
        for size in AXES[name].sizes[: options.first]:
            found = AXES[name].measured(size, options.threads)
            axes[name][str(size)] = found | {"threads": options.threads}
            record = {"environment": machine, "tolerance": TOLERANCE, "slopes": read(axes), "axes": axes}
            known.write_text(json.dumps(record, indent=1) + "\n")
            options.to.with_suffix(".svg").write_text(drawing(axes))
    print(as_markdown(read(axes)))
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes; written to {options.to}.json and .svg")


if __name__ == "__main__":
    main()
