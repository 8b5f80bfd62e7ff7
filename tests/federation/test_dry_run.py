"""A dry run tells what a run would take: bytes exactly, the rest as far as it can be counted, and runs nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fedsdr
from fedsdr.client.update import local_update
from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.federation.estimate import Client, Part, _training, duration, measure_speed, memory, sizes_of
from fedsdr.methods import AGGREGATIONS, METHODS, allowed_with
from fedsdr.model.adapters import Adapters
from fedsdr.model.base import load_base
from fedsdr.model.meta import load_skeleton
from fedsdr.storage import read_lines

MakeSettings = Callable[..., Settings]
SMALL_RUN = {
    "data.domains": ["finance", "general", "math"],
    "server.num_rounds": 2,
    "server.clients_per_round": 2,
    "eval.max_new_tokens": 2,
    "distill.max_new_tokens": 2,
}
MESSAGES = [
    *({"method": name} for name in ("fedit", "fedsdr", "local-only")),
    {"method": "centralised", "server.clients_per_round": 0},
    {"client.drift_correction": "scaffold", "client.optimizer": "sgd", "client.max_grad_norm": 0},
    *(
        {"method": "fedsdr", "server.aggregation": name, "communication.dtype": dtype}
        for name, row in AGGREGATIONS.items()
        if row.ranks != "several"  # they send as many as they have
        for dtype in allowed_with(row)["communication.dtype"]
    ),
]


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 GFLOP/s, not measured: it takes its time."""
    monkeypatch.setattr("fedsdr.federation.estimate.measure_speed", lambda *args: 1e9)


def test_speed_is_that_of_a_product():
    assert 1e6 < measure_speed(8, 64, 64, torch.float32, torch.device("cpu")) < 1e15


@pytest.mark.parametrize("chosen", MESSAGES, ids=lambda chosen: "-".join(map(str, chosen.values())))
def test_the_bytes_are_those_of_the_run(tiny_settings: MakeSettings, chosen: dict[str, Any]):
    settings = tiny_settings(**{**SMALL_RUN, "eval.rewritings": False, **chosen})
    estimate = fedsdr.dry_run(settings)
    events = read_lines(fedsdr.run(settings).folder / "metrics.jsonl")
    assert {event["num_bytes_up"] for event in events if event["event"] == "train"} == {estimate["up"]}
    down = {event["round"]: event["num_bytes_down"] for event in events if event["event"] == "round"}
    assert down[2] == estimate["down"]
    both_ways = sum(e["num_bytes_up"] + down[e["round"]] for e in events if e["event"] == "train")
    assert estimate["all rounds"] == both_ways


def test_nothing_is_loaded_and_nothing_written(tiny_settings: MakeSettings, tmp_path: Path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a dry run loads no weights")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(**{**SMALL_RUN, "run.dir": "runs/new"})
    estimate = fedsdr.dry_run(settings)
    assert (estimate["peak"] > 0, estimate["in all"] > 0, estimate.unknown) == (True, True, ())
    assert list(tmp_path.iterdir()) == []


def test_weights_and_adapters_weigh_what_they_weigh_when_loaded(tiny_settings: MakeSettings):
    settings = tiny_settings(method="fedsdr")
    estimate = fedsdr.dry_run(settings)
    base = load_base(settings.model)
    assert estimate["base"] == sum(value.nbytes for value in base.model.parameters())
    adapters = Adapters(base.model, settings.lora)
    both = adapters.parameters(("shared", "private"))
    assert estimate["adapters"] == sum(value.nbytes for value in both)
    # Of fedsdr one adapter learns at a time: its gradient, and AdamW's two moments.
    assert estimate["optimizer"] == 3 * estimate["adapters"] / 2
    assert fedsdr.dry_run(tiny_settings(method="fedsdr-joint"))["optimizer"] == 3 * estimate["adapters"]


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_operations_of_training_are_those_that_torch_counts(tiny_settings: MakeSettings, checkpointing: str):
    """Attention is left out; the first layer's input, which wants no gradient, is not told apart."""
    settings = tiny_settings(
        **{
            "method": "fedit",
            "model.checkpointing": checkpointing,
            "client.local_steps": 3,
            "server.num_rounds": 1,
        }
    )
    texts = [Conversation(tuple(range(3, 67)), 32)] * 4
    skeleton, _ = load_skeleton(settings.model)
    counted = _training(settings, sizes_of(skeleton, settings.lora), [Client(texts, texts)])
    base = load_base(settings.model.model_copy(update={"attention": "eager"}))
    adapters = Adapters(base.model, settings.lora)
    adapters.initialise("shared", 0)
    with FlopCounterMode(display=False) as counter:
        local_update(base, adapters, METHODS["fedit"], {"raw": texts}, settings.client, 1e-3, 0, "test")
    # Two products of 2 T T width in 2 layers, of 2 rows; twice as many backward, and forward again.
    attention = 3 * 2 * 2 * (2 * 2 * 64 * 64 * 64) * (4 if checkpointing == "on" else 3)
    assert counted + attention == pytest.approx(counter.get_total_flops(), rel=0.08)


def test_four_bits_checkpointing_and_small_batches_need_less(tiny_settings: MakeSettings):
    texts = [Conversation((0,) * 256, 128)] * 8

    def parts(**chosen: Any) -> dict[str, float]:
        settings = tiny_settings(**{"model.attention": "sdpa", "model.checkpointing": "off", **chosen})
        sizes = sizes_of(load_skeleton(settings.model)[0], settings.lora)
        return {p.name: p.amount for p in memory(settings, sizes, [Client(texts, texts)], is_gpu=False)}

    plain = parts()
    # The tiny model has 2 layers of 2 (64 64 + 64 32 + 64 * 128) + 64 * 128 weights, in float32 four bytes each.
    num_linear = 2 * (2 * (64 * 64 + 64 * 32 + 64 * 128) + 64 * 128)
    saved = plain["base"] - parts(**{"model.quantization": "4bit"})["base"]
    assert saved == pytest.approx(num_linear * (4 - 0.516), rel=1e-3)
    assert parts(**{"model.checkpointing": "on"})["states of a step"] < plain["states of a step"]
    assert parts(**{"client.batch_size": 1})["states of a step"] < plain["states of a step"]
    assert parts(**{"eval.batch_size": 1, "distill.batch_size": 1})["generation"] < plain["generation"]
    assert plain["peak"] == sum(plain.values()) - plain["peak"] - min(
        plain["optimizer"] + plain["states of a step"], plain["generation"]
    )


def test_time_grows_with_steps_rounds_and_what_is_rewritten(tiny_settings: MakeSettings):
    texts = [Conversation((0,) * 64, 32)] * 4

    def seconds(**chosen: Any) -> dict[str, float]:
        settings = tiny_settings(
            **{"method": "fedit", "eval.rewritings": False, "distill.max_new_tokens": 64, **chosen}
        )
        sizes = sizes_of(load_skeleton(settings.model)[0], settings.lora)
        parts: list[Part] = duration(settings, sizes, [Client(texts, texts)], torch.device("cpu"))
        return {part.name: part.amount for part in parts}

    plain = seconds()
    assert seconds(**{"client.local_steps": 4})["training"] == pytest.approx(2 * plain["training"])
    assert seconds(**{"server.num_rounds": 6})["training"] == pytest.approx(2 * plain["training"])
    # Base and last round; with one more in between, three models instead of two.
    every = seconds(**{"server.num_rounds": 2, "eval.every": 1})["evaluation"]
    assert every == pytest.approx(1.5 * seconds(**{"server.num_rounds": 2})["evaluation"])
    # Before round 1 every client takes one stage more: two steps beside the two of each of three rounds.
    before = seconds(method="fdlora")["training"]
    assert before == pytest.approx(plain["training"] * (1 + 1 / 3))
    assert plain["rewriting"] == 0
    train_and_test = seconds(method="fedsd", **{"eval.rewritings": True})["rewriting"]
    assert seconds(method="fedsd")["rewriting"] == pytest.approx(train_and_test / 2)
    by_server = {"distill.url": "http://localhost:1/v1", "distill.served_name": "x"}
    assert seconds(method="fedsd", **by_server)["rewriting"] == 0


def test_what_is_on_the_hub_and_out_of_reach_is_named_and_the_rest_is_checked(
    tiny_folder: Path, tmp_path: Path
):
    pytest.importorskip("datasets")  # offline in tests
    law = tmp_path / "law.jsonl"
    law.write_text("".join(json.dumps({"instruction": f"{n}?", "output": "Yes."}) + "\n" for n in range(20)))
    recipe = tmp_path / "hub.toml"
    recipe.write_text(
        '[data]\nnum_train = 10\nnum_test = 2\n[[data.sources]]\ndomain = "far"\npreset = "alpaca"\n'
        f'[[data.sources]]\ndomain = "law"\ntrain = "{law}"\n'
    )
    here = [f"model.name={tiny_folder}", "run.threads=1"]
    estimate = fedsdr.dry_run(fedsdr.load_settings(recipe, here))
    assert estimate.known[0] == "domain law: 10 training examples"
    assert "domain far: its columns could not be checked" in estimate.unknown[0]
    assert "tatsu-lab/alpaca" in estimate.unknown[0]
    assert "lengths" in estimate.unknown[1]
    # Two clients, one for each domain: 10 steps or not, the bytes are known.
    assert estimate["all rounds"] == 3 * 2 * (estimate["up"] + estimate["down"])
    nothing = fedsdr.dry_run(fedsdr.load_settings(recipe, ["model.name=nobody/nothing"]))
    assert nothing.parts == ()
    assert "nobody/nothing: its configuration cannot be had" in nothing.unknown[-1]

    law.write_text('{"question": "1?", "output": "Yes."}\n')
    with pytest.raises(UserError, match=r"law.jsonl:1: instruction is missing"):
        fedsdr.dry_run(fedsdr.load_settings(recipe, here))


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"server.clients_per_round": 9}, "there are 3 clients"),
        ({"model.max_length": 4096}, "at most 2048 tokens"),
        ({"model.max_length": 16}, "leaves no room for a response"),
        ({"lora.targets": ["nose"]}, "q_proj"),
        ({"model.name": "/no/such/folder"}, "no such folder"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_the_run_would_be_refused_for_is_refused(
    tiny_settings: MakeSettings, chosen: dict[str, Any], says: str
):
    with pytest.raises(UserError, match=says):
        fedsdr.dry_run(tiny_settings(**{**SMALL_RUN, **chosen}))
