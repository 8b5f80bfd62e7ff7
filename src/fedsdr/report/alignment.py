"""How similar the clients' data are: figures and sheets of similarity, loss transfer, and maps."""

from collections.abc import Sequence

from fedsdr.report.blocks import Block, Table
from fedsdr.report.figures import Figure, limited
from fedsdr.report.maps import MOST_NUMBERS, Matrix, Ramp, heat_panel, palette, scatter_panel
from fedsdr.report.plots import MOST_PANELS
from fedsdr.report.sheets import Sheet, grouped, with_interval
from fedsdr.storage import Event

VIEWS = ("raw", "distilled", "difference")
TITLES = {
    "raw": "raw",
    "distilled": "distilled",
    "difference": "difference: distilled minus raw",
}
LIKENESS = {
    "js": (
        "Jensen-Shannon divergence of words, corrected for chance",
        "0: like two samples of one text; 1: no common word. Lower is more alike.",
    ),
    "js_plain": (
        "Jensen-Shannon divergence of words, unadjusted",
        "Bits; even two samples of one text are well above 0. Lower is more alike.",
    ),
    "tfidf": ("Cosine of TF-IDF vectors", "1: the same words in the same shares. Higher is more alike."),
    "gradient": (
        "Cosine of gradients of the shared adapter",
        "1: the same direction; 0: unrelated; below 0: opposite directions. Higher is more alike.",
    ),
    "gradient_corrected": (
        "Cosine of gradients, corrected for the noise of examples",
        "As above, with norms of expected gradients; may leave -1 to 1. Higher is more alike.",
    ),
}
"""Measure -> its title, and how to read it."""


def likeness_blocks(name: str, record: Event) -> list[Block]:
    """Means of each measure with intervals, then each measure's pairs of clients as heat maps.

    Args:
        name: Name of the measurement and of the CSV file.
        record: Has records with measure, view, a, b, value, low and high.
    """
    by_measure = grouped((one["measure"], one) for one in record["records"])
    figures = [likeness_figure(measure, found) for measure, found in by_measure.items()]
    return [Table(f"{name}-means", likeness_sheet(record["records"])), *figures]


def likeness_sheet(records: Sequence[Event]) -> Sheet:
    """Mean over pairs of clients of each measure: raw, distilled, difference."""
    means = [record for record in records if record["a"] == "mean"]
    found = {(record["measure"], record["view"]): record for record in means}
    measures = dict.fromkeys(record["measure"] for record in means)
    return Sheet(
        "Likeness of the clients, mean over pairs, with 95 % interval",
        "lrrr",
        ("measure", "raw", "distilled", "distilled minus raw"),
        tuple(
            (LIKENESS[measure][0], *(with_interval(found.get((measure, view)), 3) for view in VIEWS))
            for measure in measures
        ),
        tuple(means),
        note="The difference is computed in each draw of examples, so its interval shows whether rewriting"
        " made the clients more alike.",
    )


def likeness_figure(measure: str, records: Sequence[Event]) -> Figure:
    """Pairs of clients: raw, distilled and their difference side by side."""
    pairs = [record for record in records if record["a"] != "mean"]
    clients = list(dict.fromkeys(record[side] for side in "ab" for record in pairs))
    shown = clients[:MOST_PANELS]
    matrices = {view: symmetric(pairs, "value", view=view) for view in VIEWS}
    shared = Ramp.of([*matrices["raw"].values(), *matrices["distilled"].values()])
    change = Ramp.of(matrices["difference"].values(), is_change=True)
    ramps = {"raw": shared, "distilled": shared, "difference": change}
    title, note = LIKENESS[measure]
    return Figure(
        f"likeness-{measure}",
        f"{title}, by pair of clients",
        f"{note} Raw and distilled have one scale.{without_numbers(len(clients))}",
        (),
        tuple(heat_panel(TITLES[view], matrices[view], shown, shown, ramps[view]) for view in VIEWS),
        records,
    )


def transfer_blocks(name: str, record: Event) -> list[Block]:
    """Matrices of transfer from client to client, and transfer from the others' data to a client."""
    records = record["records"]
    blocks: list[Block] = [
        transfer_figure(on, [one for one in records if one["on"] == on])
        for on in dict.fromkeys(one["on"] for one in records)
    ]
    sheet = transfer_sheet(records)
    return [*blocks, Table(f"{name}-others", sheet)] if sheet.rows else blocks


def transfer_figure(on: str, records: Sequence[Event]) -> Figure:
    """Change of loss on each client's tests by training on one client's data."""
    found = [record for record in records if record["tested_on"] != "mean"]
    rows = list(dict.fromkeys(record["trained_on"] for record in found))
    columns = list(dict.fromkeys(record["tested_on"] for record in found))
    values = {view: [record["value"] for record in found if record["view"] == view] for view in VIEWS}
    trained = Ramp.of(values["raw"] + values["distilled"], is_change=True)
    ramps = {
        "raw": trained,
        "distilled": trained,
        "difference": Ramp.of(values["difference"], is_change=True),
    }
    titles = TITLES | {view: f"trained on {view} responses" for view in VIEWS[:2]}
    panels = []
    for view in VIEWS:
        matrix = {(r["trained_on"], r["tested_on"]): r["value"] for r in found if r["view"] == view}
        panels.append(
            heat_panel(titles[view], matrix, rows[:MOST_PANELS], columns[:MOST_PANELS], ramps[view])
        )
    return Figure(
        f"transfer-{on.replace(' ', '-')}",
        f"Transfer: change of the loss on {on}",
        "Nats per token against the base model; below 0 is better. Rows: the client whose data were used for"
        " training. Columns: the client whose test examples were scored."
        + without_numbers(max(len(rows), len(columns))),
        (),
        tuple(panels),
        records,
    )


def transfer_sheet(records: Sequence[Event]) -> Sheet:
    """Effect of training on the other clients' data on the loss of each client, mean over the others."""
    others = [record for record in records if record["trained_on"] == "others"]
    found = {(r["tested_on"], r["on"], r["view"]): r for r in others}
    places = dict.fromkeys((record["tested_on"], record["on"]) for record in others)
    ordered = sorted(places, key=lambda place: place[0] == "mean")
    return Sheet(
        "Transfer from others: change of a client's loss by training on another's data, with 95 % interval",
        "llrrr",
        ("tested on", "on", "trained on raw", "trained on distilled", "distilled minus raw"),
        tuple(
            (*place, *(with_interval(found.get((*place, view)), 3) for view in VIEWS)) for place in ordered
        ),
        tuple(others),
        num_summary=sum(place[0] == "mean" for place in ordered),
        note="Nats per token against the base model, mean over all other clients; below 0 is better."
        " Intervals cover the draw of test examples, not of training.",
    )


def map_blocks(name: str, record: Event) -> list[Block]:
    """The map of responses, raw and distilled."""
    points = record["records"]
    series = palette(one["client"] for one in points)
    xs, ys = [one["x"] for one in points], [one["y"] for one in points]
    bounds = (min(xs), max(xs), min(ys), max(ys))
    views = grouped((one["view"], (series[one["client"]], (one["x"], one["y"]))) for one in points)
    return [
        Figure(
            name,
            "Map of the responses (t-SNE of the base model's states)",
            "A picture, not evidence: distances between far groups mean nothing, and another seed gives"
            " another picture. Both views have one layout; axes have no units.",
            tuple(series.values()),
            tuple(scatter_panel(f"{view} responses", grouped(some), bounds) for view, some in views.items()),
            points,
        )
    ]


def symmetric(records: Sequence[Event], value: str, **where: object) -> Matrix:
    """Symmetric matrix of pairs (a, b), from the records with the given values."""
    found = [r for r in records if all(r[key] == wanted for key, wanted in where.items())]
    return {
        place: record[value]
        for record in found
        for place in ((record["a"], record["b"]), (record["b"], record["a"]))
    }


def without_numbers(num: int) -> str:
    """Note for a figure whose matrices have too many clients for numbers, or for all rows."""
    return limited(num) or " The CSV file has the numbers." * (num > MOST_NUMBERS)
