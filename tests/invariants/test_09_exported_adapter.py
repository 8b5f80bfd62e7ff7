"""Invariant 9: an exported adapter loads with PEFT and gives equal logits; a key too many or too few is an error."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import fedsdr
from fedsdr.client.fdlora import fuse
from fedsdr.config import Settings
from fedsdr.evaluate import personal
from fedsdr.federation import client_app
from fedsdr.federation.export import export_round
from fedsdr.federation.run import evaluate_round
from fedsdr.model.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.progress import here
from fedsdr.rows import Adapter
from fedsdr.run_folder import RunFolder
from fedsdr.storage import read_json

IDS = torch.arange(3, 63).reshape(3, 20)


def plain_model(settings: Settings, folder: Path | str = "") -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        folder or settings.model.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits_of(model: LoraModel, active: Sequence[Adapter] = ("shared",)) -> Tensor:
    with model.inference(active):
        return model.base.model(IDS).logits


def same(ours: Tensor, theirs: Tensor) -> None:
    # Not to the last bit: PEFT multiplies B A h by the scale where fedsdr multiplies B.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def train(run_settings: Callable[..., Settings]) -> Callable[[str], Settings]:
    """Run a method; return the settings of a finished run whose adapters move the logits."""

    def finish(method: str) -> Settings:
        moving = {"lora.alpha": 7.0, "client.learning_rate": 0.03, "client.schedule": "constant"}
        settings = run_settings(**{"method": method, **moving})
        fedsdr.run(settings)
        return settings

    return finish


@pytest.mark.parametrize(
    ("method", "client"), [("fedsdr", ""), ("fedsdr", "math"), ("fedala", "math"), ("fdlora", "math")]
)
def test_exported_model_loads_with_peft_and_gives_equal_logits(
    train: Callable[[str], Settings], method: str, client: str, tmp_path: Path
) -> None:
    trained = train(method)
    folder = Path(trained.run.dir)
    base = load_base(trained.model)
    model = LoraModel(base, trained.lora)
    model.load("shared", load_adapter(folder / "server/round-0002"))
    model.load("private", load_adapter(folder / "clients/math/round-0002"))
    if method == "fdlora":
        found = read_json(folder / "clients/math/evaluation/round-0002-fusion.json")
        fused = fuse(model.state("shared"), model.state("private"), found["shared"], found["private"])
        model.load("private", fused)
    personalised: Sequence[Adapter] = ("shared", "private") if method == "fedsdr" else ("private",)
    ours = logits_of(model, personalised if client else ("shared",))
    plain = plain_model(trained)
    with torch.no_grad():
        assert (plain(IDS).logits - ours).abs().max() > 0.1  # the adapter does something

    export_round(folder, tmp_path / "adapter", None, client, merged=False)
    export_round(folder, tmp_path / "merged", None, client, merged=True)
    with torch.no_grad():
        same(ours, PeftModel.from_pretrained(plain, tmp_path / "adapter")(IDS).logits)
        same(ours, plain_model(trained, tmp_path / "merged")(IDS).logits)
    # The folder of a round is what is exported.
    for file in (WEIGHTS, CONFIG)[: 1 if client else 2]:
        kept = (folder / "server/round-0002" / file).read_bytes()
        assert ((tmp_path / "adapter" / file).read_bytes() == kept) == (not client)


def test_a_model_that_weighs_each_prompt_anew_is_not_exported(
    train: Callable[[str], Settings], tmp_path: Path
) -> None:
    folder = Path(train("feddpa").run.dir)
    with pytest.raises(fedsdr.UserError, match="for each prompt, which no single adapter can do"):
        export_round(folder, tmp_path / "adapter", None, "math", merged=False)


def test_a_fusion_that_was_not_searched_is_not_exported(
    train: Callable[[str], Settings], tmp_path: Path
) -> None:
    """It is found when a round is evaluated."""
    folder = Path(train("fdlora").run.dir)
    with pytest.raises(fedsdr.UserError, match=r"`fedsdr evaluate .* --round 1` first"):
        export_round(folder, tmp_path / "adapter", 1, "math", merged=False)
    evaluate_round(folder, 1)
    export_round(folder, tmp_path / "adapter", 1, "math", merged=False)


@pytest.mark.parametrize(
    ("aggregation", "client"),
    [("flora", ""), ("flora", "math"), ("fedex", ""), ("fedex", "math"), ("fedsa", "math")],
)
def test_adapter_of_a_aggregation_that_adds_or_keeps_something_is_the_whole_model(
    run_settings: Callable[..., Settings], aggregation: str, client: str, tmp_path: Path
) -> None:
    """The clients' scores equal those of the files in PEFT, including private adapter and residual."""
    settings = run_settings(**{"method": "fedsdr", "server.aggregation": aggregation, "lora.alpha": 7.0,
                               "client.learning_rate": 0.03, "client.schedule": "constant"})  # fmt: skip
    scored: dict[tuple[str, tuple[str, ...]], Tensor] = {}
    evaluate = client_app.evaluate

    def spy(model: LoraModel, active: Sequence[Adapter], *rest: Any, **more: Any) -> Any:
        scored[here(), tuple(active)] = logits_of(model, active)
        return evaluate(model, active, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_app, "evaluate", spy)
        patch.setattr(personal, "evaluate", spy)
        fedsdr.run(settings)
    name = "personalised" if client else "global"
    active = ("shared", "private") if client else ("shared",)
    ours = scored[f"math, {name} model", active]
    export_round(Path(settings.run.dir), tmp_path / "adapter", None, client, merged=False)
    export_round(Path(settings.run.dir), tmp_path / "merged", None, client, merged=True)
    with torch.no_grad():
        plain = plain_model(settings)
        assert (plain(IDS).logits - ours).abs().max() > 0.1
        same(ours, PeftModel.from_pretrained(plain, tmp_path / "adapter")(IDS).logits)
        same(ours, plain_model(settings, tmp_path / "merged")(IDS).logits)
        if not client:  # the round's own folder is the global model
            folder = RunFolder(settings.run.dir).round(2)
            same(ours, PeftModel.from_pretrained(plain_model(settings), folder)(IDS).logits)


def test_adapter_saved_by_peft_loads_here(run_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = run_settings(**{"lora.alpha": 7.0, "lora.targets": ["q_proj", "down_proj"]})
    config = LoraConfig(r=4, lora_alpha=7.0, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peft = get_peft_model(plain_model(settings), config).eval()
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    peft.save_pretrained(tmp_path)
    base = load_base(settings.model)
    model = LoraModel(base, settings.lora)
    model.load("shared", load_adapter(tmp_path))
    with torch.no_grad():
        same(logits_of(model), peft(IDS).logits)


def test_what_is_saved_is_loaded_again_to_the_bit(
    tiny_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = tiny_settings()
    model = LoraModel(load_base(settings.model), settings.lora)
    model.initialise("shared", 0)
    save_adapter(tmp_path, model.state("shared"), settings.lora, "tiny")
    model.load("private", load_adapter(tmp_path))
    shared, private = model.state("shared"), model.state("private")
    assert all(torch.equal(shared[key], private[key]) for key in shared)


def test_missing_extra_and_misshapen_keys_are_errors(tiny_settings: Callable[..., Settings]) -> None:
    settings = tiny_settings()
    model = LoraModel(load_base(settings.model), settings.lora)
    model.initialise("shared", 0)
    state = model.state("shared")
    key = next(iter(state))
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    for wrong, message in (
        ({name: value for name, value in zeros.items() if name != key}, f"1 missing, first {key}"),
        (zeros | {"base_model.model.lm_head.lora_A.weight": zeros[key]}, "1 unknown, first .*lm_head.lora_A"),
        (zeros | {key: torch.zeros(8, 64)}, r"shape \(8, 64\), expected \(4, 64\); is lora.rank the same"),
    ):
        with pytest.raises(fedsdr.UserError, match=message):
            model.load("shared", wrong)
        assert all(torch.equal(model.state("shared")[name], state[name]) for name in state)
