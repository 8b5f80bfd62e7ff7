"""Law 1: fedsdr whose private adapter is held at zero gives fedit's bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsdr
from fedsdr.client.update import local_update
from fedsdr.config import Settings


def shared_adapters(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (folder / "server").glob("round-*/*.safetensors")}


def test_fedsdr_with_private_held_at_zero_is_fedit(
    run_settings: Callable[..., Settings], finished: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(
        base: Any, adapters: Any, stages: Any, views: Any, settings: Any, rate: float, *rest: Any
    ) -> Any:
        metrics = {}
        for stage in stages:
            its_rate = 0.0 if stage.train == ("private",) else rate
            metrics |= local_update(base, adapters, [stage], views, settings, its_rate, *rest)
        assert adapters.is_zero("private")
        return metrics

    fedit = finished(method="fedit")
    learnt = shared_adapters(finished(method="fedsdr"))
    monkeypatch.setattr("fedsdr.apps.client_app.local_update", held)
    zero = fedsdr.run(run_settings(method="fedsdr")).folder

    assert list(shared_adapters(fedit)) and shared_adapters(zero) == shared_adapters(fedit)
    scores = [json.loads((run / "evaluation/round-0002.json").read_text())["global"] for run in (zero, fedit)]
    assert scores[0] == scores[1]
    # Were the private adapter idle anyway, the law would say nothing.
    assert learnt["round-0001"] != shared_adapters(fedit)["round-0001"]
