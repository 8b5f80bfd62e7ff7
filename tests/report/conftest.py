"""Records of made-up runs, with numbers that a test can follow."""

from collections.abc import Callable
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
