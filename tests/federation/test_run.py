"""A run from settings to scores: what its folder holds, and the mistakes that stop it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

import fedsdr.client.round as client_round
import fedsdr.federation.client_app as client_app
from fedsdr import __version__
from fedsdr.config import Settings
from fedsdr.data import sandbox
from fedsdr.data.lengths import ANSWER_CUT, TOO_LONG
from fedsdr.errors import Diverged, UserError
from fedsdr.evaluate import tasks
from fedsdr.federation import answers, client_context
from fedsdr.federation import run as run_module
from fedsdr.federation.export import export_round
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.federation.model_cache import load_model
from fedsdr.federation.run import evaluate_round, resume, run, run_over
from fedsdr.federation.server_app import is_due
from fedsdr.messages.privacy import epsilon
from fedsdr.model.adapter_files import load_adapter
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base
from fedsdr.model.generation import Answer, generate
from fedsdr.model.multi_lora import several
from fedsdr.progress import here
from fedsdr.recipe import dump_settings, load_settings
from fedsdr.report.events import privacy_sheet
from fedsdr.report.facts import privacy_facts
from fedsdr.run_folder import RunFolder, read_result, read_settings
from fedsdr.server.checkpoint import load_updates
from fedsdr.server.strategy import FedStrategy
from fedsdr.storage import read_lines, rewrite_lines

QUICK = {
    "data.domains": ["finance", "math"],
    "server.num_rounds": 1,
    "client.local_steps": 1,
    "eval.rewritings": False,
    "eval.max_new_tokens": 2,
    "method": "fedit",
}


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Adapters and settings of one test's model must not serve the next."""
    yield
    client_context.close_clients()
    load_model.cache_clear()


@pytest.fixture
def quick(tiny_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run in a second: two clients, one round, no rewriting."""
    return lambda **overrides: tiny_settings(**QUICK | overrides)


def write_data(root: Path, answers: dict[str, str]) -> None:
    """Four training and one test example for each domain."""
    for domain, answer in answers.items():
        folder = root / domain
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"instruction": f"Question {n}?", "output": f"{answer} {n}."} for n in range(5)]
        for name, part in (("train", rows[:4]), ("test", rows[4:])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def test_the_tests_of_ones_own_data_run_on_consent_alone_and_the_built_in_ones_always(
    quick, tmp_path, capsys, monkeypatch
):
    """The row's own response passes through its tests when what the rewriting loses is counted."""
    planted = tmp_path / "planted"
    attack = f"import ctypes\nctypes.CDLL(None).creat({bytes(planted)!r}, 0o600)"
    rows = [{"instruction": f"Write {n}.", "output": f"x = {n}", "tests": attack} for n in range(5)]
    for name, part in (("train", rows[:4]), ("test", rows[4:])):
        rewrite_lines(tmp_path / f"data/code/{name}.jsonl", part)
    own = {"data.domains": ["code"], "data.root": str(tmp_path / "data"), "method": "fedsdr"}

    def num_checkable(settings: Settings) -> int:
        run(settings)
        events = read_lines(Path(settings.run.dir) / "metrics.jsonl")
        return events[0]["distill/num_checkable@before"]

    monkeypatch.setattr(sandbox, "_bubblewrap", tuple)
    assert num_checkable(quick(**own)) == 0
    assert not planted.exists()
    said = "5 examples have tests, which are programs and do not run without consent: they are ignored"
    assert said in capsys.readouterr().err
    client_context.close_clients()
    assert num_checkable(quick(**own, **{"eval.run_programs": True})) == 4
    assert planted.exists()
    assert (
        "tests of 5 examples and the model's programs run with this account's rights"
        in capsys.readouterr().err
    )
    client_context.close_clients()
    assert num_checkable(quick(**{"data.domains": ["code"], "data.num_train": 2, "method": "fedsdr"})) == 2


@pytest.fixture
def few_and_many(tmp_path) -> dict[str, Any]:
    """Two clients of 4 and 100 examples."""
    for name, num in (("few", 4), ("many", 100)):
        rows = [{"instruction": f"Question {n}?", "output": f"{name} {n}."} for n in range(num)]
        rewrite_lines(tmp_path / f"data/{name}/train.jsonl", rows)
        rewrite_lines(tmp_path / f"data/{name}/test.jsonl", rows[:1])
    return {"data.domains": ["few", "many"], "data.root": str(tmp_path / "data"), "data.num_train": 0}


def test_a_client_that_claims_many_examples_weighs_ten_times_the_median(quick, few_and_many, capsys):
    """The lower of both numbers is the median, so the second client counts for 40."""
    settings = quick(**few_and_many, **{"server.keep_updates": True})
    folder = run(settings).folder
    reason = "many: counts for 40 of the 100 training examples that it reported (server.max_weight)"
    assert reason in capsys.readouterr().err
    assert reason in (folder / "report.html").read_text()
    sent = load_updates(RunFolder(folder), 1)
    mean = load_adapter(folder / "server/round-0001")
    for key, few in sent["few"].items():
        expected = (4 * few.astype("float64") + 40 * sent["many"][key]) / 44
        assert mean[key].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_no_cap_is_reported_where_all_clients_weigh_the_same(quick, few_and_many, capsys):
    run(quick(**few_and_many, **{"server.robust": "median"}))
    assert "server.max_weight" not in capsys.readouterr().err


def test_a_relative_run_folder_is_the_same_for_workers_that_run_elsewhere(quick, tmp_path, monkeypatch):
    """A worker of a Ray cluster works in the folder where Ray was started."""
    monkeypatch.chdir(tmp_path)
    settings = quick(**{"run.dir": "run", "run.cache": "cache"})
    with run_module._simulated(settings) as grid:
        found = [(one.node_config["folder"], one.node_config["cache"]) for one in grid.contexts.values()]
    assert found == [(str(tmp_path / "run/clients"), str(tmp_path / "cache"))] * 2


def test_the_folder_of_a_finished_run_holds_all_that_the_report_and_a_reader_need(quick):
    settings = quick(method="fedsdr", **{"eval.rewritings": True, "server.num_rounds": 2, "eval.every": 1})
    result = run(settings)
    folder = Path(settings.run.dir)
    assert result.folder == folder
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in found if name.endswith((".lock", ".aside"))]
    assert found >= {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        *(f"evaluation/round-000{number}.json" for number in (0, 1, 2)),
        *(f"server/round-000{number}/adapter_model.safetensors" for number in (0, 1, 2)),
        *(f"server/round-000{number}/adapter_config.json" for number in (0, 1, 2)),
        *(
            f"clients/{client}/{name}"
            for client in ("finance", "math")
            for name in (
                ".data.hash",
                "distilled.jsonl",
                "distilled-test.jsonl",
                "round-0001/adapter_model.safetensors",
                "round-0002/adapter_model.safetensors",
                "evaluation/round-0000-global.jsonl",
                "evaluation/round-0002-global.jsonl",
                "evaluation/round-0002-personalised.jsonl",
            )
        ),
    }
    assert not [name for name in found if "aside" in name or "error" in name]
    assert result.adapter == folder / "server" / "round-0002"
    assert load_adapter(result.adapter)
    pairs = read_lines(folder / "clients" / "math" / "distilled.jsonl")
    assert len(pairs) == settings.data.num_train
    assert all(pair["distilled"] == pair["output"] for pair in pairs if pair["fallback"])


def test_the_result_says_which_model_was_scored_on_what(quick):
    """Two test examples in each of two domains; the private adapter makes a second model."""
    settings = quick(method="dual-raw")
    result = run(settings)
    assert set(result.base) == {"global"}
    assert set(result.final) == {"global", "personalised"}
    for table in (result.base, result.final):
        assert list(table["global"]) == ["finance", "math", "mean"]
        assert table["global"]["mean"]["num_examples"] == 2 * settings.data.num_test
    assert result.final["global"]["mean"]["loss"] != result.base["global"]["mean"]["loss"]
    assert read_result(Path(settings.run.dir)) == result


def test_the_settings_of_a_run_say_what_auto_chose_and_are_read_back_wherever_the_folder_moves(
    quick, tmp_path: Path
):
    settings = quick(**{"model.dtype": "auto", "model.attention": "auto", "run.threads": 1})
    run(settings)
    kept = read_settings(Path(settings.run.dir))
    assert "auto" not in (kept.model.dtype, kept.model.attention, kept.model.gradient_checkpointing)
    assert kept.run.threads == 1
    same = {"dtype": "auto", "attention": "auto", "gradient_checkpointing": "auto"}
    assert kept.model_copy(update={"model": kept.model.model_copy(update=same)}) == settings
    moved = Path(settings.run.dir).rename(tmp_path / "moved")
    assert read_settings(moved).run.dir == str(moved)
    assert read_result(moved).folder == moved


def test_the_environment_tells_versions_model_and_data(quick):
    settings = quick()
    run(settings)
    found = json.loads((Path(settings.run.dir) / "environment.json").read_text())
    assert found["versions"]["torch"] == torch.__version__
    assert len(found["model"]["identity"]) >= 64  # SHA-256 over weights and template
    assert found["data"]["num_train"] == {"finance": 6, "math": 6}
    assert found["machine"]["threads"] == 1


def test_the_log_has_an_event_for_each_reply_and_round_and_no_text_of_the_data(quick):
    settings = quick(**{"server.num_rounds": 2})
    run(settings)
    log = Path(settings.run.dir) / "metrics.jsonl"
    events = [(event["event"], event["round"], event.get("client")) for event in read_lines(log)]
    clients = ("finance", "math")
    assert events == [
        *(("prepare", 0, client) for client in clients),
        *(("evaluate", 0, client) for client in clients),
        *(("train", 1, client) for client in clients),
        ("round", 1, None),
        *(("train", 2, client) for client in clients),
        ("round", 2, None),
        *(("evaluate", 2, client) for client in clients),
        ("end", 2, None),
    ]
    for event in read_lines(log):
        assert all(
            isinstance(value, int | float) for key, value in event.items() if key not in ("event", "client")
        )


def test_evaluation_comes_every_so_many_rounds_and_always_at_the_end(quick):
    settings = quick(**{"server.num_rounds": 5, "eval.every": 2})
    run(settings)
    names = sorted(path.name for path in (Path(settings.run.dir) / "evaluation").iterdir())
    assert names == [f"round-000{number}.json" for number in (0, 2, 4, 5)]


@pytest.mark.parametrize(
    ("chosen", "batches"),
    [
        ({"method": "fedsdr"}, [[4, 4, 4]]),  # base, global and personalised models
        ({"method": "fedsdr", "server.clients_per_round": 1}, [[4, 4, 2]]),
        ({"method": "fedsdr", "server.aggregation": "fedsa"}, [[4, 2, 2]]),  # no global model
        ({"method": "fedala"}, [[4, 4, 4]]),
        ({"method": "feddpa"}, [[4, 4, 1, 1, 1, 1]]),
        ({"method": "fedsdr", "model.dtype": "float32"}, [[4, 4, 4], [4, 4, 2, 2]]),  # as the products allow
    ],
)
def test_clients_get_the_answers_that_each_would_get_alone(
    quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: dict[str, Any], batches: list[list[int]]
):
    """They are generated together, except where an answer depends on its batch."""
    sizes: list[int] = []

    def counted(base: Base, prompts: Sequence[Sequence[int]], *rest: Any, **more: Any) -> list[Answer]:
        sizes.append(len(prompts))
        return generate(base, prompts, *rest, **more)

    monkeypatch.setattr(tasks, "generate", counted)
    found = []
    for name, is_independent in (("together", True), ("alone", False)):
        if not is_independent:
            monkeypatch.setattr(Base, "has_independent_rows", False)
        sizes.clear()
        load_model.cache_clear()
        changed = {"model.dtype": "bfloat16", "data.num_test": 2, "run.dir": tmp_path / name} | chosen
        folder = RunFolder(run(quick(**changed)).folder)
        paths = folder.clients.rglob("evaluation/*.jsonl")
        found.append({path.relative_to(folder.path): path.read_bytes() for path in paths})
        spent = [event["seconds"] for event in read_lines(folder.log) if event["event"] == "evaluate"]
        assert min(spent) > 0
        assert sizes in batches if is_independent else max(sizes) == 2
    assert found[0] == found[1]


def test_personalised_models_answer_in_groups_of_clients(
    quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The number of adapters in memory is bounded."""
    monkeypatch.setattr(answers, "MOST_ADAPTERS", 2)
    numbers: list[int] = []

    def counted(model: LoraModel, active: Any, private: Sequence[Any]) -> Any:
        numbers.append(len(private))
        return several(model, active, private)

    monkeypatch.setattr(answers, "several", counted)
    run(
        quick(
            **{"method": "local-only", "model.dtype": "bfloat16", "data.domains": ["finance", "math", "code"]}
        )
    )
    assert numbers == [2]  # the third answers alone
    assert not client_context.answers_ahead


@pytest.mark.parametrize(
    ("num_rounds", "due"),
    [(3, [0, 3]), (19, [0, 19]), (20, [*range(0, 21, 2)]), (204, [*range(0, 201, 20), 204])],
)
def test_a_long_run_is_evaluated_about_ten_times_unless_it_says_otherwise(num_rounds: int, due: list[int]):
    settings = load_settings(None, {"server.num_rounds": num_rounds})
    assert [number for number in range(num_rounds + 1) if is_due(settings, number)] == due


def test_a_folder_that_holds_a_run_is_not_overwritten(quick):
    settings = quick()
    run(settings)
    log = (Path(settings.run.dir) / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"already contains a run.*fedsdr resume"):
        run(settings)
    assert (Path(settings.run.dir) / "metrics.jsonl").read_bytes() == log


def test_resuming_a_finished_run_reports_it_again_and_trains_nothing(quick, monkeypatch: pytest.MonkeyPatch):
    settings = quick()
    result = run(settings)
    log = (Path(settings.run.dir) / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(client_round, "local_update", None)
    assert resume(Path(settings.run.dir)) == result
    # Went wrong once: the seconds of the rewriting became those of reading it again.
    assert (Path(settings.run.dir) / "metrics.jsonl").read_bytes() == log


def test_a_run_that_was_gone_on_with_does_not_give_the_cost_of_its_last_part_as_its_own(
    quick, monkeypatch: pytest.MonkeyPatch
):
    """A grid's table had cells that took less time in all than in training."""
    settings = quick()
    folder = Path(settings.run.dir)
    monkeypatch.setattr(client_app, "evaluate_base", None)
    with pytest.raises(UserError):
        run(settings)
    monkeypatch.undo()
    resume(folder)
    assert {"seconds", "peak_memory"} <= read_lines(Path(run(quick()).folder) / "metrics.jsonl")[-1].keys()
    assert read_lines(folder / "metrics.jsonl")[-1] == {"event": "end", "round": settings.server.num_rounds}


def test_a_run_over_flower_is_not_gone_on_with_where_its_data_is_not(quick):
    folder = run(quick()).folder
    (folder / ".nonce").write_text("1")
    with pytest.raises(UserError, match=r"which have the data.*by the command that started it.*--on SERVER"):
        resume(folder)


def test_a_finished_run_over_flower_waits_for_no_client(quick, monkeypatch: pytest.MonkeyPatch):
    deployed = quick(**{"federation.num_clients": 2})
    folder = Path(deployed.run.dir)
    grid = LocalGrid(client_app.app, 2, folder / "clients")
    result = run_over(grid, deployed)
    monkeypatch.setattr(grid, "get_node_ids", None)
    log = folder / "metrics.jsonl"
    whole = log.read_text()
    assert run_over(grid, deployed) == result
    assert log.read_text() == whole
    log.write_text(whole[:-9])  # the disk was full
    assert run_over(grid, deployed) == result
    assert [event["event"] for event in read_lines(log)][-2:] == ["evaluate", "end"]
    other = quick(**{"federation.num_clients": 2, "run.dir": deployed.run.dir, "run.seed": 5})
    with pytest.raises(UserError, match=r"cannot continue: run\.seed was 0 and is 5 now, so"):
        run_over(grid, other)


def test_a_submission_into_a_local_runs_folder_is_refused_and_the_run_goes_on_as_before(quick):
    settings = quick()
    result = run(settings)
    deployed = quick(**{"federation.num_clients": 2, "run.dir": settings.run.dir})
    with pytest.raises(UserError, match="cannot continue: data hash"):
        run_over(LocalGrid(client_app.app, 2, result.folder / "clients"), deployed)
    assert resume(result.folder) == result


def test_a_run_on_this_machine_ignores_the_clients_that_a_deployment_waits_for(quick):
    """Went wrong once: the recipe of a deployment, tried out at home, waited for clients that never come."""
    settings = quick(**{"federation.num_clients": 3, "federation.wait": 0.05, "server.num_rounds": 2})
    expected = run(quick(**{"server.num_rounds": 2}))
    result = run(settings)
    assert (result.base, result.final) == (expected.base, expected.final)
    assert resume(result.folder) == result
    RunFolder(result.folder).evaluation(2).unlink()
    assert evaluate_round(result.folder, None) == (result.base, result.final)
    assert read_settings(result.folder).federation == settings.federation, "it can still be submitted"


def test_a_run_wants_a_folder():
    """Went wrong once: settings made by hand have none, and the run filled the working directory."""
    with pytest.raises(UserError, match=r"run\.dir is empty"):
        run(Settings())


def test_a_folder_without_run_cannot_be_resumed(tmp_path: Path):
    with pytest.raises(UserError, match=r"contains no run: config.toml is missing"):
        resume(tmp_path)


def test_an_unfinished_run_has_no_result_yet(quick, tmp_path: Path):
    (tmp_path / "config.toml").write_text(dump_settings(quick()))
    with pytest.raises(UserError, match=r"not finished.*fedsdr resume"):
        read_result(tmp_path)


HOLD = """
import sys
from pathlib import Path
from fedsdr.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_two_processes_cannot_work_in_one_folder(quick, tmp_path: Path):
    settings = quick(**{"run.dir": str(tmp_path)})
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=rf"another process \({other.pid}\) is working in"):
            run(settings)
        (tmp_path / "config.toml").write_text(dump_settings(settings))
        with pytest.raises(UserError, match=rf"another process \({other.pid}\) is working in"):
            resume(tmp_path)
        (tmp_path / "config.toml").unlink()
        other.kill()
    run(settings)  # the lock went with its process
    assert not (tmp_path / ".lock").exists()


def test_who_made_the_folder_and_lost_its_lock_leaves_it_to_the_winner(
    quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def lost(path: Path, patience: float):
        (path / "data.jsonl").touch()  # by the winner, which has not written config.toml yet
        raise UserError("another process")

    monkeypatch.setattr(run_module, "locked", lost)
    with pytest.raises(UserError, match="another process"):
        run(quick(**{"run.dir": str(tmp_path / "new/run")}))
    assert (tmp_path / "new/run/data.jsonl").exists()


def test_a_run_is_not_resumed_on_data_that_changed(quick, tmp_path: Path):
    """Also within one process, such as a notebook: the files are read again."""
    root = tmp_path / "data"
    write_data(root, {"a": "Yes", "b": "No"})
    settings = quick(**{"data.root": str(root), "data.domains": []})
    run(settings)
    write_data(root, {"b": "Never"})
    with pytest.raises(UserError, match="data hash"):
        resume(Path(settings.run.dir))
    write_data(root, {"b": "No"})
    assert resume(Path(settings.run.dir))


def test_a_new_run_in_the_same_process_reads_the_data_that_are_there_now(quick, tmp_path: Path):
    """After a run that was stopped by an error too."""
    root = tmp_path / "data"
    write_data(root, {"a": "Yes", "b": "No"})
    data = {"data.root": str(root), "data.domains": []}
    with pytest.raises(UserError, match="clients_per_round"):
        run(quick(**data, **{"server.clients_per_round": 3}))
    write_data(root, {"c": "Perhaps"})
    assert list(run(quick(**data)).base["global"]) == ["a", "b", "c", "mean"]


def test_a_client_refuses_to_go_on_in_a_folder_that_was_begun_with_other_data(quick, tmp_path: Path):
    """In a deployment the server cannot compare the data: the client does."""
    data = client_context.data_of(quick())[1][0]
    client_context.check_unchanged(tmp_path, data)
    client_context.check_unchanged(tmp_path, data)
    data.train.pop()
    with pytest.raises(UserError, match=r"data of client finance changed.*5 training and 2 test"):
        client_context.check_unchanged(tmp_path, data)


OTHER_BITS = {"versions": ("torch", "transformers", "numpy", "scipy"), "model": ("identity",),
              "machine": ("processor", "gpu")}  # fmt: skip


def test_a_run_is_not_resumed_where_it_would_compute_other_bits(quick):
    folder = run(quick()).folder
    file = RunFolder(folder).environment
    found = json.loads(file.read_text())
    for part, key in ((part, key) for part, keys in OTHER_BITS.items() for key in keys):
        file.write_text(json.dumps(found | {part: found[part] | {key: "another"}}))
        with pytest.raises(UserError, match=f"{part} {key} was another"):
            resume(folder)
    del found["versions"]["scipy"]  # as in runs of earlier versions
    file.write_text(json.dumps(found))
    assert resume(folder)


def test_a_run_moves_to_another_machine_when_that_is_allowed_and_says_so(quick: Callable[..., Settings]):
    settings = quick()
    run(settings)
    folder = RunFolder(settings.run.dir)
    before = json.loads(folder.environment.read_text())
    before["machine"]["processor"] = "another"
    folder.environment.write_text(json.dumps(before))
    with pytest.raises(UserError, match="--on-other-machine"):
        resume(folder.path)
    result = resume(folder.path, on_other_machine=True)
    (move,) = json.loads(folder.environment.read_text())["moved"]
    assert (move["after_round"], move["machine"]["processor"]) == (1, "another")
    assert "moved to another machine after round 1" in result.report.read_text()
    resume(folder.path)  # it is this machine's run now
    assert json.loads(folder.environment.read_text())["moved"] == [move]


def fail_training_of(clients: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    real = client_round.local_update

    def update(*args: Any, **more: Any) -> dict[str, float]:
        if here().split(", ")[-1] in clients:
            raise ZeroDivisionError("the response was: secret")
        return real(*args, **more)

    monkeypatch.setattr(client_round, "local_update", update)


def test_a_client_that_fails_is_dropped_and_the_round_goes_on_with_the_others(
    quick, monkeypatch: pytest.MonkeyPatch
):
    settings = quick(**{"data.domains": ["finance", "general", "math"], "server.num_rounds": 2})
    fail_training_of(("general",), monkeypatch)
    run(settings)
    events = read_lines(Path(settings.run.dir) / "metrics.jsonl")
    assert [(e["round"], e["client"]) for e in events if e["event"] == "dropped"] == [
        (1, "general"),
        (2, "general"),
    ]
    reasons = {event["reason"] for event in events if event["event"] == "dropped"}
    assert reasons == {"the client failed: ZeroDivisionError, see node-2-error.txt"}
    trained = [(e["round"], e["client"]) for e in events if e["event"] == "train"]
    assert trained == [(1, "finance"), (1, "math"), (2, "finance"), (2, "math")]
    assert "general" in read_result(Path(settings.run.dir)).final["global"]


def test_below_the_quorum_the_run_stops_with_the_reasons_and_can_be_resumed(
    quick, monkeypatch: pytest.MonkeyPatch
):
    settings = quick(**{"server.quorum": 1.0})
    with monkeypatch.context() as patch:
        fail_training_of(("math",), patch)
        with pytest.raises(
            UserError, match=r"1 of 2 sampled.*quorum = 1.0.*math: the client failed: ZeroDivisionError"
        ):
            run(settings)
    undisturbed = run(quick(**{"server.quorum": 1.0}))
    result = resume(Path(settings.run.dir))
    assert (result.base, result.final) == (undisturbed.base, undisturbed.final)


@pytest.mark.parametrize("go_on", [resume, partial(evaluate_round, server_round=None)])
def test_a_run_on_ray_says_what_to_install_where_it_is_continued_without(quick, monkeypatch, go_on):
    folder = run(quick()).folder
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('engine = "local"', 'engine = "simulation"'))
    (folder / "evaluation/round-0000.json").unlink()
    monkeypatch.setattr("fedsdr.federation.preflight.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Ray: pip install 'fedsdr\[simulation\]'"):
        go_on(folder)


def test_settings_that_do_not_fit_the_model_leave_the_folder_free_for_the_next_attempt(quick):
    settings = quick(**{"lora.targets": ["query"]})
    with pytest.raises(UserError, match=r"lora.targets: query matches no linear layer"):
        run(settings)
    assert not (Path(settings.run.dir) / "config.toml").exists()
    run(quick(**{"run.dir": settings.run.dir}))


def test_more_clients_than_there_are_cannot_be_drawn(tiny_settings: Callable[..., Settings], tmp_path: Path):
    """Refused before anything is rewritten."""
    settings = tiny_settings(**{"server.clients_per_round": 6, "run.dir": tmp_path})
    with pytest.raises(UserError, match="clients_per_round = 6, but there are 5 clients"):
        run(settings)
    assert not list(tmp_path.glob("clients/*/distilled.jsonl"))


def test_dropout_repeats_with_the_seed(quick):
    one, two, other = (run(quick(**{"lora.dropout": 0.5, "run.seed": seed})).adapter for seed in (1, 1, 2))
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_run_can_be_resumed_by_the_name_of_its_folder(quick):
    result = run(quick())
    assert resume(str(result.folder)) == result
    assert result.report.is_file()


def test_an_older_round_is_evaluated_only_with_the_model_and_data_of_the_run(quick):
    folder = run(quick(**{"server.num_rounds": 2})).folder
    path = folder / "environment.json"
    path.write_text(path.read_text().replace('"torch": "', '"torch": "0.'))
    with pytest.raises(UserError, match="cannot continue: versions torch"):
        evaluate_round(folder, 1)


def test_a_second_merged_export_equals_the_first(quick, tmp_path: Path):
    """Went wrong once: the adapter was folded into the model that the process keeps, so twice on the second call."""
    folder = run(quick()).folder
    for name in ("one", "two"):
        export_round(folder, tmp_path / name, None, "", merged=True)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_second_run_on_a_warm_cache_asks_the_base_model_nothing(
    quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rewritings and scores of the base are those of the first run; another method shares them."""
    chosen = {"run.cache": str(tmp_path / "cache"), "method": "fedsdr"}
    first = run(quick(**chosen))
    with monkeypatch.context() as patch:
        patch.setattr("fedsdr.distill.rewrite.generate", None)
        patch.setattr("fedsdr.evaluate.tasks.evaluate", None)
        second = run(quick(**chosen))
    assert (second.base, second.final) == (first.base, first.final)
    kept = {path.parent.name for path in (tmp_path / "cache").rglob("*.json*")}
    assert kept == {"rewritings", "scores"}
    assert not list((second.folder / "clients").rglob("reference-*.jsonl"))
    longer = run(quick(**chosen | {"eval.max_new_tokens": 9}))
    assert longer.base != first.base  # another setting is another score


@pytest.mark.parametrize("allowed", ["", "http://localhost:9/v1"])
def test_a_node_sends_its_data_to_no_server_that_its_own_configuration_does_not_name(
    quick, tmp_path: Path, allowed: str
):
    """Settings come from the federation's server; where a client's texts go is the client's affair."""
    theirs = {"distill.url": "http://elsewhere.example/v1", "distill.served_name": "m", "method": "fedsd"}
    settings = quick(**theirs)
    grid = LocalGrid(client_app.app, 2, tmp_path, **{"distill-url": allowed})
    config = ConfigRecord(
        {"settings": settings.model_dump_json(), "version": __version__, "round": 0, "run": "r"}
    )
    message = Message(RecordDict({"config": config}), 1, "query.prepare", group_id="0")
    with pytest.raises(UserError, match=f"elsewhere.example.*allows distill-url = '{allowed}'"):
        list(grid.send_and_receive([message]))


def test_where_a_client_keeps_its_texts_is_said_by_its_node_and_not_by_the_server(quick, tmp_path: Path):
    settings = quick(**{"run.cache": str(tmp_path / "theirs"), "method": "fedsd"})
    own = tmp_path / "own"
    grid = LocalGrid(client_app.app, 2, tmp_path / "clients", cache=str(own))
    config = ConfigRecord(
        {"settings": settings.model_dump_json(), "version": __version__, "round": 0, "run": "r"}
    )
    message = Message(RecordDict({"config": config}), 1, "query.prepare", group_id="0")
    assert not next(iter(grid.send_and_receive([message]))).has_error()
    assert not (tmp_path / "theirs").exists()
    assert list((own / "rewritings").glob("*.jsonl"))


def test_a_model_that_our_attention_does_not_fit_runs_with_its_own(quick, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedsdr.model.attention.keeps_apart", lambda model: False)
    settings = quick(**{"model.attention": "auto"})
    run(settings)
    assert read_settings(Path(settings.run.dir)).model.attention == "eager"
    load_model.cache_clear()
    with pytest.raises(UserError, match="'grouped' does not give this model's results"):
        run(quick(**{"model.attention": "grouped"}))


def test_fast_and_plain_attention_give_the_same_run(quick):
    """In float32: rewritings and answers word for word, losses and adapters up to rounding."""
    results = {}
    chosen = {"method": "fedsdr", "server.num_rounds": 2, "client.local_steps": 3, "eval.rewritings": True}
    for attention in ("grouped", "eager"):
        results[attention] = run(quick(**chosen, **{"model.attention": attention}))
    fast, plain = results["grouped"], results["eager"]
    for name in ("distilled.jsonl", "evaluation/round-0002-global.jsonl"):
        lines, others = (list(read_lines(one.folder / "clients/math" / name)) for one in (fast, plain))
        for line, other in zip(lines, others, strict=True):
            assert line.pop("nats", 0) == pytest.approx(other.pop("nats", 0), rel=1e-5)
        assert lines == others
    for model, by_domain in plain.final.items():
        for domain, metrics in by_domain.items():
            assert fast.final[model][domain] == pytest.approx(metrics, rel=1e-4)
    ours, theirs = load_adapter(fast.adapter), load_adapter(plain.adapter)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-5)


def test_an_update_that_blew_up_in_its_last_step_is_told_as_divergence(tiny_settings):
    """Its losses were finite; the server would drop it for its norm, and report a missed quorum."""
    settings = tiny_settings(**{"method": "fedit", "client.local_steps": 1, "client.learning_rate": 1e30})
    with pytest.raises(
        Diverged, match=r"round 1, code: training diverged: .* norm .*; lower client.learning_rate"
    ):
        run(settings)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def test_what_is_left_out_or_cut_is_told_before_the_run_and_on_record(
    quick: Callable[..., Settings], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    good = {"instruction": "6 * 7?", "output": "It is 42.", "answer": 42}
    rows = [
        *({**good, "input": str(n)} for n in range(3)),
        {**good, "input": "cut", "output": "Well, " * 300 + "it is 42."},
        {**good, "input": "free", "output": "Well, " * 300, "answer": None},
        {**good, "input": "long " * 900},
        {"instruction": "6 * 7?"},
    ]
    for name in ("train", "test"):
        path = tmp_path / "data" / "math" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = {"data.root": str(tmp_path / "data"), "data.domains": ["math"], "model.max_length": 256}
    chosen |= {"data.num_train": 0, "data.num_test": 0, "run.dir": str(tmp_path / "run")}
    chosen["partition.num_clients"] = 1
    with pytest.raises(UserError, match=r"train\.jsonl:7.*response is missing.*\n.*test\.jsonl:7|2 rows"):
        run(quick(**chosen))
    assert not (tmp_path / "run" / "config.toml").exists()
    settings = quick(**chosen, **{"data.skip_bad_rows": True})
    run(settings)
    data = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    assert data["left_out"] == {"math": {"response is missing": 2, TOO_LONG: 2, ANSWER_CUT: 1}}
    assert data["num_cut"] == {"math": 3}  # free in both parts, and cut where it is only asked
    (prepared,) = [e for e in read_lines(tmp_path / "run" / "metrics.jsonl") if e["event"] == "prepare"]
    assert (prepared["num_train"], prepared["num_cut_raw"]) == (4, 1)
    told = capfd.readouterr().err
    assert f"math: 1 rows left out: {ANSWER_CUT}" in told
    assert "3 of 9 responses are cut at model.max_length" in told
    assert "3 of 9 responses are cut" in (tmp_path / "run" / "report.html").read_text()


def test_all_answers_of_a_conversation_are_rewritten_and_taught(
    quick: Callable[..., Settings], tmp_path: Path
):
    said = ["Where is Oslo?", "In Norway.", "And Rome?", "In Italy."]
    for name in ("train", "test"):
        path = tmp_path / "data" / "geo" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"conversations": turns(f"{name}: {said[0]}", *said[1:])}) + "\n")
    chosen = {"data.root": str(tmp_path / "data"), "data.domains": ["geo"], "method": "fedsdr"}
    chosen |= {"data.train_on": "all", "run.dir": str(tmp_path / "run"), "client.local_steps": 2}
    run(quick(**chosen))
    pairs = read_lines(tmp_path / "run" / "clients" / "geo" / "distilled.jsonl")
    assert [pair["output"] for pair in pairs] == ["In Norway.", "In Italy."]
    assert [pair.get("history") for pair in pairs] == [None, [["train: Where is Oslo?", "In Norway."]]]


def test_data_that_contradict_themselves_stop_the_run_before_it_begins(
    quick: Callable[..., Settings], tmp_path: Path
):
    """GSM8K with its column `answer` taken for the final answer too: rewriting fell back, the score was 0."""
    rows = [{"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1} #### {n + 1}"} for n in range(6)]
    for name in ("train", "test"):
        path = tmp_path / "data" / "math" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = {"data.root": str(tmp_path / "data"), "data.domains": ["math"], "run.dir": str(tmp_path / "run")}
    chosen |= {"data.columns.instruction": "question", "data.columns.response": "answer"}
    with pytest.raises(UserError, match=r"train\.jsonl:1: all 8 examples of domain 'math' contradict"):
        run(quick(**chosen, **{"data.columns.answer": "{answer} so"}))
    assert not (tmp_path / "run" / "config.toml").exists()
    assert run(quick(**chosen)).final


def test_a_run_on_given_rewritings_asks_no_model_for_them(quick, tmp_path: Path):
    write_data(tmp_path / "data", {"bank": "It is", "law": "Surely"})
    for path in (tmp_path / "data").glob("*/train.jsonl"):
        rows = [{**row, "distilled": f"In short, {row['output']}"} for row in read_lines(path)]
        rewrite_lines(path, rows)
    settings = {"data.root": str(tmp_path / "data"), "data.domains": [], "method": "fedsd"}
    result = run(quick(**settings))
    clients = RunFolder(result.folder).client_folders()
    pairs = [pair for client in clients for pair in read_lines(client.rewritings("train"))]
    assert {(pair["distilled"], pair["prompt"]) for pair in pairs} == {
        (f"In short, {word} {n}.", "given") for word in ("It is", "Surely") for n in range(4)
    }
    assert not [path for client in clients for path in client.path.glob("rewritings/*.jsonl")]


def test_the_page_is_written_while_the_run_goes_on(quick, monkeypatch: pytest.MonkeyPatch):
    """The first round finds the page of the base model; a run that ends has a page that does not reload."""
    settings, seen = quick(**{"server.num_rounds": 2}), []
    original = client_app.run_round

    def watched(*parts: Any) -> Any:
        seen.append(RunFolder(settings.run.dir).report.read_text())
        return original(*parts)

    monkeypatch.setattr(client_app, "run_round", watched)
    run(settings)
    assert "running: 0 of 2 rounds" in seen[0]
    assert "setTimeout" in seen[0]
    final = RunFolder(settings.run.dir).report.read_text()
    assert "running:" not in final and "setTimeout" not in final


@pytest.mark.parametrize("kind", ["none", "local"])
def test_the_loss_of_each_step_stays_in_the_clients_folder_and_is_absent_under_privacy(quick, kind: str):
    settings = quick(**{"client.local_steps": 3, "privacy.kind": kind})
    run(settings)
    folder = RunFolder(settings.run.dir)
    trained = {e["client"]: e for e in read_lines(folder.log) if e["event"] == "train"}
    for client, event in trained.items():
        steps = read_lines(folder.client(client).steps(1))
        assert len(steps) == (3 if kind == "none" else 0)
        if steps:
            mean = sum(step["loss"] for step in steps) / 3
            assert event["train/shared/loss"] == pytest.approx(mean)
            assert not {f"{step['loss']}" for step in steps[1:-1]} & set(map(str, event.values()))


def test_a_release_counts_though_its_round_was_not_finished(quick, monkeypatch: pytest.MonkeyPatch):
    """Under local privacy the server has the noised updates of round 2, though it stopped before it used them."""
    settings = quick(**{"privacy.kind": "local", "privacy.noise_multiplier": 2.0, "server.num_rounds": 2})
    aggregate = FedStrategy._aggregate

    def stop(strategy: FedStrategy, updates: Any, server_round: int) -> Any:
        if server_round == 2:
            raise UserError("stopped")
        return aggregate(strategy, updates, server_round)

    monkeypatch.setattr(FedStrategy, "_aggregate", stop)
    with pytest.raises(UserError, match="stopped"):
        run(settings)
    events = read_lines(RunFolder(settings.run.dir).log)
    twice = epsilon(settings.privacy, 2)
    assert f"epsilon {twice:.3g}" in privacy_facts(settings.privacy, events)[0][1]
    monkeypatch.undo()
    resume(Path(settings.run.dir))
    rows = privacy_sheet(read_lines(RunFolder(settings.run.dir).log)).rows
    assert [row[0] for row in rows] == ["1", "2"] and rows[1][1] == f"{twice:.3g}"
