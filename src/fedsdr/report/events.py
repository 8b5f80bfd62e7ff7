"""Tables of a run's events: rewriting, training, costs, dropped replies.

Input: the events of metrics.jsonl. Output: records and `Sheet`s, as in `sheets`.
"""

from collections.abc import Mapping, Sequence

from fedsdr.metrics import LABEL_CHANGES
from fedsdr.report.sheets import NONE, Sheet, grouped, number
from fedsdr.storage import Event

TEXTS = ("true response", "rewriting", "as taught")
"""The rewriting is the answer to the first prompt; the text as taught is the result after fall-back."""
TRUE = ("omission_rate", "words", "filler_rate", "redundancy")
"""Counts that also exist for the true response."""
ALL = "all clients"
WORK = ("prepare", "train", "evaluate")
SENT = ("num_bytes_up", "num_bytes_down")
Classes = Mapping[str, Sequence[str]]
"""Domain -> its labels, indexed as in the counts; only where the data are available."""


def rewriting_records(events: Sequence[Event]) -> list[Event]:
    """Counts of the rewrite paradox: one record for each client and text, then for all clients.

    The omission rate of the true responses is the check's false-positive rate. It is None if no example is
    checkable; by definition a true response contains nothing unsupported. All clients: pooled over examples.
    words_true: words of the true responses to the same examples; not all are rewritten.
    """
    records = []
    for event in _rewritten(events):
        for text, when in zip(TEXTS, ("after", "before", "after"), strict=True):
            values: Event = {
                key.removeprefix("distill/").removesuffix(f"@{when}"): value
                for key, value in event.items()
                if key.endswith(f"@{when}")
            }
            if text == TEXTS[0]:
                values |= {name: values[f"{name}_true"] for name in TRUE}
                values |= {"unsupported_rate": None, "length_ratio": 1.0}
            if not values["num_checkable"]:
                values["omission_rate"] = None
            values = {
                name: value
                for name, value in values.items()
                if name == "words_true" or not name.endswith("_true")
            }
            if not values["num_examples"]:  # no example was short enough for the teacher
                values = {name: value if name.startswith("num_") else None for name, value in values.items()}
            records.append({"client": event["client"], "text": text, **values})
    if len(records) > len(TEXTS):
        for text in TEXTS:
            pooled = _pool([record for record in records if record["text"] == text])
            ratio = pooled["words"] / max(1, pooled["words_true"]) if pooled["num_examples"] else None
            records.append({"client": ALL, "text": text, **pooled, "length_ratio": ratio})
    return records


def paradox_sheet(events: Sequence[Event]) -> Sheet:
    """Effects of rewriting, by client: omissions, unsupported statements, length, padding."""
    records = rewriting_records(events)
    names = ("omission_rate", "unsupported_rate", "words", "length_ratio", "filler_rate", "redundancy")
    digits = (2, 2, 1, 2, 2, 2)
    rows = [
        (
            record["client"],
            record["text"],
            *(number(record[name], places) for name, places in zip(names, digits, strict=True)),
        )
        for record in records
    ]
    return Sheet(
        "Rewrite paradox: training responses, their rewritings, and what is taught after fall-back",
        "llrrrrrr",
        ("client", "text", "omits", "unsupported", "words", "length ratio", "fillers", "repeats"),
        tuple(rows),
        tuple(records),
        num_summary=sum(record["client"] == ALL for record in records),
        note="Omits: share of checkable responses whose label, final answer, fact or test is lost;"
        " for true responses it is the check's false-positive rate."
        " Unsupported: share of all responses with another label, or a number found in neither prompt nor"
        " true response. Words: per response. Fillers: per 100 words. Repeats: share of word 3-grams that"
        " repeat an earlier one.",
    )


def fallback_sheet(events: Sequence[Event]) -> Sheet:
    """Numbers of rewritings that fell back to the true response, reasons, and used prompts, by client."""
    records = []
    for event in _rewritten(events):
        counts: dict[str, dict[str, int]] = {"fallback": {}, "prompt": {}}
        for key, value in event.items():
            if key.startswith("distill/num_"):
                kind, _, name = key.removeprefix("distill/num_").partition("/")
                if kind in counts:
                    counts[kind][name.replace("_", " ")] = int(value)
        records.append(
            {
                "client": event["client"],
                "num_examples": int(event["distill/num_examples@after"]),
                "num_checkable": int(event["distill/num_checkable@after"]),
                "num_fallback": sum(counts["fallback"].values()),
                "reasons": _listed(counts["fallback"]),
                "prompts": _listed(counts["prompt"]),
            }
        )
    return Sheet(
        "Fall-back to the true response, and otherwise the prompt whose rewriting is taught",
        "lrrrll",
        ("client", "examples", "checkable", "fell back", "why", "prompts"),
        tuple(tuple(map(str, record.values())) for record in records),
        tuple(records),
    )


def train_records(events: Sequence[Event]) -> list[Event]:
    """One record for each round, client and stage: losses per response token, steps, tokens."""
    return [
        {"round": event["round"], "client": event["client"], "adapter": adapter, **values}
        for event in events
        if event["event"] == "train"
        for adapter, values in _stages(event).items()
    ]


def cost_records(events: Sequence[Event]) -> list[Event]:
    """One record for each client, round and kind of work: seconds, array bytes, steps, tokens."""
    down = {event["round"]: event["num_bytes_down"] for event in events if event["event"] == "round"}
    records: list[Event] = []
    for event in (event for event in events if event["event"] in WORK):
        record = {key: event[key] for key in ("client", "round")} | {"work": event["event"]}
        records.append(record | {"seconds": event["seconds"]})
        if event["event"] == "train":
            stages = _stages(event)
            records[-1] |= {f"num_steps_{name}": values["num_steps"] for name, values in stages.items()}
            records[-1]["num_tokens"] = sum(values["num_tokens"] for values in stages.values())
            records[-1]["num_bytes_up"] = event["num_bytes_up"]
            # Logged only when the round is complete.
            records[-1]["num_bytes_down"] = down.get(event["round"], 0)
    return records


def kept_sheet(events: Sequence[Event], classes: Classes) -> Sheet:
    """Examples of each label whose rewriting is used, by client; no rows without classes."""
    records: list[Event] = [
        {"client": event["client"], "domain": domain, "label": class_name(classes, domain, label)}
        | {"num_examples": num, "num_taught": kept}
        for event in _rewritten(events)
        for domain, counts in kept_by_label(event).items()
        for label, (num, kept) in counts.items()
    ]
    return Sheet(
        "Rewritings that are taught, by label",
        "lllrrr",
        ("client", "domain", "label", "examples", "taught", "share"),
        tuple(
            (*map(str, record.values()), number(record["num_taught"] / record["num_examples"], 2))
            for record in records
        ),
        tuple(records),
        note="Of the other examples the true response is taught. A check that errs towards one label leaves"
        " rewritings of that label alone, and the shares differ.",
    )


def kept_by_label(event: Event) -> dict[str, dict[str, tuple[int, int]]]:
    """From a `prepare` event: domain -> index of the label -> examples, and those with a used rewriting."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for key, num in event.items():
        if key.startswith(f"distill/{LABEL_CHANGES}/") and "/num_examples-" in key:
            domain, label = key.split("/")[2], key.rpartition("-")[2]
            kept = event.get(key.replace("num_examples-", "num_kept-"), 0)
            found.setdefault(domain, {})[label] = int(num), int(kept)
    return found


def class_name(classes: Classes, domain: str, label: str) -> str:
    """The label at an index of the domain's sorted choices; its number if they are unknown here."""
    return repr(classes[domain][int(label)]) if domain in classes else f"label {int(label) + 1}"


def total_costs(records: Sequence[Event]) -> dict[str, float]:
    """Seconds of each kind of work, and all counts, summed over records of `cost_records`."""
    total: dict[str, float] = dict.fromkeys((*WORK, "num_tokens", *SENT), 0)
    for record in records:
        total[record["work"]] += record["seconds"]
        for name in (name for name in record if name.startswith("num_")):
            total[name] = total.get(name, 0) + record[name]
    return total


def cost_sheet(events: Sequence[Event]) -> Sheet:
    """Costs of each client, summed over the rounds it took part in, and of all clients."""
    records = cost_records(events)
    steps = sorted({name for record in records for name in record if name.startswith("num_steps_")})
    by_client = grouped((record["client"], record) for record in records)
    groups = dict(sorted(by_client.items())) | ({ALL: records} if len(by_client) > 1 else {})
    rows = []
    for client, found in groups.items():
        total = total_costs(found)
        rows.append(
            (
                client,
                str(sum(record["work"] == "train" for record in found)),
                *(number(total[work], 1 if total[work] < 100 else 0) for work in WORK),
                *(f"{int(total.get(name, 0)):,}" for name in (*steps, "num_tokens")),
                *(data_size(total[name]) for name in SENT),
            )
        )
    step_heads = (f"steps {name.removeprefix('num_steps_')}" for name in steps)
    heads = (
        "client",
        "updates",
        *(f"{work} s" for work in WORK),
        *step_heads,
        "response tokens",
        "up",
        "down",
    )
    return Sheet(
        "Costs of each client, summed over rounds",
        "l" + "r" * (len(heads) - 1),
        heads,
        tuple(rows),
        tuple(records),
        num_summary=1 if len(groups) > 1 else 0,
        note="Seconds of work at the client. Steps: optimizer updates of each adapter. Response tokens: the"
        " tokens in the loss. Up and down: arrays of training messages. Evaluation sends the shared adapter"
        " down once more.",
    )


def dropped_sheet(events: Sequence[Event]) -> Sheet:
    """Replies that validation rejected, with reasons."""
    names = ("round", "client", "reason")
    records = [{name: event[name] for name in names} for event in events if event["event"] == "dropped"]
    rows = tuple(tuple(map(str, record.values())) for record in records)
    return Sheet("Replies that the server dropped", "rll", names, rows, tuple(records))


def privacy_sheet(events: Sequence[Event]) -> Sheet:
    """Epsilon after each round, for the client sampled most often."""
    names = ("round", "epsilon", "delta")
    by_round = {event["round"]: event for event in events if "epsilon" in event}
    records = [{name: event[name] for name in names} for event in by_round.values()]
    rows = tuple((str(r["round"]), f"{r['epsilon']:.3g}", f"{r['delta']:g}") for r in records)
    return Sheet("Privacy spent", "rrr", ("after round", "epsilon", "delta"), rows, tuple(records))


def data_size(num_bytes: float) -> str:
    """Format a number of bytes with a decimal unit, such as 65.5 kB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while num_bytes >= 1000:
        num_bytes /= 1000
        del units[0]
    return f"{num_bytes:.0f} B" if units[0] == "B" else f"{num_bytes:.1f} {units[0]}"


def _rewritten(events: Sequence[Event]) -> list[Event]:
    """The `prepare` events of clients that rewrote their responses."""
    return [e for e in events if e["event"] == "prepare" and "distill/num_examples@before" in e]


def _stages(event: Event) -> dict[str, dict[str, float]]:
    """The numbers of each stage of a local update, by the trained adapter."""
    stages: dict[str, dict[str, float]] = {}
    for key in (key for key in event if key.startswith("train/")):
        _, adapter, name = key.split("/")
        stages.setdefault(adapter, {})[name] = event[key]
    return stages


def _pool(records: Sequence[Event]) -> Event:
    """Pool the counts of several clients, each weighted by its own count."""
    pooled: Event = {name: sum(r[name] for r in records) for name in ("num_examples", "num_checkable")}
    for name in ("omission_rate", "unsupported_rate", "words", "words_true", "filler_rate", "redundancy"):
        weight = "num_checkable" if name == "omission_rate" else "num_examples"
        having = [record for record in records if record[name] is not None]
        total = sum(record[weight] for record in having)
        pooled[name] = sum(record[name] * record[weight] for record in having) / total if total else None
    return pooled


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {num}" for name, num in sorted(counts.items(), key=lambda i: -i[1])) or NONE
