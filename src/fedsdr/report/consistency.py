"""Whether the clients' updates agree, and how much of their gains survives aggregation, as figures."""

import math
import re
from collections.abc import Sequence

from fedsdr.report.alignment import symmetric, without_numbers
from fedsdr.report.blocks import Block, Table
from fedsdr.report.figures import Figure, limited, line_panels
from fedsdr.report.maps import MOST_ROWS, Ramp, heat_panel
from fedsdr.report.plots import MOST_PANELS, Series, line_groups
from fedsdr.report.sheets import Sheet, grouped, number, with_interval
from fedsdr.storage import Event

VALUES = {"cosine": "cosine of the updates", "sign_agreement": "share of entries with equal sign"}
READ = "Cosine: 1 for equal changes of the shared adapter, 0 for unrelated ones. Equal signs: 0.5 is chance."
GAINS = {
    "cosine_first": "cosine, round 1",
    "cosine_last": "cosine, last",
    "signs_last": "equal signs, last",
    "own_gain": "own gain",
    "gain_left": "gain left",
    "kept": "kept",
}
"""Columns of the table that compares the arms of a grid."""
LOSSES = {
    "before": Series("before the round", "s-base"),
    "own": Series("with the client's own update", "s-personalised"),
    "aggregated": Series("with the aggregated update", "s-global"),
}


def consistency_blocks(name: str, record: Event) -> list[Block]:
    """Means over pairs by round, layers over rounds, and pairs of clients in the last round."""
    records = record["records"]
    means = [one for one in records if one["a"] == "mean"]
    last = max(one["round"] for one in records)
    pairs = [one for one in records if one["round"] == last and one["layer"] == "all" and one["a"] != "mean"]
    layers = [one for one in means if one["layer"] != "all"]
    figures = [layer_figure(name, layers)] if layers else []
    figures += [pair_figure(name, pairs, last)] if pairs else []
    return [Table(f"{name}-rounds", round_sheet(means)), *figures]


def round_sheet(means: Sequence[Event]) -> Sheet:
    """Cosine and sign agreement over all layers, by round."""
    found = [record for record in means if record["layer"] == "all"]
    return Sheet(
        "Agreement of the clients' updates over all layers, mean over pairs",
        "lrr",
        ("round", "cosine", "equal signs"),
        tuple((str(r["round"]), number(r["cosine"], 3), number(r["sign_agreement"], 3)) for r in found),
        tuple(found),
        note=READ,
    )


def layer_figure(name: str, means: Sequence[Event]) -> Figure:
    """Agreement in each layer over rounds; many layers are averaged by block."""
    layers = list(dict.fromkeys(record["layer"] for record in means))
    is_grouped = len(layers) > MOST_ROWS
    rows = {layer: _label(layer, is_grouped) for layer in layers}
    rounds = _columns(means)
    names = list(dict.fromkeys(rows.values()))
    panels = []
    for value, title in VALUES.items():
        groups = grouped(((rows[record["layer"]], str(record["round"])), record[value]) for record in means)
        matrix = {place: _mean(some) for place, some in groups.items()}
        panels.append(heat_panel(title, matrix, names, rounds, Ramp.of(matrix.values())))
    note = " Mean over the layers of a block." if is_grouped else ""
    return Figure(
        f"{name}-layers",
        "Agreement of the clients' updates, by layer and round",
        f"Mean over pairs of clients; columns are rounds. {READ}{note}",
        (),
        tuple(panels),
        means,
    )


def pair_figure(name: str, pairs: Sequence[Event], server_round: int) -> Figure:
    """Agreement of each pair of clients over all layers."""
    clients = list(dict.fromkeys(record[side] for side in "ab" for record in pairs))
    shown = clients[:MOST_PANELS]
    matrices = {title: symmetric(pairs, value) for value, title in VALUES.items()}
    return Figure(
        f"{name}-clients",
        f"Agreement of the clients' updates over all layers, by pair of clients, in round {server_round}",
        READ + without_numbers(len(clients)),
        (),
        tuple(
            heat_panel(title, matrix, shown, shown, Ramp.of(matrix.values()))
            for title, matrix in matrices.items()
        ),
        pairs,
    )


def survival_blocks(name: str, record: Event) -> list[Block]:
    """The surviving share of each client's own gain: a matrix, losses over rounds, and the last round."""
    records = record["records"]
    return [
        kept_figure(name, records),
        survival_figure(name, records),
        Table(f"{name}-last", survival_sheet(records)),
    ]


def kept_figure(name: str, records: Sequence[Event]) -> Figure:
    """Share of the own gain that survives aggregation, clients by rounds."""
    clients = list(dict.fromkeys(record["client"] for record in records))
    rounds = _columns(records)
    matrix = {(record["client"], str(record["round"])): record["kept"] for record in records}
    return Figure(
        f"{name}-kept",
        "Share of a client's own gain that is left after aggregation, by round",
        "Columns are rounds. 1: all of it; 0: none; below 0: the client is worse off than before the"
        " round; above 1: the others helped. Empty where the client's own gain is not above 0."
        + without_numbers(len(clients)),
        (),
        (heat_panel("share kept", matrix, clients[:MOST_PANELS], rounds, Ramp.of(matrix.values())),),
        records,
    )


def survival_figure(name: str, records: Sequence[Event]) -> Figure:
    """Loss of each client on its own tests before a round, with its own and with the aggregated update."""
    panels = line_groups(
        (r["client"], series, r["round"], r[key]) for r in records for key, series in LOSSES.items()
    )
    return Figure(
        f"{name}-losses",
        "Loss on a client's own test examples in each round",
        "Nats per response token; each panel has its own scale." + limited(len(panels)),
        tuple(LOSSES.values()),
        line_panels(panels),
        records,
    )


def survival_sheet(records: Sequence[Event]) -> Sheet:
    """Losses and the kept share in the last round."""
    last = max(record["round"] for record in records)
    found = [record for record in records if record["round"] == last]
    return Sheet(
        f"Own gain and what aggregation keeps of it, round {last}",
        "lrrrr",
        ("client", "before", "own update", "aggregated", "kept"),
        tuple(
            (r["client"], *(number(r[key], 4) for key in LOSSES), with_interval(r, 2, "kept")) for r in found
        ),
        tuple(found),
        note="Losses in nats per response token on the client's own test examples. Kept: (before -"
        " aggregated) / (before - own update), with its 95 % interval over test examples.",
    )


def _columns(records: Sequence[Event]) -> list[str]:
    """The rounds; if there are too many to draw, evenly spaced ones including the last."""
    rounds = sorted({record["round"] for record in records})
    every = math.ceil(len(rounds) / MOST_ROWS)
    return [str(number) for number in rounds[::-1][::every][::-1]]


def _label(layer: str, is_grouped: bool) -> str:
    """Block and projection of a layer, or only its block; its path if that has no block number."""
    found = re.search(r"\.(\d+)\.(?:.*\.)?(\w+)$", layer)
    if not found:
        return layer
    return f"block {found[1]}" if is_grouped else f"{found[1]} {found[2]}"


def arms_sheet(runs: Sequence[tuple[str, Sequence[Event], Sequence[Event]]]) -> Sheet:
    """Agreement of the clients' updates, and survival of their gains in aggregation, by arm of a grid.

    Args:
        runs: Arm, and records of `consistency` and of `survival`, of each run that has them.

    Returns:
        Means over runs. Gains are in nats per response token of the clients' own test examples, means over
        rounds and clients; kept is gain_left over own_gain, if the latter is above 0.
    """
    by_arm = grouped((arm, _summary(updates, survival)) for arm, updates, survival in runs)
    records: list[Event] = [
        {"arm": arm, "num_seeds": len(found), **{name: _mean([o[name] for o in found]) for name in found[0]}}
        for arm, found in by_arm.items()
    ]
    for record in records:
        own = record["own_gain"]
        record["kept"] = record["gain_left"] / own if own > 0 else None
    return Sheet(
        "Agreement of the clients' updates, and what aggregation leaves of a client's gain; means over runs",
        "l" + "r" * (1 + len(GAINS)),
        ("arm", "seeds", *GAINS.values()),
        tuple((r["arm"], str(r["num_seeds"]), *(number(r[name], 3) for name in GAINS)) for r in records),
        tuple(records),
        note="Cosine and equal signs: of changes of B A, means over pairs of clients. Gain: fall of the loss"
        " on the client's own test examples in one round, by its own update and by the aggregated one, of"
        " base + shared adapter. Kept: the second over the first.",
    )


def _summary(updates: Sequence[Event], survival: Sequence[Event]) -> Event:
    means = {r["round"]: r for r in updates if r["layer"] == "all" and r["a"] == "mean"}
    first, last = means[min(means)], means[max(means)]
    own = sum(r["before"] - r["own"] for r in survival) / len(survival)
    left = sum(r["before"] - r["aggregated"] for r in survival) / len(survival)
    return {
        "cosine_first": first["cosine"],
        "cosine_last": last["cosine"],
        "signs_last": last["sign_agreement"],
        "own_gain": own,
        "gain_left": left,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
