"""Cost and gain of runs, and a grid's arms at equal cost."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsdr.analysis.cost import Scaled, divergences, drift_prompts
from fedsdr.config import Settings
from fedsdr.distill.rehearsal import base_answers
from fedsdr.errors import UserError
from fedsdr.experiments.compare import compare
from fedsdr.experiments.frontier import ScoredRun, by_domain, domain_sheet, frontier, frontier_sheet
from fedsdr.experiments.measure import measure, measure_grid
from fedsdr.experiments.measured_run import MeasuredRun, Options
from fedsdr.federation import client_context
from fedsdr.federation.model_cache import load_model
from fedsdr.federation.run import run
from fedsdr.model.loss import mean_losses
from fedsdr.recipe import dump_settings
from fedsdr.run_folder import read_result, read_settings
from fedsdr.storage import read_json

QUICK = {
    "data.domains": ["finance", "math"],
    "data.num_train": 20,
    "data.num_test": 4,
    "data.validation": 0.2,
    "server.num_rounds": 2,
    "client.local_steps": 2,
    "client.learning_rate": 1e-2,
    "eval.max_new_tokens": 2,
    "eval.rewritings": False,
}


@pytest.fixture(scope="module", autouse=True)
def short_cost():
    """Few prompts and short answers: the tiny model answers at random, to the limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsdr.experiments.frontier_scores.LONGEST_ANSWER", 8)
        patch.setattr("fedsdr.experiments.frontier_scores.drift_prompts", lambda: drift_prompts()[:6])
        patch.setattr("fedsdr.analysis.frontier.NUM_DRAWS", 50)
        yield
    client_context.close_clients()
    load_model.cache_clear()


@pytest.fixture(scope="module")
def measured(tiny_settings) -> tuple[Settings, dict]:
    """A run of dual-raw, which has a global model and personalised ones, scored at half, 1 and 0."""
    settings = tiny_settings(method="dual-raw", **QUICK)
    run(settings)
    options = Options(scales=(0.0, 0.5, 1.0), rounds=(1, 2))
    return settings, measure(Path(settings.run.dir), ["frontier"], options)["frontier"]


def test_an_adapter_scaled_to_zero_has_neither_cost_nor_gain(measured):
    zeros = [r for r in measured[1]["records"] if r["scale"] == 0]
    assert [(r["model"], r["round"]) for r in zeros] == [("global", 1), ("global", 2), ("personalised", 2)]
    assert all(r["cost"] == 0 and r["gain"] == 0 for r in zeros)


def test_cost_grows_with_the_scale(measured):
    for model in ("global", "personalised"):
        costs = [r["cost"] for r in measured[1]["records"] if (r["model"], r["round"]) == (model, 2)]
        assert 0 == costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("name", ["global", "personalised"])
def test_at_lambda_1_losses_are_the_runs_own_scores(measured, name: str):
    check_losses(*measured, name)


def test_a_personalised_model_has_the_factors_that_the_client_keeps(tiny_settings):
    settings = tiny_settings(method="dual-raw", **QUICK, **{"server.aggregation": "fedsa"})
    run(settings)
    found = measure(Path(settings.run.dir), ["frontier"], Options(scales=(1.0,)))["frontier"]
    check_losses(settings, found, "personalised")


def check_losses(settings: Settings, found: dict, name: str) -> None:
    """A run's loss is a mean over tokens, here over each example first: weighed by tokens they are equal."""
    scores = read_result(Path(settings.run.dir)).final[name]
    (record,) = (r for r in found["models"] if (r["model"], r["round"], r["scale"]) == (name, 2, 1))
    client_context.close_clients()
    loaded = MeasuredRun(Path(settings.run.dir), read_settings(Path(settings.run.dir)), Options())
    for client in loaded.clients:  # one domain each
        tokens = [one.num_response_tokens for one in client.tests.raw]
        mean = np.average(record["test"][client.id], weights=tokens)
        assert mean == pytest.approx(scores[client.id]["loss"], abs=1e-5)


def test_kl_is_that_of_the_two_softmaxes_token_by_token(tiny_base, tiny_settings):
    """Against torch's own KL on whole logits, of an answer alone."""
    model = MeasuredRun(Path(), tiny_settings(), Options()).settings
    from fedsdr.federation.model_cache import model_of

    lora = model_of(model)
    lora.initialise("shared", 0)
    state = {k: v + 0.05 * (".lora_B." in k) for k, v in lora.state("shared").items()}
    (text,) = base_answers(lora, ["Name a colour."], 4, 8)
    one = Scaled({"shared": state}, scale=0.5)
    ((found,),) = divergences(lora, [text], [one], 4)
    ids = torch.tensor([text.ids])
    at = slice(text.prompt_length - 1, len(text.ids) - 1)
    with lora.inference(()):
        before = lora.base.model(ids).logits[0, at].log_softmax(1)
    with one.inference(lora):
        after = lora.base.model(ids).logits[0, at].log_softmax(1)
        (loss,) = mean_losses(lora.base, [text], 4)
    expected = (
        torch.nn.functional.kl_div(after, before, log_target=True, reduction="sum") / text.num_response_tokens
    )
    assert found == pytest.approx(expected.item(), rel=1e-3)
    targets = torch.tensor(text.ids[text.prompt_length :])
    assert loss == pytest.approx(torch.nn.functional.nll_loss(after, targets).item(), rel=1e-4)


def test_a_run_without_validation_examples_says_how_to_get_them(tiny_settings):
    settings = tiny_settings(method="fedit", **QUICK | {"data.validation": 0.0})
    run(settings)
    with pytest.raises(UserError, match=r"data.validation=0.1"):
        measure(Path(settings.run.dir), ["frontier"], Options())


def grid_of(settings: Settings, folder: Path, seeds: str, methods: str) -> Path:
    recipe, grid, to = folder / "quick.toml", folder / "grid.toml", folder / "grid"
    recipe.write_text(dump_settings(settings))
    grid.write_text(
        f'recipe = "{recipe}"\nbaseline = "fedit"\nseeds = {seeds}\nvary = {{method = {methods}}}\n'
    )
    compare(grid, to)
    return to


def test_a_grid_with_the_control_has_table_and_drawing_at_equal_cost(tiny_settings, tmp_path: Path):
    to = grid_of(tiny_settings(**QUICK), tmp_path, "[0, 1]", '["fedit", "dual-raw", "local-only"]')
    sheet = measure_grid(to, ["frontier"], Options())["frontier"]
    found = {(r["arm"], r["model"], r["round"], r["scale"]) for r in sheet.records}
    assert found == {("dual-raw", "global", n, s) for n in (1, 2) for s in (0.5, 1)} | {
        ("dual-raw", "personalised", 2, s) for s in (0.5, 1)
    }
    assert "dual-raw" in (to / "frontier.svg").read_text()
    assert "Gain at equal cost" in (to / "report.html").read_text()
    for arm, num in (("fedit", 2 * 7), ("dual-raw", 2 * 2 + 2), ("local-only", 7)):
        assert len(read_json(to / arm / "seed-0/measurements/frontier.json")["records"]) == num


def test_a_grid_without_a_control_to_compare_with_is_refused_before_anything_is_scored(
    tiny_settings, tmp_path: Path
):
    """Once all other runs were scored, for minutes, and no table came of it."""
    settings = tiny_settings(**QUICK | {"data.validation": 0.0})
    to = grid_of(settings, tmp_path, "[0]", '["fedit", "dual-raw"]')
    with pytest.raises(UserError, match=r"frontier could not be measured .* has validation examples"):
        measure_grid(to, ["frontier"], Options())
    assert not list(to.rglob("measurements/*"))


def test_arms_are_compared_only_on_the_same_examples():
    def scored(arm: str, num: int, base: float = 1.0) -> ScoredRun:
        part = {"a": [base] * num}
        place = {"test": part, "validation": part}
        models = [{"model": "base", "round": 0, "scale": 0, **place}]
        return ScoredRun(arm, 0, [*models, {"model": "global", "round": 1, "scale": 1, "kl": [0.1], **place}])

    assert frontier([scored("fedit", 2), scored("fedsd", 2, 1.001)], {"global": "fedit"}, ())
    for other in (scored("fedsd", 3), scored("fedsd", 2, 1.4)):  # as many, but the base's loss is another
        with pytest.raises(UserError, match=r"fedsd, seed 0: the global model was scored on other examples"):
            frontier([scored("fedit", 2), other], {"global": "fedit"}, ())


def test_gains_of_one_word_domains_are_also_given_apart():
    def scored(arm: str, losses: dict[str, float]) -> ScoredRun:
        base = {part: {"labels": [2.0], "texts": [2.0]} for part in ("test", "validation")}
        own = {part: {name: [value] for name, value in losses.items()} for part in ("test", "validation")}
        return ScoredRun(arm, 0, [
            {"model": "base", "round": 0, "scale": 0, **base},
            {"model": "global", "round": 1, "scale": 1, "kl": [0.1], **own},
        ])  # fmt: skip

    runs = [scored("fedit", {"labels": 1.0, "texts": 1.5}), scored("fedsd", {"labels": 2.0, "texts": 1.0})]
    found = {r["of"]: r["difference"] for r in frontier(runs, {"global": "fedit"}, ["labels"])}
    assert found == pytest.approx({"all": 0.5 - 0.75, "free text": 0.5, "one word": -1.0})


def test_in_each_domain_the_control_is_the_one_model_that_is_best_over_all():
    """At C = 0.16 lambda = 0.5 gains 0.1 and 0.5, lambda = 1 gains 0.6 and -0.2: the first is better by mean.

    An arm that gains 0.4 in both differs by 0.3 and -0.1, not by -0.2 as from a control chosen for a alone.
    """

    def scored(arm: str, points: list[tuple[float, float, float, float]]) -> ScoredRun:
        base = {part: {"a": [2.0], "b": [2.0]} for part in ("test", "validation")}
        models = [{"model": "base", "round": 0, "scale": 0, **base}]
        for scale, cost, a, b in points:
            own = {part: {"a": [2.0 - a], "b": [2.0 - b]} for part in ("test", "validation")}
            models.append({"model": "global", "round": 1, "scale": scale, "kl": [cost], **own})
        return ScoredRun(arm, 0, models)

    runs = [
        scored("fedit", [(0.5, 0.04, 0.1, 0.5), (1.0, 0.16, 0.6, -0.2)]),
        scored("fedsd", [(1.0, 0.16, 0.4, 0.4)]),
    ]
    found = by_domain(runs, {"global": "fedit"})
    assert {r["domain"]: r["difference"] for r in found} == pytest.approx({"a": 0.3, "b": -0.1})
    (row,) = domain_sheet(found).rows
    assert row[-2] == "b"


def test_seeds_beyond_the_controls_range_are_not_counted_among_those_of_the_means():
    def scored(arm: str, seed: int, cost: float) -> ScoredRun:
        base, own = ({part: {"a": [loss]} for part in ("test", "validation")} for loss in (2.0, 1.0))
        return ScoredRun(arm, seed, [
            {"model": "base", "round": 0, "scale": 0, **base},
            {"model": "global", "round": 1, "scale": 1, "kl": [cost], **own},
        ])  # fmt: skip

    runs = [scored("fedit", seed, 0.1) for seed in range(3)]
    runs += [scored("fedsd", seed, cost) for seed, cost in enumerate((0.1, 0.1, 0.2))]
    sheet = frontier_sheet(frontier(runs, {"global": "fedit"}, ()))
    (record,) = sheet.records
    assert (record["num_seeds"], record["num_beyond"], record["cost"]) == (2, 1, pytest.approx(0.1))
    assert sheet.rows[0][sheet.heads.index("seeds")] == "2, 1 beyond"
