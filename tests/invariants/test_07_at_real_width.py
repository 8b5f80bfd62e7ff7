"""Invariant 7 at SmolLM2's width and 200 tokens, on two threads: small shapes hide what threads do to sums."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fedsdr
from fedsdr.config import Settings

NUM_TOKENS = 200


@pytest.fixture(scope="module")
def wide_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers of SmolLM2-135M's shape, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def long_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "general").mkdir()
    for name, num in (("train", 4), ("test", 2)):
        lines = [
            json.dumps(
                {"instruction": f"Count from {i} in {name}.", "output": " ".join(map(str, range(i, i + 200)))}
            )
            for i in range(num)
        ]
        (root / f"general/{name}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_runs_at_real_width_repeat_and_resume_to_the_bit(
    dtype: str,
    run_settings: Callable[..., Settings],
    wide_folder: Path,
    long_examples: Path,
    results: Callable[[Path], Any],
    kill_at: Callable[..., AbstractContextManager[None]],
    fresh_process: Callable[[], None],
) -> None:
    def settings() -> Settings:
        return run_settings(
            **{"model.name": wide_folder, "model.dtype": dtype, "model.max_length": NUM_TOKENS,
               "data.root": long_examples, "data.domains": ["general"], "data.num_train": 4,
               "distill.max_new_tokens": 4, "run.threads": 2}
        )  # fmt: skip

    first = results(fedsdr.run(settings()).folder)
    assert torch.get_num_threads() == 2
    fresh_process()
    assert results(fedsdr.run(settings()).folder) == first
    fresh_process()
    killed = settings()
    with kill_at("fedsdr.federation.server_app.save_round", 3):
        fedsdr.run(killed)
    fresh_process()
    assert results(fedsdr.resume(Path(killed.run.dir)).folder) == first
