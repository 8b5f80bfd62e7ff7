"""Grids: every cell is run once, with its own seed, and the tables say what the cells' own records say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsdr.apps import compare as module
from fedsdr.apps.compare import compare
from fedsdr.apps.grid import read_grid
from fedsdr.apps.run import read_result, read_settings, run
from fedsdr.config import Settings, dump_settings
from fedsdr.errors import UserError
from fedsdr.server.checkpoint import save_round

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def grid(tiny_settings: Callable[..., Settings], tmp_path: Path) -> Callable[..., Path]:
    """Write a grid of quick runs: ``grid(seeds="[0]")`` replaces the line of that key."""
    recipe = tmp_path / "quick.toml"
    settings = tiny_settings(
        **{"data.domains": ["finance", "math"], "server.num_rounds": 1, "eval.max_new_tokens": 2}
    )
    recipe.write_text(dump_settings(settings))

    def write(**lines: str) -> Path:
        keys = {"recipe": f'"{recipe}"', "baseline": '"fedit"', "seeds": "[0, 1]",
                "vary": '{method = ["fedit", "fedsd"]}', "set": "{lora = {rank = 2}}"} | lines  # fmt: skip
        path = tmp_path / "grid.toml"
        path.write_text("".join(f"{key} = {value}\n" for key, value in keys.items() if value))
        return path

    return write


def test_a_grid_runs_each_cell_once_and_its_tables_hold_the_cells_numbers(
    grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    to = tmp_path / "out"
    sheets = compare(grid(), to)
    cells = {(arm, seed): to / arm / f"seed-{seed}" for arm in ("fedit", "fedsd") for seed in (0, 1)}
    for (arm, seed), folder in cells.items():
        settings = read_settings(folder)
        assert (settings.method, settings.run.seed, settings.lora.rank) == (arm, seed, 2)
    losses = {key: read_result(folder).final["global"]["mean"]["loss"] for key, folder in cells.items()}
    records = {(r["arm"], r["model"]): r for r in sheets[1].records}  # loss on true responses
    for arm in ("fedit", "fedsd"):
        a, b = losses[arm, 0], losses[arm, 1]
        assert records[arm, "global"]["mean"] == pytest.approx((a + b) / 2)
        assert records[arm, "global"]["sd"] == pytest.approx(abs(a - b) / 2**0.5)
        assert a != b
    assert records["fedsd", "global"]["difference"] == pytest.approx(
        (losses["fedsd", 0] + losses["fedsd", 1] - losses["fedit", 0] - losses["fedit", 1]) / 2
    )
    assert json.loads((to / "comparison.json").read_text())[1]["records"] == [
        dict(r) for r in sheets[1].records
    ]
    assert (to / "comparison-costs.csv").is_file()
    # Rewritings of the test responses are common to all cells, those of the training responses to fedsd's.
    assert len(list((to / "cache/rewritings").glob("*.jsonl"))) == 2 + 2

    monkeypatch.setattr(module, "run", None)
    monkeypatch.setattr(module, "resume", None)
    assert compare(grid(), to) == sheets


def test_a_stopped_grid_goes_on_with_the_cell_it_was_in(
    grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    straight = compare(grid(), tmp_path / "straight")
    started = []

    def dies(settings: Settings):
        started.append(settings)
        with monkeypatch.context() as patch:
            if len(started) == 3:
                patch.setattr("fedsdr.apps.server_app.save_round", stop_at_round_1)
            return run(settings)

    def stop_at_round_1(folder, number, *rest):
        if number == 1:
            raise KeyboardInterrupt
        save_round(folder, number, *rest)

    monkeypatch.setattr(module, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        compare(grid(), tmp_path / "stopped")
    sheets = compare(grid(), tmp_path / "stopped")
    assert len(started) == 4  # the third went on by resume
    for sheet, expected in zip(sheets, straight, strict=True):
        if not sheet.caption.startswith("Costs"):  # of time and memory
            assert sheet.records == expected.records


def test_a_cell_that_was_run_with_other_settings_is_not_taken_for_this_one(grid, tmp_path: Path):
    compare(grid(seeds="[0]"), tmp_path / "out")
    with pytest.raises(
        UserError, match=r"was run with other settings \(lora.rank was 2 and is 3\); remove it"
    ):
        compare(grid(seeds="[0]", set="{lora = {rank = 3}}"), tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ({"baseline": ""}, "key baseline is missing or unknown"),
        ({"seed": "3"}, "key seed is missing or unknown"),
        ({"seeds": "[]"}, r"seeds = \[\]; expected a list of different values"),
        ({"seeds": "[1, 1]"}, "expected a list of different values"),
        ({"seeds": '["a"]'}, "run.seed"),
        ({"vary": '{method = "fedit"}'}, "vary.method = 'fedit'; expected a list"),
        ({"vary": '{method = ["fedit", "fedrs"]}'}, "method = 'fedrs' is unknown"),
        ({"vary": '{method = ["fedit", "fedit"]}'}, "two arms are called fedit"),
        ({"baseline": '"fedavg"'}, "baseline = 'fedavg' is none of the arms fedit, fedsd"),
        ({"set": "{lora = {rnk = 2}}"}, "unknown key lora.rnk"),
    ],
    ids=str,
)
def test_a_grid_with_a_mistake_is_refused_before_any_cell_is_run(grid, tmp_path: Path, lines, says: str):
    with pytest.raises(UserError, match=says):
        compare(grid(**lines), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_settings_make_an_arm_of_each_choice(grid, tmp_path: Path):
    vary = '{method = ["fedsd", "fedsdr"], distill = {verify = ["off", "answer"]}}'
    plan = read_grid(grid(vary=vary, baseline='"fedsd-off"'), tmp_path / "out")
    arms = list(dict.fromkeys(arm for arm, _ in plan.cells))
    assert arms == ["fedsd-off", "fedsd-answer", "fedsdr-off", "fedsdr-answer"]
    assert plan.cells["fedsdr-answer", 1].distill.verify == "answer"
    assert {str(settings.run.cache) for settings in plan.cells.values()} == {str(tmp_path / "out/cache")}


def test_the_grid_of_the_recipes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(RECIPES.parent)
    path = RECIPES / "compare-demo.toml"
    plan = read_grid(path, tmp_path)
    one_stage, two_stages = ["fedit", "fedsd"], ["fedsdr", "dual-raw"]
    again = [f"{arm}-per_stage" for arm in two_stages]
    assert list(plan.budgets.values()) == [one_stage + two_stages, one_stage + again]
    assert len(plan.cells) == 5 * 6
    assert len(plan.trials) == 3 * 4
    # 8 steps for each stage, or divided over two; the shared adapter of fedit and fedsd takes 8 in both.
    budgets = {arm: settings.client.budget for (arm, _), settings in plan.cells.items()}
    assert [budgets[arm] for arm in again] == ["per_stage"] * 2
    assert [budgets[arm] for arm in one_stage + two_stages] == ["per_round"] * 4
    assert "fedsdr compare recipes/compare-demo.toml" in path.read_text()
