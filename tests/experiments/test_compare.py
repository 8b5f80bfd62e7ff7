"""Grids: every run is made once, with its own seed, and the tables hold the numbers of the runs."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedsdr.cli import report
from fedsdr.config import Settings
from fedsdr.data.files import BadRow, refuse_bad
from fedsdr.errors import UserError
from fedsdr.experiments import compare as compare_module
from fedsdr.experiments import compare as module
from fedsdr.experiments.compare import compare, worker
from fedsdr.experiments.grid import read_grid
from fedsdr.experiments.measure import measure_grid
from fedsdr.experiments.measured_run import Options
from fedsdr.federation import server_app
from fedsdr.federation.run import run
from fedsdr.model.allocator import can_forget_peak
from fedsdr.recipe import dump_settings
from fedsdr.report.consistency import arms_sheet
from fedsdr.report.notices import Notice, few_test_examples
from fedsdr.run_folder import RunFolder, read_result, read_settings
from fedsdr.server.checkpoint import save_round
from fedsdr.storage import read_json, read_lines, write_json
from fedsdr.terminal import print_sheets

RECIPES = Path(__file__).parents[2] / "recipes"
FOR_READERS = ("report.html", "comparison.md")


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


def test_a_bad_row_that_a_run_of_a_grid_meets_is_told_with_file_and_line():
    """Once the error could not come back from the run's process, which was taken to be out of memory."""
    with worker() as process, pytest.raises(BadRow, match=r"^train.jsonl:3: not JSON$"):
        process.submit(refuse_bad, [BadRow("train.jsonl:3", "json", "not JSON")]).result()


def test_a_grid_makes_each_run_once_and_its_tables_hold_the_runs_numbers(
    grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    to = tmp_path / "out"
    sheets = compare(grid(), to)
    folders = {(arm, seed): to / arm / f"seed-{seed}" for arm in ("fedit", "fedsd") for seed in (0, 1)}
    for (arm, seed), folder in folders.items():
        settings = read_settings(folder)
        assert (settings.method, settings.run.seed, settings.lora.rank) == (arm, seed, 2)
    losses = {key: read_result(folder).final["global"]["mean"]["loss"] for key, folder in folders.items()}
    records = {(r["arm"], r["model"]): r for r in sheets["loss"].records}
    for arm in ("fedit", "fedsd"):
        a, b = losses[arm, 0], losses[arm, 1]
        assert records[arm, "global"]["mean"] == pytest.approx((a + b) / 2)
        assert records[arm, "global"]["sd"] == pytest.approx(abs(a - b) / 2**0.5)
        assert a != b
    assert records["fedsd", "global"]["difference"] == pytest.approx(
        (losses["fedsd", 0] + losses["fedsd", 1] - losses["fedit", 0] - losses["fedit", 1]) / 2
    )
    written = {sheet["table"]: sheet["records"] for sheet in json.loads((to / "comparison.json").read_text())}
    assert written[sheets["loss"].caption] == [dict(r) for r in sheets["loss"].records]
    assert (to / "comparison-costs.csv").is_file()
    # Rewritings of the test responses are common to all runs, those of the training responses to fedsd's.
    assert len(list((to / "cache/rewritings").glob("*.jsonl"))) == 2 + 2

    monkeypatch.setattr(module, "run", None)
    monkeypatch.setattr(module, "resume", None)
    assert compare(grid(), to) == sheets


def test_a_stopped_grid_resumes_the_run_it_was_in(grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    straight = compare(grid(), tmp_path / "straight")
    started = []

    def dies(settings: Settings):
        started.append(settings)
        with monkeypatch.context() as patch:
            if len(started) == 3:
                patch.setattr(server_app, "save_round", stop_at_round_1)
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
    del sheets["costs"], straight["costs"]  # time and memory
    assert sheets == straight


def test_each_arm_takes_the_rate_with_the_least_validation_loss_on_what_it_learns(grid, tmp_path: Path):
    to = tmp_path / "out"
    lines = {"rates": "[1e-4, 1e-2]", "seeds": "[0]", "set": "{lora = {rank = 2}, data = {num_train = 11}}"}
    sheets = compare(grid(**lines), to)
    learnt = {"fedit": "loss", "fedsd": "loss_distilled"}
    for arm, metric in learnt.items():
        losses = {}
        for rate in (1e-4, 1e-2):
            folder = to / arm / f"rate-{rate}"
            trial = read_settings(folder)
            assert (trial.client.learning_rate, trial.eval.split, trial.data.validation) == (
                rate,
                "validation",
                0.1,
            )
            losses[rate] = read_result(folder).final["global"]["mean"][metric]
        best = min(losses, key=losses.__getitem__)
        chosen = read_settings(to / arm / "seed-0")
        assert (chosen.client.learning_rate, chosen.eval.split, chosen.data.validation) == (best, "test", 0.1)
    assert {r["arm"]: r["rate"] for r in sheets["rates"].records if r["is_chosen"]} == {
        arm: read_settings(to / arm / "seed-0").client.learning_rate for arm in learnt
    }


def test_a_rate_that_diverges_loses_and_stops_nothing(grid, tmp_path: Path):
    lines = {"rates": "[1e-3, 1e30]", "seeds": "[0]", "vary": '{method = ["fedit"]}'}
    rates = compare(
        grid(**lines, set="{client = {local_steps = 4, max_grad_norm = 1e30}}"), tmp_path / "out"
    )["rates"]
    assert rates.rows == (("fedit", rates.rows[0][1], "diverged", "0.001", "at the end of the list"),)
    with pytest.raises(UserError, match=r"fedit: training diverged with every one of rates = \[1e\+30\]"):
        compare(grid(**lines | {"rates": "[1e30]"}, set="{client = {local_steps = 4}}"), tmp_path / "other")


def test_processes_beside_each_other_give_what_one_after_the_other_gives(grid, tmp_path: Path):
    """They share one cache: a rewriting is made by one of them, and read by the others."""
    straight = compare(grid(), tmp_path / "straight")
    beside = compare(grid(), tmp_path / "beside", jobs=2)
    del beside["costs"], straight["costs"]  # time and memory
    assert beside == straight
    cached = [sorted(p.name for p in (tmp_path / d).glob("cache/*/*.json*")) for d in ("straight", "beside")]
    assert cached[0] == cached[1]
    assert "round 1 of 1" in (tmp_path / "beside/fedsd/seed-1/log.txt").read_text()
    one, other = (
        {
            path.relative_to(tmp_path / to): path.read_bytes()
            for kind in ("server", "evaluation", "clients")
            for path in (tmp_path / to).glob(f"*/seed-*/{kind}/**/*")
            if path.is_file()
        }
        for to in ("straight", "beside")
    )
    assert one == other
    assert any(path.suffix == ".safetensors" for path in one)


def test_the_process_of_each_run_begins_with_what_it_imports_and_without_threads_of_torch():
    """The imports took a fifth of a short run; a process forked after a product would wait forever."""
    with ProcessPoolExecutor(1, mp_context=module.workers()) as pool:
        found = pool.submit(eval, "'fedsdr.model.generation' in __import__('sys').modules").result()
        product = pool.submit(
            eval, "float((lambda t: (t.ones(512, 512) @ t.ones(512, 512)).sum())(__import__('torch')))"
        )
        assert found
        assert product.result(timeout=120) == 512**3


def test_a_process_loads_the_model_once_for_its_runs(grid, tmp_path: Path):
    plan = read_grid(grid(), tmp_path / "out", jobs=1)
    misses = "__import__('fedsdr.federation.model_cache', fromlist=['_']).load_model.cache_info().misses"
    with module.worker() as process:
        if process._max_tasks_per_child:
            pytest.skip("this system does not count the peak of memory anew")
        for settings in plan.runs.values():
            process.submit(module._finish_logged, settings, False).result()
        assert process.submit(eval, misses).result() == 1


@pytest.mark.skipif(not can_forget_peak(), reason="this system does not count the peak of memory anew")
def test_the_memory_of_a_run_is_not_that_of_an_earlier_one_in_its_process(grid, tmp_path: Path):
    np.ones(10**8)  # 800 MB
    compare(grid(seeds="[0]", vary='{method = ["fedit"]}'), tmp_path / "out")
    (end,) = [
        event for event in read_lines(RunFolder(tmp_path / "out/fedit/seed-0").log) if event["event"] == "end"
    ]
    now = psutil.Process().memory_info().rss
    assert now / 2 < end["peak_memory"] < now + 4e8


def test_a_grid_takes_up_its_runs_whatever_number_goes_on_at_a_time(grid, tmp_path: Path):
    """Threads are divided among the jobs; a run that started with one share continues with it."""
    path = grid(seeds="[0]", vary='{method = ["fedit"]}', set="{run = {threads = 0}}")
    compare(path, tmp_path / "out", jobs=2)
    before = read_settings(tmp_path / "out/fedit/seed-0")
    compare(path, tmp_path / "out", jobs=0)
    assert read_settings(tmp_path / "out/fedit/seed-0") == before


def test_the_page_of_a_grid_is_written_from_its_folder_finished_or_not(grid, tmp_path: Path, capsys):
    to = tmp_path / "out"
    compare(grid(budgets='["per_round"]'), to)
    whole = (to / "report.html").read_text()
    assert "unfinished" not in whole
    for word in (
        "fedsd",
        "minus fedit",
        "Costs of a run",
        "equal steps per round",
        "<svg",
        "2 for each arm",
        "so no rewritten text is taught",
        "(fedsd: 2 of 4 runs)",
    ):
        assert word in whole
    report(to)
    assert capsys.readouterr().out.strip() == str(to / "report.html")
    assert (to / "report.html").read_text() == whole
    shutil.rmtree(to / "fedsd/seed-1")
    report(to)
    assert "unfinished: 3 of 4 runs" in (to / "report.html").read_text()


def test_signs_have_a_key_once_on_the_terminal_on_the_page_and_in_the_tables_to_read(
    grid, tmp_path: Path, capsys
):
    """By its interval alone, a "?" next to one without 0 looked like an error."""
    print_sheets(compare(grid(), tmp_path / "out"), as_json=False)
    shown = [capsys.readouterr().out, *((tmp_path / "out" / name).read_text() for name in FOR_READERS)]
    for text in shown:
        assert text.count("✓ better") == text.count("? undecided") == 1
        assert "also next to an interval without 0" in text


def test_few_test_examples_are_a_warning_of_a_grid_and_its_tables_to_read_begin_with_the_warnings(
    grid, tmp_path: Path
):
    """With four examples a domain it said "worse: fedsd" without a reservation."""
    text = "math has only 3 test examples; intervals over seeds do not cover the draw of examples"
    compare(grid(seeds="[0]", set="{data = {num_test = 3, domains = ['math']}}"), tmp_path / "out")
    lines = (tmp_path / "out/comparison.md").read_text().splitlines()
    assert lines[0] == f"- warning: {text}"
    assert lines[1].startswith("- warning: ") and "fell back" in lines[1]
    assert text in (tmp_path / "out/report.html").read_text()


def test_few_test_examples_are_counted_by_domain():
    def notices(**nums: int) -> list[Notice]:
        scores = {"global": {domain: {"num_examples": num} for domain, num in nums.items()}}
        return few_test_examples([scores])

    assert [str(one) for one in notices(law=12, math=20, mean=32, code=15)] == [
        "warning: law has only 12 test examples; intervals over seeds do not cover the draw of examples"
    ]
    assert notices(law=20, math=20, mean=12) == []


def test_the_page_of_a_grid_reloads_itself_until_the_grid_ends(grid, tmp_path: Path, monkeypatch):
    seen, original = [], compare_module._finish

    def finish(settings: Settings, on_other_machine: bool) -> object:
        page = tmp_path / "grid/report.html"
        seen.append(page.read_text() if page.exists() else "")
        return original(settings, on_other_machine)

    monkeypatch.setattr(compare_module, "_finish", finish)
    compare(grid(seeds="[0]"), tmp_path / "grid")
    before, between = seen
    assert before == ""
    assert "1 of 2 runs; this page reloads itself every 20 s" in between
    assert "setTimeout" in between
    assert "setTimeout" not in (tmp_path / "grid/report.html").read_text()


def test_an_error_in_one_process_is_told_and_what_is_done_is_kept(grid, tmp_path: Path):
    vary = '{data = {domains = [["finance", "math"], ["nowhere"]]}}'
    with pytest.raises(UserError, match="nowhere"):
        compare(grid(seeds="[0]", vary=vary, baseline='"_finance_math_"'), tmp_path / "out", jobs=1)
    assert read_result(tmp_path / "out/_finance_math_/seed-0").final


def test_a_baseline_of_two_stages_is_another_arm_under_each_budget(grid, tmp_path: Path):
    lines = {"budgets": '["per_round", "per_stage"]', "vary": '{method = ["fedsdr", "fedsd"]}'}
    plan = read_grid(grid(**lines, baseline='"fedsdr"', personal_baseline='"fedsd"'), tmp_path)
    assert [(group.arms, group.baseline, group.personal_baseline) for group in plan.groups.values()] == [
        (["fedsdr", "fedsd"], "fedsdr", "fedsd"),
        (["fedsdr-per_stage", "fedsd"], "fedsdr-per_stage", "fedsd"),
    ]


def test_arms_may_have_settings_of_their_own(grid, tmp_path: Path):
    arms = "{wide = {lora = {rank = 4}}, slow = {client = {learning_rate = 1e-5}}}"
    plan = read_grid(grid(arms=arms, baseline='"wide-fedit"'), tmp_path)
    found = {arm: (s.method, s.lora.rank, s.client.learning_rate) for (arm, _), s in plan.runs.items()}
    usual = Settings().client.learning_rate
    assert found == {
        "wide-fedit": ("fedit", 4, usual),
        "wide-fedsd": ("fedsd", 4, usual),
        "slow-fedit": ("fedit", 2, 1e-5),
        "slow-fedsd": ("fedsd", 2, 1e-5),
    }
    own = read_grid(
        grid(arms="{a = {rates = [0.1, 0.3]}, b = {}}", vary="", baseline='"b"', rates="[1e-3]"), tmp_path
    )
    assert [*own.trials] == [("a", 0.1), ("a", 0.3), ("b", 1e-3)]
    alone = read_grid(grid(arms=arms, vary="", baseline='"slow"'), tmp_path)
    assert {arm for arm, _ in alone.runs} == {"wide", "slow"}


def test_the_grids_of_the_page_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(RECIPES.parent)
    page = (RECIPES.parent / "docs/compare.md").read_text()
    grids = re.findall(r"```toml\n(recipe = .*?)```", page, re.S)
    assert len(grids) == 2
    for text in grids:
        (tmp_path / "grid.toml").write_text(text)
        assert read_grid(tmp_path / "grid.toml", tmp_path).runs


def test_one_run_that_fails_does_not_keep_the_others_from_being_finished(grid, tmp_path: Path):
    to, arms = tmp_path / "out", "{bad = {client = {learning_rate = 1e30}}, good = {}}"
    path = grid(seeds="[0]", arms=arms, vary="", baseline='"good"')
    with pytest.raises(UserError, match=r"1 of 2 runs could not be finished:\n.*training diverged"):
        compare(path, to)
    assert read_result(to / "good/seed-0").final
    assert "unfinished: 1 of 2 runs" in (to / "report.html").read_text()


def test_a_moved_grid_goes_on_and_its_plan_stays_if_another_is_refused(grid, tmp_path: Path):
    compare(grid(seeds="[0]"), tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    before = (tmp_path / "moved/grid.json").read_text()
    compare(grid(seeds="[0]"), tmp_path / "moved")
    with pytest.raises(UserError, match="was run with other settings"):
        compare(grid(seeds="[0]", set="{lora = {rank = 3}}"), tmp_path / "moved")
    assert (tmp_path / "moved/grid.json").read_text() == before


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_grid_goes_on_on_another_machine_when_that_is_allowed(grid, tmp_path: Path, jobs: int):
    path = grid(seeds="[0]", vary='{method = ["fedit"]}', baseline='"fedit"')
    compare(path, tmp_path / "out")
    run = RunFolder(tmp_path / "out/fedit/seed-0")
    run.evaluation(run.last_round()).unlink()  # stopped before the last scores
    before = read_json(run.environment)
    write_json(run.environment, before | {"machine": before["machine"] | {"processor": "another"}})
    with pytest.raises(UserError, match=r"machine processor was another .* --on-other-machine"):
        compare(path, tmp_path / "out", jobs)
    compare(path, tmp_path / "out", jobs, on_other_machine=True)
    assert run.is_finished()
    assert "moved to another machine" in run.report.read_text()


def test_who_computes_and_how_long_it_waits_may_change_as_when_one_run_is_resumed(grid, tmp_path: Path):
    compare(grid(seeds="[0]"), tmp_path / "out")
    others = "{lora = {rank = 2}, run = {log_to = ['tensorboard']}, federation = {wait = 5}}"
    compare(grid(seeds="[0]", set=others), tmp_path / "out")


def test_a_run_that_was_made_with_other_settings_is_not_taken_for_this_one(grid, tmp_path: Path):
    compare(grid(seeds="[0]"), tmp_path / "out")
    with pytest.raises(UserError, match=r"was run with other settings \(lora.rank was 2, is 3\); remove it"):
        compare(grid(seeds="[0]", set="{lora = {rank = 3}}"), tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ({"baseline": ""}, "key baseline is missing or unknown"),
        ({"seed": "3"}, "key seed is missing or unknown"),
        ({"seeds": "[]"}, r"seeds = \[\]; expected a list of different values"),
        ({"seeds": "[1, 1]"}, "expected a list of different values"),
        ({"seeds": '["a"]'}, "run.seed"),
        (
            {"vary": '{method = "fedit"}'},
            "vary.method = 'fedit'; expected a table of settings, each with a list",
        ),
        ({"vary": '{method = ["fedit", "fedrs"]}'}, "method = 'fedrs' is unknown"),
        (
            {"vary": '{method = ["fedit", "fedit"]}'},
            "vary.method = .*; expected a table of settings, each with a list of different",
        ),
        (
            {"rates": "[]"},
            r"rates = \[\]; expected a list of different values of client.learning_rate, such as \[0.0002",
        ),
        ({"rates": "[0]"}, "client.learning_rate = 0"),
        (
            {"rates": "[1e-3]", "vary": "{client = {learning_rate = [1e-4]}}"},
            "client.learning_rate and rates are both set",
        ),
        (
            {"rates": "[1e-3]", "set": "{client = {learning_rate = 1e-4}}"},
            "client.learning_rate and rates are both set",
        ),
        ({"set": "{run = {seed = 3}}"}, "run.seed is set by the grid"),
        ({"vary": ""}, "vary and arms are both missing"),
        ({"personal_baseline": '"fedala"'}, "personal_baseline = 'fedala' is not one of the arms"),
        ({"recipe": "3"}, "recipe = 3; expected the path of the recipe"),
        ({"baseline": '["fedit"]'}, "baseline = .*; expected the name of the arm"),
        (
            {"budgets": '[["per_round"]]'},
            'budgets.* = .*; expected a list of values of client.budget, such as ."per_round"',
        ),
        (
            {"budgets": '[1, "per_day"]'},
            'budgets.* = .*; expected a list of values of client.budget, such as ."per_round"',
        ),
        (
            {"vary": "{client = [{local_steps = 3}]}"},
            "vary.client = .*; expected a table of settings, each with a list",
        ),
        ({"arms": '{"../out" = {}}'}, "must be a valid folder name"),
        ({"arms": "{cache = {}}"}, "must be a valid folder name"),
        ({"arms": "{slow = {rates = []}}", "rates": "[1e-3]"}, r"arms.slow.rates = \[\]; expected a list"),
        (
            {"arms": '{a = {}, "a-fedit" = {}, "" = {}}', "vary": '{method = ["fedit", "a-fedit"]}'},
            "two arms have",
        ),
        ({"arms": "{slow = {rates = [1e-5]}}"}, "replaces rates, which the grid does not have"),
        (
            {
                "arms": '{fedsdr-per_stage = {method = "fedsdr"}, fedsdr = {method = "fedsdr"}}',
                "vary": "",
                "budgets": '["per_round", "per_stage"]',
                "baseline": '"fedsdr"',
            },
            "fedsdr-per_stage has the same name as fedsdr under this budget",
        ),
        ({"budgets": '["per_epoch"]'}, "budgets.0 = 'per_epoch'; expected a list of values of client.budget"),
        ({"vary": '["fedit"]'}, r"vary = \['fedit'\]; expected a table"),
        ({"baseline": '"fedavg"'}, "baseline = 'fedavg' is not one of the arms fedit, fedsd"),
        ({"set": "{lora = {rnk = 2}}"}, "unknown key lora.rnk"),
    ],
    ids=str,
)
def test_a_grid_with_a_mistake_is_refused_before_any_run(grid, tmp_path: Path, lines, says: str):
    with pytest.raises(UserError, match=says):
        compare(grid(**lines), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_settings_make_an_arm_of_each_choice(grid, tmp_path: Path):
    vary = '{method = ["fedsd", "fedsdr"], distill = {verify = ["off", "answer"]}}'
    plan = read_grid(grid(vary=vary, baseline='"fedsd-off"'), tmp_path / "out")
    arms = list(dict.fromkeys(arm for arm, _ in plan.runs))
    assert arms == ["fedsd-off", "fedsd-answer", "fedsdr-off", "fedsdr-answer"]
    assert plan.runs["fedsdr-answer", 1].distill.verify == "answer"
    assert {str(settings.run.cache) for settings in plan.runs.values()} == {str(tmp_path / "out/cache")}


def test_the_grid_of_the_recipes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(RECIPES.parent)
    path = RECIPES / "compare-demo.toml"
    plan = read_grid(path, tmp_path)
    one_stage, two_stages = ["fedit", "fedsd"], ["fedsdr", "dual-raw"]
    again = [f"{arm}-per_stage" for arm in two_stages]
    assert [group.arms for group in plan.groups.values()] == [one_stage + two_stages, one_stage + again]
    assert len(plan.runs) == 5 * 6
    assert len(plan.trials) == 3 * 4
    # 8 steps for each stage, or divided over two; the shared adapter of fedit and fedsd takes 8 in both.
    budgets = {arm: settings.client.budget for (arm, _), settings in plan.runs.items()}
    assert [budgets[arm] for arm in again] == ["per_stage"] * 2
    assert [budgets[arm] for arm in one_stage + two_stages] == ["per_round"] * 4
    assert "fedsdr compare recipes/compare-demo.toml" in path.read_text()


def test_runs_of_a_grid_end_with_the_process_that_began_them(grid, tmp_path: Path):
    """A killed parent cannot stop them; they must not survive and use the cores."""
    command = [
        sys.executable,
        "-m",
        "fedsdr.cli",
        "compare",
        str(grid()),
        "--to",
        str(tmp_path / "out"),
        "--jobs",
        "1",
    ]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (children := psutil.Process(parent.pid).children(recursive=True)) or not any(
        (tmp_path / "out").glob("*/seed-*/log.txt")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_measuring_a_grid_measures_each_run_once_and_adds_a_table_of_its_arms(grid, tmp_path: Path):
    to = tmp_path / "out"
    compare(grid(set="{lora = {rank = 2}, server = {keep_updates = true}}"), to, jobs=0)
    sheets = measure_grid(to, ["consistency", "survival"], Options())
    records = {record["arm"]: record for record in sheets["consistency"].records}
    for arm in ("fedit", "fedsd"):
        found = [read_json(to / arm / f"seed-{seed}/measurements/consistency.json") for seed in (0, 1)]
        cosines = [
            next(r["cosine"] for r in one["records"] if (r["layer"], r["a"]) == ("all", "mean"))
            for one in found
        ]
        assert records[arm]["cosine_last"] == pytest.approx(sum(cosines) / 2)
        assert records[arm]["num_seeds"] == 2
    before = (to / "fedit/seed-0/measurements/consistency.json").stat().st_mtime_ns
    measure_grid(to, [], Options())
    assert (to / "fedit/seed-0/measurements/consistency.json").stat().st_mtime_ns == before
    assert (to / "fedsd/seed-1/measurements/paradox.json").exists()


def test_what_a_grid_keeps_of_the_gains_is_the_second_column_over_the_first():
    """Own gains 0.4 and 0.1, of which 0.2 and 0.09 are left: 0.145 of 0.25, not the mean of 0.5 and 0.9."""
    pairs = [{"layer": "all", "a": "mean", "round": 1, "cosine": 0.1, "sign_agreement": 0.5}]
    runs = [
        ("fedit", pairs, [{"before": 1.0, "own": 1 - own, "aggregated": 1 - left}])
        for own, left in ((0.4, 0.2), (0.1, 0.09))
    ]
    (record,) = arms_sheet(runs).records
    assert record["kept"] == pytest.approx((0.2 + 0.09) / (0.4 + 0.1))


def test_runs_that_lack_what_a_measurement_needs_are_passed_over(grid, tmp_path: Path):
    """Once the first of them, fedit without rewritings, stopped the grid."""
    to = tmp_path / "out"
    compare(grid(seeds="[0]", set="{data = {num_train = 48}}"), to, jobs=0)
    measure_grid(to, ["map"], Options())
    assert (to / "fedsd/seed-0/measurements/map.json").exists()
    assert not (to / "fedit/seed-0/measurements/map.json").exists()
    with pytest.raises(
        UserError, match="survival could not be measured in any run: the clients' updates were not saved"
    ):
        measure_grid(to, ["map", "survival"], Options())


@pytest.mark.parametrize("jobs", [0, 1])
def test_the_user_learns_which_run_goes_on_and_when_all_will_be_done(grid, tmp_path: Path, capfd, jobs: int):
    compare(grid(seeds="[0]"), tmp_path / "out", jobs)
    lines = [line for line in capfd.readouterr().err.splitlines() if re.match(r"run \d|.*ended;", line)]
    assert lines[0] == "run 1 of 2 begins: fedit, seed 0"
    assert "run 2 of 2 begins: fedsd, seed 0" in lines
    (ended,) = [line for line in lines if "ended" in line]
    assert re.fullmatch(
        r"fedit, seed 0 ended; all 2 in about \d+ (s|min \d+ s) \(\d+ \w+, \d\d:\d\d\)", ended
    )
