"""Mistakes of other systems that no other test guards against; docs/known_mistakes.md lists all of them."""

import ast
import random
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsdr.config import Settings
from fedsdr.federation import client_context, model_cache
from fedsdr.federation.model_cache import load_model
from fedsdr.federation.run import run
from fedsdr.methods import AGGREGATIONS
from fedsdr.metrics import METRICS
from fedsdr.model.adapter_files import load_adapter
from tools.docs_pages import MADE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """Every test begins as a new process does."""
    client_context.close_clients()
    load_model.cache_clear()


@pytest.fixture
def small(tiny_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run of one round with two clients."""

    def settings(**more: Any) -> Settings:
        few = {"data.domains": ["finance", "math"], "server.num_rounds": 1, "eval.max_new_tokens": 2}
        return tiny_settings(**{"method": "fedsdr", **few, **more})

    return settings


def test_a_run_asks_nobody_for_an_account_or_a_network(small, monkeypatch: pytest.MonkeyPatch):
    """FedML#343, #459: nothing ran without logging in to the vendor's platform."""

    def refused(*args: Any) -> None:
        raise AssertionError("a run on one machine reached out")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert run(small()).report.is_file()


def test_one_base_serves_all_clients(small, monkeypatch: pytest.MonkeyPatch):
    """FederatedScope#775: a copy of the model for each simulated client, and the memory was full."""
    loaded = []
    load_base = model_cache.load_base
    monkeypatch.setattr(model_cache, "load_base", lambda model: loaded.append(load_base(model)) or loaded[-1])
    run(small(**{"data.domains": ["finance", "general", "math"]}))
    assert len(loaded) == 1


def test_a_run_leaves_the_random_state_of_its_process_alone(small):
    """OpenFedLLM sets Python's global seed to the number of the round, so all seeds of a study draw alike."""
    random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002
    run(small(**{"server.clients_per_round": 1, "lora.dropout": 0.1}))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize("aggregation", [name for name, row in AGGREGATIONS.items() if row.sends(".lora_B.")])
def test_the_global_model_is_not_the_base_model(small, aggregation: str):
    """FedSA-LoRA#9: the server's B stayed zero, so the "global model" that was scored was the base model."""
    ranks = {"lora.client_ranks.math": 2} if AGGREGATIONS[aggregation].ranks == "several" else {}
    folder = run(small(**{"server.aggregation": aggregation}, **ranks)).folder
    state = load_adapter(folder / "server/round-0001")
    for key_a in (key for key in state if ".lora_A." in key):
        assert (state[key_a.replace(".lora_A.", ".lora_B.")] @ state[key_a]).any()


def test_every_metric_is_defined_where_numbers_are_shown():
    """FedDPA#4: paper, README and code did not say over what "P" and "TTP" were means."""
    table = (ROOT / "docs/metrics.md").read_text().partition("## Metrics")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table.partition("\n## ")[0], re.MULTILINE))
    assert set(rows) == set(METRICS)
    assert {name: rows[name] == "response tokens" for name in METRICS} == {
        name: count.endswith("_tokens") for name, count in METRICS.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path):
    """FedDPA: its README called a script that has another name."""
    text = page.read_text()
    made = [ROOT / "docs" / name for name in MADE]
    names = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    linked = [path for name in names if (path := (page.parent / name).resolve()) not in made]
    named = re.findall(r"(?<![\w./<-])(?:src|tests|docs|recipes|benchmarks)/[\w./-]*\w", text)
    missing = [str(path) for path in [*linked, *(ROOT / name for name in named)] if not path.exists()]
    assert not missing


def test_no_assertion_in_the_package_is_always_true():
    """Shepherd and FedDPA: `assert (exists(path), "message")` asserts a tuple, which is true."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple)), path


def test_every_test_that_the_page_of_mistakes_names_is_there():
    text = (ROOT / "docs/known_mistakes.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 40
    missing = [
        (path, name)
        for path, name in named
        if not (ROOT / path).is_file() or f"\ndef {name}(" not in (ROOT / path).read_text()
    ]
    assert not missing
