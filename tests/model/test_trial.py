"""The trial of a loaded model, and its report at the start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import fedsdr
from fedsdr.config import Settings
from fedsdr.data.conversation import encode, encode_prompt
from fedsdr.data.examples import Example
from fedsdr.errors import UserError
from fedsdr.federation.environment import longest_asked
from fedsdr.model import generation
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base, load_base
from fedsdr.model.tiny import CHAT_TEMPLATE
from fedsdr.model.trial import try_out
from fedsdr.run_folder import read_settings

IDS = {"vocab_size": 448, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
BRIEF = {"data.domains": ["math"], "server.num_rounds": 1, "data.num_train": 2}


@pytest.fixture
def made(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a random model of an architecture, with the tiny model's tokenizer."""

    def make(kind: str, **config: object) -> Path:
        folder = tmp_path / kind
        shutil.copytree(tiny_folder, folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **IDS, **PLAIN, **config))
        model.save_pretrained(folder)
        return folder

    return make


def test_a_short_sliding_window_chooses_eager_before_the_run_begins(
    made: Callable[..., Path],
    tiny_settings: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
):
    settings = tiny_settings(**{"model.name": made("mistral", sliding_window=64), **BRIEF})
    grouped = settings.model.model_copy(update={"attention": "grouped"})
    with pytest.raises(UserError, match=r"window of 64 tokens is shorter than 776"):
        fedsdr.run(settings.model_copy(update={"model": grouped}))
    assert not (Path(settings.run.dir) / "config.toml").exists()
    fedsdr.run(settings)
    assert "window of 64 tokens is shorter" in capsys.readouterr().err
    assert read_settings(Path(settings.run.dir)).model.attention == "eager"


def test_a_window_that_is_long_enough_keeps_our_attention(
    made: Callable[..., Path], tiny_settings: Callable[..., Settings]
):
    settings = tiny_settings(**BRIEF)
    window = -(-longest_asked(settings) // 16) * 16
    settings = tiny_settings(**{"model.name": made("mistral", sliding_window=window), **BRIEF})
    fedsdr.run(settings)
    assert read_settings(Path(settings.run.dir)).model.attention == "grouped"


def test_weights_without_adapters_are_named_at_start(
    made: Callable[..., Path],
    tiny_settings: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
):
    folder = made("mixtral", num_local_experts=4)
    fedsdr.run(tiny_settings(**{"model.name": folder, **BRIEF}))
    shown = " ".join(capsys.readouterr().err.split())
    # 2 layers: 4 experts of 3 matrices 64 by 128, and a router of 4 rows
    without, total = 2 * (4 * 3 * 64 * 128 + 4 * 64), 0
    for weight in load_base(tiny_settings(**{"model.name": folder}).model).model.parameters():
        total += weight.numel()
    assert "adapters on 8 layers: q_proj, k_proj, v_proj, o_proj" in shown
    assert (
        f"no adapters on experts.gate_up_proj, experts.down_proj, gate.weight: {without / total:.0%}" in shown
    )


def test_a_model_all_of_whose_layers_have_adapters_names_none_without(tiny_base: Base, tiny_settings):
    model = LoraModel(load_base(tiny_settings().model), tiny_settings().lora)
    (line,) = model.describe()
    assert line == "adapters on 14 layers: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def test_layers_named_as_experts_were_get_no_adapter_beside_fused_experts(
    made: Callable[..., Path], tiny_settings: Callable[..., Settings]
):
    """PEFT takes a shared expert's `gate_proj` for the experts' own, and loads no adapter for it."""
    folder = made("qwen2_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                  shared_expert_intermediate_size=32)  # fmt: skip
    with pytest.raises(UserError, match="gate_proj matches no linear layer that can have an adapter"):
        fedsdr.run(tiny_settings(**{"model.name": folder, "lora.targets": ["gate_proj"], **BRIEF}))


def test_a_trial_leaves_adapters_and_random_state_as_they_were(tiny_settings: Callable[..., Settings]):
    model = LoraModel(load_base(tiny_settings().model), tiny_settings(**{"lora.dropout": 0.1}).lora)
    model.initialise("shared", 0)
    before = model.state("shared")
    state = torch.random.get_rng_state()
    try_out("tiny", model)
    assert torch.equal(torch.random.get_rng_state(), state)
    after = model.state("shared")
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(parameter.grad is None for parameter in model.parameters(("shared", "private")))
    assert not any(parameter.requires_grad for parameter in model.parameters(("shared", "private")))


@pytest.mark.parametrize("attention", ["grouped", "eager"])
def test_answers_that_depend_on_padding_are_refused(
    tiny_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, attention: str
):
    """As those of models that keep a state over padding."""
    model = LoraModel(load_base(tiny_settings(**{"model.attention": attention}).model), tiny_settings().lora)
    kind = generation.Rows if attention == "grouped" else generation.Padded
    step = kind.step

    def wrong(batch: Any, *args: Any) -> None:
        step(batch, *args)
        batch.states = batch.states + 10

    monkeypatch.setattr(kind, "step", wrong)
    with pytest.raises(UserError, match=r"model.name = tiny: this model \(llama\) gives other answers when"):
        try_out("tiny", model)


def test_a_model_whose_code_fails_is_refused_with_its_own_words(
    tiny_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
):
    model = LoraModel(load_base(tiny_settings().model), tiny_settings().lora)

    def fails(**_: object) -> None:
        raise TypeError("can only concatenate tuple")

    monkeypatch.setattr(model.base.model, "get_decoder", lambda: fails)
    with pytest.raises(UserError, match=r"does not support this model \(llama\): TypeError: can only concat"):
        try_out("tiny", model)


def test_a_template_that_changed_is_refused_on_resume(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Callable[..., Settings]
):
    """So is a special token that it writes."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHAT_TEMPLATE)
    settings = tiny_settings(**{"model.name": folder, **BRIEF})
    fedsdr.run(settings)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|pad|>"}))
    fedsdr.federation.model_cache.load_model.cache_clear()
    with pytest.raises(UserError, match="model identity was"):
        fedsdr.resume(settings.run.dir)


THINK = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def test_a_prompt_that_opens_thinking_is_taught_with_its_end(
    tiny_folder: Path, tmp_path: Path, tiny_settings: Callable[..., Settings]
):
    folder = tmp_path / "think"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(THINK)
    base = load_base(tiny_settings(**{"model.name": folder}).model)
    example = Example("Where does Oslo lie?", "In Norway.", "x")
    text = encode(base.tokenizer, example, example.response, 384)
    whole = base.tokenizer.decode(text.ids)
    assert whole.endswith("assistant\n<think>\n\n</think>\n\nIn Norway.<|im_end|>\n")
    assert base.tokenizer.decode(text.ids[: text.prompt_length]).endswith("<think>\n")

    prompt = encode_prompt(base.tokenizer, [{"role": "user", "content": "Where does Oslo lie?"}])
    for written, read in (
        ("A place.\n</think>\n\nIn Norway.", "In Norway."),
        ("A place, but", "<think>\nA place, but"),
    ):
        ids = base.tokenizer(written).input_ids
        assert generation._text(base.tokenizer, prompt, ids) == read
