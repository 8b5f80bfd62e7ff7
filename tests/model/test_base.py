import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from fedsdr.config import Model
from fedsdr.errors import UserError
from fedsdr.model.base import (
    Base,
    built_in_folder,
    choose_dtype,
    list_models,
    load_base,
    public_name,
    resolve_model,
)
from fedsdr.model.tiny import build_tiny

FLOAT32 = {"dtype": "float32"}


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be spoiled."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def load(folder: Path | str, **settings: str) -> Base:
    return load_base(Model(name=str(folder), **FLOAT32 | settings))


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_tiny_has_equal_bytes_for_equal_seeds_and_leaves_random_state_alone(
    tiny_folder: Path, tmp_path: Path
):
    state = torch.random.get_rng_state()
    build_tiny(tmp_path / "same")
    build_tiny(tmp_path / "other", seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    for file in tiny_folder.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("same", "other")]
    assert weights[0] != weights[1]


def test_the_base_is_frozen_and_in_eval_mode(tiny_base: Base):
    assert not tiny_base.model.training
    assert not any(parameter.requires_grad for parameter in tiny_base.model.parameters())
    assert {parameter.dtype for parameter in tiny_base.model.parameters()} == {torch.float32}


def test_identity_follows_config_and_tokenizer_but_not_who_wrote_them_or_when(tiny_base: Base, copy: Path):
    """The same weights compute something else where the config differs, and see other tokens where the
    tokenizer does. The release of transformers that wrote a folder changes neither."""
    edit_json(copy / "config.json", transformers_version="0.0.1")
    os.utime(copy / "tokenizer.json", (0, 0))
    assert load(copy).identity == tiny_base.identity
    edit_json(copy / "config.json", rms_norm_eps=1e-3)
    other_config = load(copy).identity
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    edit_json(copy / "tokenizer.json", model=tokenizer["model"])
    assert len({tiny_base.identity, other_config, load(copy).identity}) == 3


def test_identity_follows_weights_and_template_but_not_the_place(tiny_base: Base, copy: Path):
    assert load(copy).identity == tiny_base.identity
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "helper"))
    retold = load(copy).identity
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert len({tiny_base.identity, retold, load(copy).identity}) == 3


def test_what_ends_a_turn_stops_generation_even_where_the_model_names_another_token(copy: Path):
    """As Qwen's base models: eos is <|endoftext|> (here <|pad|>), but turns end in <|im_end|>."""
    edit_json(copy / "tokenizer_config.json", eos_token="<|pad|>", pad_token=None)
    edit_json(
        copy / "generation_config.json", eos_token_id=0, pad_token_id=None, temperature=0.6, do_sample=True
    )
    edit_json(copy / "config.json", eos_token_id=0, pad_token_id=None)
    base = load(copy)
    assert base.model.generation_config.eos_token_id == [0, 2]
    assert not base.model.generation_config.do_sample  # the model's own sampling is not fedsdr's
    assert base.tokenizer.pad_token == "<|im_end|>"
    assert len(base.tokenizer) == base.model.get_input_embeddings().num_embeddings


def test_a_model_without_a_chat_template_is_refused(copy: Path):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"chat_template in tokenizer_config.json.*instruct model"):
        load(copy)


def test_a_template_that_never_ends_a_turn_is_refused(copy: Path):
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", ""))
    with pytest.raises(UserError, match="no special token"):
        load(copy)


@pytest.mark.parametrize(
    "build",
    [
        lambda sizes: Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=1.0)),
        lambda sizes: GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=2.0)),
    ],
    ids=["capped", "scaled"],
)
def test_a_model_whose_logits_are_not_its_plain_head_is_refused(copy: Path, build: Callable):
    sizes = {
        "vocab_size": 448,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    build(sizes).save_pretrained(copy)
    with pytest.raises(UserError, match=r"caps or scales|neither caps on scores"):
        load(copy)


def test_conversations_longer_than_the_model_was_built_for_are_refused(tiny_folder: Path):
    load_base(Model(name=str(tiny_folder), max_length=2048))
    with pytest.raises(UserError, match=r"model\.max_length = 2049: .* at most 2048"):
        load_base(Model(name=str(tiny_folder), max_length=2049))


def test_missing_weights_are_an_error_and_not_random(copy: Path):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy)


def test_a_torn_weight_file_is_a_user_error(copy: Path):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no-such-model", "no such folder"),
        ("/no/such/model.gguf", "no such file"),
        ("nobody/nothing", "nobody/nothing is neither built in nor a folder.*a folder.*tiny$"),
        ("my-own-model", "my-own-model is neither built in nor a folder.*tiny$"),
    ],
)
def test_a_name_that_leads_nowhere_is_named_with_what_would_do(name: str, message: str):
    with pytest.raises(UserError, match=f"(?s){message}"):
        load(name)


@pytest.mark.parametrize("name", ["smollm2-135m-instuct", "SmolLM2-135M-Instruct"])
def test_a_misspelt_built_in_name_is_suggested_before_the_hub_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """Six tries without a network took 25 seconds."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match=f"{name}: did you mean the built-in smollm2-135m-instruct"):
        load(name)


def test_a_folder_that_is_no_model_is_named_with_what_it_holds(tmp_path: Path):
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(UserError, match=r"no config\.json \(it holds adapter_config\.json\)"):
        load(tmp_path)


def test_a_hub_model_is_read_from_the_hubs_cache_without_network(
    tiny_base: Base, tiny_folder: Path, tmp_path: Path
):
    """In its own process, since the hub library reads the location of its folder only once."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = (
        "from fedsdr.config import Model; from fedsdr.model.base import load_base;"
        "base = load_base(Model(name='someone/tiny')); print(base.identity, base.origin)"
    )
    words = run_python(program, HF_HOME=str(tmp_path)).split()
    assert words == [tiny_base.identity, "someone/tiny"]


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_base_has_nearly_the_gradients_of_the_plain_one(tiny_base: Base, bits: str, dtype: str):
    """After a forward pass without gradients too: on processors with avx512_bf16, bitsandbytes' 4-bit
    layers then take a path without a backward pass, and gradients come out wrong without an error."""
    pytest.importorskip("bitsandbytes")
    tokens = torch.arange(3, 35)[None]

    def gradient(base: Base) -> torch.Tensor:
        with torch.no_grad():
            base.model(tokens)
        inputs = base.model.get_input_embeddings()(tokens).requires_grad_()
        base.model(inputs_embeds=inputs, labels=tokens).loss.backward()
        return inputs.grad.float().flatten()

    quantised = load(tiny_base.model.name_or_path, quantization=bits, dtype=dtype)
    assert quantised.identity == f"{tiny_base.identity}-{bits}"
    assert type(quantised.model.get_output_embeddings()) is torch.nn.Linear
    # 4-bit codes of random weights are about 10 % off in each of 14 layers.
    assert torch.cosine_similarity(gradient(quantised), gradient(tiny_base), dim=0) > 0.9


def test_quantization_without_bitsandbytes_says_what_to_install(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fedsdr.model.quantization.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fedsdr\[quant\]'"):
        load(tiny_folder, quantization="4bit")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("flags : fpu avx512f avx512_bf16", torch.bfloat16),
        ("Features : fp asimd bf16", torch.bfloat16),
        ("flags : fpu avx2", torch.float32),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_has_it(
    flags: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: flags)
    assert choose_dtype(torch.device("cpu")) is dtype


def test_resolved_settings_are_those_that_the_base_is_loaded_by(tiny_folder: Path):
    settings = Model(name=str(tiny_folder))
    resolved = resolve_model(settings)
    base = load_base(settings)
    assert resolved.dtype == str(base.dtype).removeprefix("torch.")
    assert resolved.attention == base.model.config._attn_implementation
    assert resolved.name == settings.name
    assert resolve_model(resolved) == resolved
    chosen = Model(name="no/such", dtype="float16", attention="sdpa", gradient_checkpointing="off")
    assert resolve_model(chosen) == chosen  # nothing is loaded for it


def test_a_built_in_model_is_known_to_others_by_its_hub_id():
    """PEFT and vLLM know nothing of fedsdr's names."""
    assert public_name("smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [public_name(name) for name in ("tiny", "./my", "a/b")] == ["tiny", "./my", "a/b"]


def test_built_in_models_are_listed_without_torch_and_known_as_cached_once_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = (
        "import sys; from fedsdr.model.base import list_models;"
        "print(*[row['cached'] for row in list_models()], 'torch' in sys.modules)"
    )
    assert run_python(program, FEDSDR_CACHE=str(tmp_path)).split() == ["False", "False", "False"]
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path))
    load("tiny")
    assert {row["name"]: row["cached"] for row in list_models()} == {
        "smollm2-135m-instruct": False,
        "tiny": True,
    }
    folders = {row["name"]: row["folder"] for row in list_models()}
    assert folders["tiny"] == str(built_in_folder("tiny"))
    AutoModelForCausalLM.from_pretrained(folders["tiny"])


def run_python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.real_model
class TestSmolLM2:
    def test_it_speaks_and_ends_its_turn(self, real_model: Model):
        base = load_base(real_model)
        turns = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
        answer = base.model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
        assert "Paris" in base.tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
        assert answer[-1] == base.tokenizer.convert_tokens_to_ids("<|im_end|>") == 2

    def test_digits_are_split_before_white_space_as_in_its_training(self, real_model: Model):
        base = load_base(real_model)
        tokens = base.tokenizer.convert_ids_to_tokens(base.tokenizer("so:\n\n12.").input_ids)
        assert tokens == ["so", ":", "ĊĊ", "1", "2", "."]

    def test_its_float32_weights_are_the_ones_that_the_gguf_file_stands_for(self, real_model: Model):
        """Few of the codes' values fit bfloat16: were the cache kept in it, all would."""
        folder = load_base(real_model).model.name_or_path
        weight = AutoModelForCausalLM.from_pretrained(folder).model.layers[0].mlp.up_proj.weight
        assert weight.dtype is torch.float32
        assert (weight == weight.bfloat16().float()).float().mean() < 0.5


def test_the_fingerprint_names_all_that_decides_last_bits(tiny_base: Base, monkeypatch: pytest.MonkeyPatch):
    """Cached rewritings and scores are found by it: what it leaves out would serve another machine's answers."""
    plain = tiny_base.fingerprint
    assert tiny_base.fingerprint == plain
    for changed in (replace(tiny_base, identity="other"), replace(tiny_base, dtype=torch.bfloat16)):
        assert changed.fingerprint != plain
    for place, value in (
        ("torch.get_num_threads", lambda: 77),
        ("torch.backends.cpu.get_cpu_capability", lambda: "another"),
        ("torch.__version__", "9.9"),
        ("transformers.__version__", "9.9"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, value)
            assert tiny_base.fingerprint != plain, place
    with monkeypatch.context() as patch:
        patch.setattr(tiny_base.model.config, "_attn_implementation_internal", "eager")
        assert tiny_base.fingerprint != plain
