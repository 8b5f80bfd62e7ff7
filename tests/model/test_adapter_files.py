"""Adapters on disk: values and scale survive, and invalid files are rejected."""

from pathlib import Path

import pytest
import torch
from peft import PeftConfig

from fedsdr.config import Lora
from fedsdr.errors import UserError
from fedsdr.model.adapter_files import load_adapter, save_adapter

STATE = {
    "base_model.model.q_proj.lora_A.weight": torch.arange(12.0).reshape(3, 4) / 7,
    "base_model.model.q_proj.lora_B.weight": torch.full((5, 3), 1e-30),
}


def save(folder: Path) -> Path:
    folder.mkdir()
    save_adapter(folder, STATE, Lora(rank=3, alpha=24.0, dropout=0.1), "some/model")
    return folder


def test_every_bit_is_read_back(tmp_path: Path):
    found = load_adapter(save(tmp_path / "a"))
    assert list(found) == list(STATE)
    assert all(torch.equal(found[key], STATE[key]) and found[key].dtype == torch.float32 for key in STATE)


def test_peft_reads_the_scale_that_was_trained_with(tmp_path: Path):
    """Went wrong elsewhere: alpha was written as the rank, so the adapter came back at half its size."""
    config = PeftConfig.from_pretrained(save(tmp_path / "a"))
    assert config.lora_alpha / config.r == 24 / 3
    assert not config.use_rslora  # its scale would be alpha / sqrt(r)
    assert set(config.target_modules) == {"q_proj"}
    assert config.base_model_name_or_path == "some/model"


def test_both_files_may_be_read_by_whoever_may_read_new_files(tmp_path: Path):
    """Went wrong once: the weights were for their owner alone, and a server under another user could not load them."""
    folder = save(tmp_path / "a")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (*folder.iterdir(), tmp_path / "plain")}
    assert len(modes) == 1


def test_equal_adapters_are_equal_files(tmp_path: Path):
    first, second = save(tmp_path / "a"), save(tmp_path / "b")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_a_folder_without_adapter_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"adapter_model.safetensors is missing"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 40, -4])
def test_a_damaged_adapter_is_refused_by_name(tmp_path: Path, size: int):
    file = save(tmp_path / "a") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"a/adapter_model\.safetensors is damaged"):
        load_adapter(tmp_path / "a")
