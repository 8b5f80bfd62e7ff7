"""A dry run estimates what a run would take, its messages exactly, and runs nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsdr
from fedsdr.compatibility import allowed_with
from fedsdr.config import Model, Settings
from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.federation.estimate import ClientTexts, memory, sizes_of
from fedsdr.methods import AGGREGATIONS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.meta import load_skeleton
from fedsdr.plugins import ORIGINS, PROGRAM
from fedsdr.rows import Aggregation
from fedsdr.run_folder import read_settings
from fedsdr.storage import read_lines

MakeSettings = Callable[..., Settings]
SMALL_RUN = {
    "data.domains": ["finance", "general", "math"],
    "server.num_rounds": 2,
    "server.clients_per_round": 2,
    "eval.max_new_tokens": 2,
    "distill.max_new_tokens": 2,
}
OVERSPENT = {
    "method": "fedit",
    "privacy.kind": "central",
    "privacy.source": "seeded",
    "privacy.max_epsilon": 0.1,
}
"""With the default noise, one round costs more."""
MESSAGES = [
    *({"method": name} for name in ("fedit", "fedsdr", "local-only")),
    {"method": "centralised", "server.clients_per_round": 0},
    {"client.drift_correction": "scaffold", "client.optimizer": "sgd", "client.max_grad_norm": 0},
    *(
        {"method": "fedsdr", "server.aggregation": name, "communication.dtype": dtype}
        for name, row in AGGREGATIONS.items()
        if row.ranks != "several"  # they send as many as they have
        for dtype in allowed_with("server.aggregation", name)["communication.dtype"]
    ),
]


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


def test_the_tokens_to_write_are_named(tiny_settings: MakeSettings):
    """As many responses as the run rewrites, and no more tokens than it may write."""
    chosen = {**SMALL_RUN, "method": "fedsdr", "distill.prompts": ("turn",), "eval.rewritings": True}
    settings = tiny_settings(**{**chosen, "server.num_rounds": 1})
    (line,) = [text for text in fedsdr.dry_run(settings).known if text.startswith("rewriting")]
    folder = fedsdr.run(settings).folder
    written = [row for path in folder.rglob("rewritings/turn-*.jsonl") for row in read_lines(path)]
    assert line.startswith(f"rewriting by this model: {len(written)} responses of ")
    assert f", {2 * len(written)} at most" in line
    assert sum(row["num_tokens"] for row in written) <= 2 * len(written)
    none = tiny_settings(**{**chosen, "method": "fedit", "eval.rewritings": False})
    assert not any(text.startswith("rewriting") for text in fedsdr.dry_run(none).known)


def test_nothing_is_loaded_and_nothing_written(tiny_settings: MakeSettings, tmp_path: Path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a dry run loads no weights")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(**{**SMALL_RUN, "run.dir": "runs/new"})
    estimate = fedsdr.dry_run(settings)
    assert (estimate["peak"] > 0, estimate["all rounds"] > 0, estimate.unknown) == (True, True, ())
    assert list(tmp_path.iterdir()) == []


def test_weights_and_adapters_weigh_what_they_weigh_when_loaded(tiny_settings: MakeSettings):
    settings = tiny_settings(method="fedsdr")
    estimate = fedsdr.dry_run(settings)
    base = load_base(settings.model)
    assert estimate["base"] == sum(value.nbytes for value in base.model.parameters())
    model = LoraModel(base, settings.lora)
    both = model.parameters(("shared", "private"))
    assert estimate["adapters"] == sum(value.nbytes for value in both)
    # Of fedsdr one adapter learns at a time: its gradient, and AdamW's two moments.
    assert estimate["optimizer"] == 3 * estimate["adapters"] / 2
    assert fedsdr.dry_run(tiny_settings(method="fedsdr-joint"))["optimizer"] == 3 * estimate["adapters"]


def test_four_bits_checkpointing_and_small_batches_need_less(tiny_settings: MakeSettings):
    texts = [Conversation((0,) * 256, 128)] * 8

    def parts(**chosen: Any) -> dict[str, float]:
        settings = tiny_settings(
            **{"model.attention": "sdpa", "model.gradient_checkpointing": "off", **chosen}
        )
        sizes = sizes_of(load_skeleton(settings.model)[0], settings.lora)
        return {
            p.name: p.num_bytes for p in memory(settings, sizes, [ClientTexts(texts, texts)], is_gpu=True)
        }

    plain = parts()
    # The tiny model has 2 layers of 2 (64 64 + 64 32 + 64 * 128) + 64 * 128 weights, in float32 four bytes each.
    num_linear = 2 * (2 * (64 * 64 + 64 * 32 + 64 * 128) + 64 * 128)
    saved = plain["base"] - parts(**{"model.quantization": "4bit"})["base"]
    assert saved == pytest.approx(num_linear * (4 - 0.516), rel=1e-3)
    assert parts(**{"model.gradient_checkpointing": "on"})["states of a step"] < plain["states of a step"]
    assert parts(**{"client.batch_size": 1})["states of a step"] < plain["states of a step"]
    assert parts(**{"eval.batch_size": 1, "distill.batch_size": 1})["generation"] < plain["generation"]
    assert plain["peak"] == sum(plain.values()) - plain["peak"] - min(
        plain["optimizer"] + plain["states of a step"], plain["generation"]
    )


RESULTS = Path(__file__).parents[2] / "docs" / "results"
MEASURED = ("demo-2026-11", "demo-again", "compare-demo/cell", "refute-demo/cell", "disputed/cell")


@pytest.mark.parametrize("run", MEASURED)
def test_memory_is_within_a_quarter_of_what_runs_with_smollm2_took(run: str, real_model: Model):
    (end,) = (event for event in read_lines(RESULTS / run / "metrics.jsonl") if event["event"] == "end")
    estimate = fedsdr.dry_run(read_settings(RESULTS / run))
    assert 0.75 < estimate["peak"] / end["peak_memory"] < 1.25


def test_no_memory_is_counted_for_rewritings_that_the_data_hold(tmp_path: Path, tiny_folder: Path):
    def generation(**more: str) -> float:
        path = tmp_path / "sums.jsonl"
        rows = [{"instruction": f"{n} and {n}?", "output": f"{2 * n}", **more} for n in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {
            "model.name": str(tiny_folder), "data.sources": [{"domain": "sums", "train": str(path)}],
            "run.threads": 1, "distill.max_new_tokens": 400, "eval.max_new_tokens": 2,
        }  # fmt: skip
        return fedsdr.dry_run(fedsdr.load_settings(None, values))["generation"]

    assert generation(distilled="That is a sum.") < generation() / 2


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
    assert "nobody/nothing: its configuration is unavailable" in nothing.unknown[-1]

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
        # Misspelt, it would leave all responses as they are: fedsd would train as fedit.
        ({"distill.only": ["math", "finanse"]}, "unknown domain 'finanse'; known: finance, general, math"),
        ({**OVERSPENT, "server.clients_per_round": 0}, "would spend epsilon"),
        ({**OVERSPENT, "eval.rewritings": False}, "would spend epsilon"),
        ({"run.engine": "simulation"}, "needs Ray"),
        ({"run.log_to": ["mlflow"]}, "requires mlflow"),
        ({"server.aggregation": "unregistered"}, "is not registered here"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_the_run_is_refused_for_is_refused(
    tiny_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], says: str
):
    monkeypatch.setattr("fedsdr.federation.preflight.find_spec", lambda name: None)  # no Ray here
    monkeypatch.setattr("fedsdr.loggers.find_spec", lambda name: None)
    monkeypatch.setitem(AGGREGATIONS, "unregistered", Aggregation("of another program", "none"))
    monkeypatch.setitem(ORIGINS, ("server.aggregation", "unregistered"), PROGRAM)
    settings = tiny_settings(**{**SMALL_RUN, **chosen})
    for begin in (fedsdr.run, fedsdr.dry_run):
        with pytest.raises(UserError, match=says):
            begin(settings)
