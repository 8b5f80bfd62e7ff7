"""Invariant 11: each name in each table runs one round on the tiny model, and resumes to the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import fedsdr
from fedsdr.config import Settings
from fedsdr.methods import AGGREGATIONS, DRIFT_CORRECTIONS, METHODS, OPTIMIZERS, PROMPTS, ROBUST_AGGREGATORS
from fedsdr.rows import LocalOptimizer, MessageDtype

NAMES = [
    *(("method", name) for name in METHODS),
    *(("server.aggregation", name) for name in AGGREGATIONS),
    *(("server.robust", name) for name in ROBUST_AGGREGATORS),
    *(("server.optimizer", name) for name in OPTIMIZERS),
    *(("client.drift_correction", name) for name in DRIFT_CORRECTIONS),
    *(("client.optimizer", name) for name in get_args(LocalOptimizer)),
    *(("distill.prompts", [name]) for name in PROMPTS),
    *(("distill.only", name) for name in (["math"], "likelier", "representative")),
    *(("communication.dtype", name) for name in get_args(MessageDtype)),
]


@pytest.mark.parametrize(("key", "name"), NAMES, ids=str)
def test_every_name_runs_a_round_and_changes_the_shared_adapter(
    run_settings: Callable[..., Settings], key: str, name: Any
) -> None:
    chosen = {key: name, "server.num_rounds": 1}
    if key == "server.robust" and ROBUST_AGGREGATORS[name].wants_byzantine:
        chosen |= {"server.num_byzantine": 1, "partition.num_clients": ROBUST_AGGREGATORS[name].num_needed(1)}
    if key == "server.aggregation" and AGGREGATIONS[name].ranks == "several":
        chosen |= {"lora.client_ranks.math": 2}
    if key == "client.drift_correction":
        chosen |= {
            "client.optimizer": DRIFT_CORRECTIONS[name].optimizer or "adamw",
            "client.max_grad_norm": 0,
        }
    if name == "token-mask":  # the random model finds no token likely
        chosen |= {"token_mask.soft": True}
    folder = fedsdr.run(run_settings(**chosen)).folder
    before, after = (
        (folder / f"server/round-000{number}/adapter_model.safetensors").read_bytes() for number in (0, 1)
    )
    if key == "method" and not METHODS[name].shares:
        assert before == after
        assert len(list(folder.glob("clients/*/round-0001/adapter_model.safetensors"))) == 3
    else:
        assert before != after


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_a_server_optimizer_survives_a_kill(
    run_settings: Callable[..., Settings], kill_at: Any, fresh_process: Callable[[], None], name: str
) -> None:
    def moments(folder: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.glob("server/round-*/*.safetensors"))]

    chosen = {"server.optimizer": name, "server.num_rounds": 3, "method": "fedit"}
    straight = fedsdr.run(run_settings(**chosen)).folder
    fresh_process()
    settings = run_settings(**chosen)
    with kill_at("fedsdr.federation.server_app.save_round", 3):
        fedsdr.run(settings)
    fresh_process()
    assert moments(fedsdr.resume(settings.run.dir).folder) == moments(straight)
