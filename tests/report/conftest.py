"""Records of made-up runs, with numbers that a test can follow."""

import random
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsdr.config import Settings
from fedsdr.recipe import check_settings
from fedsdr.storage import Event, append_lines, write_json

LOSSES = {"code": 0.88, "finance": 3.30, "general": 2.24, "math": 1.17, "medicine": 2.95}
SCORED = {"finance": 60, "math": 40}  # the other domains carry no ground truth


def metrics(domain: str, score: float, loss: float) -> dict[str, float]:
    """Numbers of one model on one domain."""
    found = {"num_scored": SCORED.get(domain, 0), "loss": loss, "loss_distilled": loss * 0.8}
    found |= {"unsupported_rate": 1 - score, "words": 30.0, "filler_rate": 1.0, "redundancy": 0.1}
    found |= {"cut_off_rate": 0.5}
    return found | ({"score": score} if domain in SCORED else {})


def table(domains: list[str], models: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """An evaluation; each model is given by its progress, 0 to 1."""
    made = {}
    for model, progress in models.items():
        by_domain = {
            domain: metrics(domain, 0.25 + progress / 2, LOSSES.get(domain, 2.0) * (1 - progress / 3))
            for domain in domains
        }
        rows = list(by_domain.values())
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in ("loss", "loss_distilled")}
        scores = [row["score"] for row in rows if "score" in row]
        if scores:
            mean["score"] = sum(scores) / len(scores)
        made[model] = by_domain | {"mean": mean | {"num_scored": sum(row["num_scored"] for row in rows)}}
    return made


def prepare_event(client: str, number: int = 0) -> Event:
    """Distillation at one client: 40 examples, one in ten of which fell back."""
    event: Event = {"event": "prepare", "round": 0, "client": client, "seconds": 40.0 + number}
    event |= {"num_train": 40, "num_test": 60}
    for when, omission in (("before", 0.3 + number % 5 / 10), ("after", 0.1)):
        counts = {
            "num_examples": 40,
            "num_checkable": 40 if client in SCORED else 0,
            "omission_rate": omission,
            "omission_rate_true": 0.05,
            "unsupported_rate": omission / 2,
            "length_ratio": 1.5,
            "words": 60.0,
            "words_true": 40.0,
            "filler_rate": 1.25,
            "filler_rate_true": 0.25,
            "redundancy": 0.2,
            "redundancy_true": 0.1,
        }
        event |= {f"distill/{name}@{when}": value for name, value in counts.items()}
    return event | {
        "distill/num_fallback/cut_off": 3,
        "distill/num_fallback/lost_answer": 1,
        "distill/num_prompt/reference": 30,
        "distill/num_prompt/turn": 6,
    }


def train_event(server_round: int, client: str, adapters: tuple[str, ...]) -> Event:
    """A local update of 8 steps and 1000 tokens in each stage, 64,000 bytes up."""
    event: Event = {"event": "train", "round": server_round, "client": client, "num_bytes_up": 64_000}
    for offset, adapter in enumerate(adapters):
        loss = LOSSES.get(client, 2.0) * (0.6 + 0.4 / server_round) + offset / 10
        values = {"loss": loss, "first_loss": loss, "last_loss": loss, "num_steps": 8, "num_tokens": 1000}
        event |= {f"train/{adapter}/{name}": value for name, value in values.items()}
    return event | {"num_examples": 40, "seconds": 12.5}


# What `fedsdr measure` writes: plausible numbers, drawn from a seed.

VIEWS = ("raw", "distilled")
LEVELS = {"js": 0.34, "js_plain": 0.52, "tfidf": 0.46, "gradient": 0.21, "gradient_corrected": 0.33}
"""Mean of each measure of raw data."""
GAINS = {"js": -0.06, "js_plain": -0.05, "tfidf": 0.12, "gradient": 0.09, "gradient_corrected": 0.11}
"""What rewriting changes in it."""
TEXTS = (
    "true response",
    "rewriting",
    "true paraphrase",
    "base answer",
    "global answer",
    "personalised answer",
)


VERDICTS = [
    {
        "claim": "Rewriting makes the clients' words more alike",
        "verdict": "supported",
        "text": "Adjusted divergence falls from 0.34 to 0.28; difference -0.06 [-0.08, -0.04].",
    },
    {
        "claim": "What one client learns helps the others more after rewriting",
        "verdict": "undecided",
        "text": "Change of the others' loss -0.11 on raw and -0.14 on distilled data; the intervals overlap.",
    },
    {
        "claim": "Rewriting keeps the facts",
        "verdict": "refuted",
        "text": "36 % of the rewritings lose a label, an answer, a fact or a test; the check's own false alarms are 4 %.",
    },
    {
        "claim": "Averaging keeps what each client gained",
        "verdict": "not measured",
        "text": "Updates were not kept: server.keep_updates was off.",
    },
]

EXAMPLES = [
    {
        "domain": "math",
        "of": "rewriting",
        "why": "lost answer",
        "instruction": "Nadia buys 3 boxes of 12 pencils and gives away 7. How many are left?",
        "input": "",
        "response": "Three boxes hold 3 x 12 = 36 pencils. 36 - 7 = 29. The answer is 29.",
        "text": "Certainly! To find out how many pencils Nadia has left, let us go step by step. She buys 3 boxes of 12"
        " pencils each. This is a great way to stock up on supplies! After giving some away, she has 36 pencils.",
    },
    {
        "domain": "finance",
        "of": "rewriting",
        "why": "unsupported",
        "instruction": "What is the sentiment of this news?",
        "input": "Operating profit fell to EUR 12 mn from EUR 17 mn.",
        "response": "negative",
        "text": "The sentiment is neutral, since profit changed by 12 % & <b>nothing</b> else was said.",
    },
]


def interval(value: float, half: float) -> dict[str, float]:
    """A value with its interval."""
    return {"value": value, "low": value - half, "high": value + half}


def likeness(draw: random.Random, clients: Sequence[str], measures: Sequence[str]) -> list[Event]:
    """Pairs of clients and means, of three views."""
    records: list[Event] = []
    for measure in measures:
        pairs = list(combinations(clients, 2))
        raw = {pair: LEVELS[measure] + draw.gauss(0, 0.08) for pair in pairs}
        new = {pair: raw[pair] + GAINS[measure] + draw.gauss(0, 0.03) for pair in pairs}
        views = {"raw": raw, "distilled": new, "difference": {pair: new[pair] - raw[pair] for pair in pairs}}
        for view, values in views.items():
            where = {"measure": measure, "view": view}
            records += [where | {"a": a, "b": b} | interval(value, 0.04) for (a, b), value in values.items()]
            mean = sum(values.values()) / len(values)
            records.append(where | {"a": "mean", "b": ""} | interval(mean, 0.02))
    return records


def transfer(draw: random.Random, clients: Sequence[str]) -> list[Event]:
    """A matrix for each view and kind of text, with the mean over others."""
    records: list[Event] = []
    for view, on in product(VIEWS, ("true responses", "rewritings")):
        common = {"view": view, "on": on}
        own = 0.5 if (view == "raw") == (on == "true responses") else 0.3
        for a, b in product(clients, clients):
            value = -own - draw.random() / 5 if a == b else draw.gauss(-0.08, 0.09)
            records.append(common | {"trained_on": a, "tested_on": b} | interval(value, 0.05))
        for b in (*clients, "mean"):
            value = draw.gauss(-0.08, 0.03)
            records.append(common | {"trained_on": "others", "tested_on": b} | interval(value, 0.04))
    return records


def points(draw: random.Random, clients: Sequence[str]) -> list[Event]:
    """Sixty points of each client and view; rewritings are closer together."""
    records: list[Event] = []
    for client in clients:
        middle = (draw.uniform(-40, 40), draw.uniform(-40, 40))
        for view, spread in zip(VIEWS, (1.0, 0.6), strict=True):
            for _ in range(60):
                x, y = (place * spread + draw.gauss(0, 6) for place in middle)
                records.append({"view": view, "domain": client, "client": client, "x": x, "y": y})
    return records


def paradox(draw: random.Random, domains: Sequence[str]) -> list[Event]:
    """Six kinds of counts of six kinds of texts, by two checkers where they ask."""
    records: list[Event] = []
    for of, domain in product(TEXTS, (*domains, "all")):
        is_true = of == "true response"
        common = {"of": of, "domain": domain, "num": 60, "num_unreadable": 0}
        for checker, kind in product(("exact", "nli-deberta"), ("omission", "unsupported")):
            share = 0.03 if is_true else 0.08 if of == "true paraphrase" else draw.uniform(0.15, 0.5)
            record = {"value": share, "low": max(0, share - 0.1), "high": share + 0.12}
            records.append(common | {"checker": checker, "kind": kind} | record)
        levels = {"length_ratio": 1.6, "filler_rate": 1.4, "redundancy": 0.12, "words": 60.0}
        for kind, level in levels.items():
            value = level * (0.6 if is_true else draw.uniform(0.8, 1.2))
            records.append(common | {"checker": "exact", "kind": kind} | interval(value, value / 8))
    return records


def consistency(draw: random.Random, clients: Sequence[str], num_layers: int, num_rounds: int) -> list[Event]:
    """Cosine and sign agreement of pairs and means, by layer and round; one layer had no change at first."""
    layers = ["all"]
    for number in range(num_layers):
        layers += [f"model.layers.{number}.self_attn.{kind}_proj" for kind in ("q", "v")]
    records: list[Event] = []
    for number, (place, layer) in product(range(1, num_rounds + 1), enumerate(layers)):
        where = {"round": number, "layer": layer}
        level = 0.5 - 0.07 * number + 0.3 * place / len(layers)
        pairs = [("mean", ""), *(combinations(clients, 2) if layer == "all" else ())]
        for a, b in pairs:
            cosine = None if (number, place) == (1, 1) else level + draw.gauss(0, 0.05)
            agreement = {"cosine": cosine, "sign_agreement": 0.5 + level / 3}
            records.append(where | {"a": a, "b": b} | agreement)
    return records


def survival(draw: random.Random, clients: Sequence[str], num_rounds: int) -> list[Event]:
    """Losses that fall; one client gains nothing by itself in the last round."""
    records: list[Event] = []
    for client in clients:
        loss = draw.uniform(1.2, 3.0)
        for number in range(1, num_rounds + 1):
            gain, kept = 0.3 / number, draw.uniform(-0.1, 0.8)
            last = {"round": number, "client": client, "before": loss, "own": loss - gain}
            last |= {"aggregated": loss - kept * gain, "kept": kept, "low": kept - 0.1, "high": kept + 0.1}
            records.append(last)
            loss -= kept * gain
    records[-1]["kept"] = None
    return records


def benchmarks(draw: random.Random) -> list[Event]:
    """Choices with chance and open answers without."""
    tasks = {"mmlu": 0.25, "crass": 0.33, "fpb": 0.33, "medmcqa": 0.25, "rte": 0.5}
    records: list[Event] = []
    for model in ("base", "global", "personalised"):
        common = {"model": model, "num": 200, "stderr": 0.033, "origin": "local"}
        for task, chance in tasks.items():
            value = {"value": chance + draw.uniform(0, 0.2), "chance": chance}
            records.append(common | {"task": task, "metric": "likelihood"} | value)
        for task, metric in product(("gsm8k", "drop"), ("strict", "flexible")):
            value = {"value": draw.uniform(0, 0.2), "chance": None}
            records.append(common | {"task": task, "metric": metric} | value)
    return records


def retention(draw: random.Random) -> list[Event]:
    """Shares of two tasks, and a loss without an interval."""
    records: list[Event] = []
    for task, metric in (("piqa", "acc_norm"), ("copa", "acc"), ("wikitext", "loss")):
        base, change = draw.uniform(0.3, 0.7), draw.uniform(-0.1, 0.1)
        ends = (
            {"low": None, "high": None} if metric == "loss" else {"low": change - 0.05, "high": change + 0.05}
        )
        values = {"base": base, "tuned": base + change, "value": change}
        records.append({"task": task, "metric": metric, "num": 100, **values, **ends})
    return records


def cost_and_gain(domains: Sequence[str]) -> list[Event]:
    """Two scales of the global model; cost grows with the square of the scale."""
    return [
        {"model": "global", "round": 4, "scale": scale, "cost": 0.2 * scale**2, "gain": scale / 2}
        | {f"gain_{domain}": scale / 2 for domain in domains}
        for scale in (0.5, 1.0)
    ]


def win_rates(draw: random.Random, domains: Sequence[str]) -> list[Event]:
    """Two pairs of models by domain."""
    records: list[Event] = []
    for (a, b), domain in product((("global", "base"), ("personalised", "global")), (*domains, "all")):
        wins, ties = draw.randint(6, 14), draw.randint(2, 8)
        rate = (wins + ties / 2) / 30
        record = {"a": a, "b": b, "domain": domain, "num": 30, "wins": wins, "ties": ties}
        record |= {"losses": 30 - wins - ties, "num_unreadable": 1, "rate": rate, "low": rate - 0.16}
        records.append(record | {"high": rate + 0.16, "agreement": 0.71, "first_rate": 0.58})
    return records


def measurements(clients: Sequence[str], num_layers: int = 30, num_rounds: int = 4) -> dict[str, Event]:
    """One record of each measurement, as `fedsdr measure` writes them, by name."""
    draw = random.Random(0)
    made = {
        "alignment": likeness(draw, clients, ("js", "js_plain", "tfidf")),
        "gradients": likeness(draw, clients, ("gradient", "gradient_corrected")),
        "transfer": transfer(draw, clients),
        "map": points(draw, clients),
        "paradox": paradox(draw, clients),
        "consistency": consistency(draw, clients, num_layers, num_rounds),
        "survival": survival(draw, clients, num_rounds),
        "benchmarks": benchmarks(draw),
        "retention": retention(draw),
        "frontier": cost_and_gain(clients),
        "winrate": win_rates(draw, clients),
    }
    found: dict[str, Event] = {}
    for name, records in made.items():
        found[name] = {"measure": name, "command": f"fedsdr measure runs/one {name}", "seconds": 61.4}
        found[name] |= {"notes": ["200 draws of a random half of the examples."], "records": records}
    found["paradox"]["examples"] = EXAMPLES
    found["alignment"]["verdicts"] = [VERDICTS[0]]
    found["transfer"]["verdicts"] = [VERDICTS[1]]
    found["paradox"]["verdicts"] = [VERDICTS[2]]
    found["consistency"]["verdicts"] = [VERDICTS[3]]
    return found


@pytest.fixture
def made_up() -> SimpleNamespace:
    """The functions above, for tests of single tables."""
    return SimpleNamespace(table=table, prepare=prepare_event, train=train_event)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Path, Settings]]:
    """Write the folder of a run: ``make_run(rounds=2, method="fedit", clients=["a", "b"])``."""

    def make(
        rounds: int = 4,
        of: int = 4,
        method: str = "fedsdr",
        clients: list[str] | None = None,
        model: str = "smollm2-135m-instruct",
        evaluated: bool = True,
    ) -> tuple[Path, Settings]:
        names = list(LOSSES) if clients is None else clients
        dual = method == "fedsdr"
        values: dict[str, Any] = {"method": method, "server": {"num_rounds": of}, "model": {"name": model}}
        settings = check_settings(values, source="test")
        folder = tmp_path / f"five-domains-{method}-seed0"
        events: list[Event] = [
            prepare_event(client, number)
            if dual
            else {"event": "prepare", "round": 0, "client": client, "seconds": 1.0}
            for number, client in enumerate(names)
        ]
        for number in range(1, rounds + 1):
            adapters = ("private", "shared") if dual else ("shared",)
            events += [train_event(number, client, adapters) for client in names]
            events.append({"event": "round", "round": number, "seconds": 60.0, "num_bytes_down": 64_000})
        for number in (0, rounds) if evaluated else ():
            events += [
                {"event": "evaluate", "round": number, "client": client, "seconds": 7.0} for client in names
            ]
            done = number / of
            models = {"global": done} | ({"personalised": done * 1.2} if dual and number else {})
            write_json(folder / "evaluation" / f"round-{number:04d}.json", table(names, models))
        append_lines(folder / "metrics.jsonl", events)
        counts = dict.fromkeys(names, 40)
        environment = {
            "command": "fedsdr run recipes/five-domains.toml",
            "versions": {"fedsdr": "0.1.0"},
            "model": {"name": model, "origin": "Q4_1 dequantised", "identity": "0123"},
            "data": {"origin": "built-in", "hash": "4567", "num_train": counts, "num_test": counts},
        }
        write_json(folder / "environment.json", environment)
        return folder, settings

    return make


@pytest.fixture
def make_measured(make_run: Callable[..., tuple[Path, Settings]]) -> Callable[..., tuple[Path, Settings]]:
    """Write the folder of a run with all measurements; arguments as of `make_run`."""

    def make(num_layers: int = 30, **kind: Any) -> tuple[Path, Settings]:
        folder, settings = make_run(**kind)
        clients = kind.get("clients") or list(LOSSES)
        for name, record in measurements(clients, num_layers, kind.get("rounds", 4)).items():
            write_json(folder / "measurements" / f"{name}.json", record)
        return folder, settings

    return make
