"""A round's folder: there whole, or not done."""

from pathlib import Path

import numpy as np
import pytest
from peft import PeftConfig

from fedsdr.config import Lora
from fedsdr.errors import UserError
from fedsdr.messages.wire import residual_shapes
from fedsdr.run_folder import RunFolder
from fedsdr.server.checkpoint import load_round, save_round

ARRAYS = {
    "base_model.model.q_proj.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "base_model.model.q_proj.lora_B.weight": np.full((4, 2), 1e-40, dtype=np.float32),
}


def save(folder: Path, server_round: int) -> None:
    save_round(RunFolder(folder), server_round, ARRAYS, {}, {}, Lora(rank=2, alpha=8.0), "tiny")


def test_every_bit_of_a_round_is_read_back(tmp_path: Path):
    save(tmp_path, 3)
    found, residual = load_round(RunFolder(tmp_path), 3, 2)
    assert residual == {}
    assert {key: array.tobytes() for key, array in found.items()} == {
        key: array.tobytes() for key, array in ARRAYS.items()
    }
    found[next(iter(found))] += 1  # training and aggregating may write to what they loaded


def test_what_was_added_to_the_base_is_read_back_and_of_the_scale_of_the_rest(tmp_path: Path):
    """Layers that can hold fewer ranks than the others are filled up with zeros in the file alone."""
    shapes = {"x.lora_A.weight": (2, 9), "x.lora_B.weight": (8, 2), "y.lora_A.weight": (2, 9),
              "y.lora_B.weight": (3, 2)}  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    added = {key: rng.normal(size=s).astype(np.float32) for key, s in residual_shapes(shapes, 5).items()}
    assert [value.shape for value in added.values()] == [(5, 9), (8, 5), (3, 9), (3, 3)]
    save_round(RunFolder(tmp_path), 3, arrays, added, {}, Lora(rank=2, alpha=8.0), "tiny")
    for found, wanted in zip(load_round(RunFolder(tmp_path), 3, 2), (arrays, added), strict=True):
        assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in wanted.items()}
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
    config = PeftConfig.from_pretrained(tmp_path / "server" / "round-0003")
    assert (config.r, config.lora_alpha) == (7, 28)


def test_a_round_is_an_adapter_that_peft_reads(tmp_path: Path):
    save(tmp_path, 3)
    config = PeftConfig.from_pretrained(tmp_path / "server" / "round-0003")
    assert (config.r, config.lora_alpha) == (2, 8)


def test_the_last_round_is_the_highest_number_that_is_there_whole(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert folder.last_round() == -1
    for server_round in (0, 2, 10):
        save(tmp_path, server_round)
    (tmp_path / "server" / ".round-0011.17.aside").mkdir()  # what a kill leaves
    (tmp_path / "server" / "round-0012.bak").mkdir()  # what a user leaves
    assert folder.last_round() == 10
    save(tmp_path, 10_000)
    assert folder.last_round() == 10_000


def test_a_round_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="round-0004 contains no adapter"):
        load_round(RunFolder(tmp_path), 4, 2)
