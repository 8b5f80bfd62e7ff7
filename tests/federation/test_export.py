"""What an exported folder holds besides weights, where it can be pushed, and what clean leaves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors import safe_open
from transformers import AutoTokenizer

from fedsdr.cli import main
from fedsdr.config import Settings
from fedsdr.data.sources import BUILT_IN
from fedsdr.errors import UserError
from fedsdr.federation import server_app
from fedsdr.federation.client_app import app
from fedsdr.federation.export import export_round
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.federation.model_card import model_card
from fedsdr.federation.run import resume, run
from fedsdr.model.adapter_files import join, load_adapter
from fedsdr.run_folder import Result, RunFolder, list_rounds, read_settings
from fedsdr.server import checkpoint
from fedsdr.storage import read_json, read_lines, rewrite_lines, write_json


@pytest.fixture
def finished(tiny_settings: Callable[..., Settings]) -> Result:
    quick = {"data.domains": ["finance", "math"], "server.num_rounds": 3, "client.local_steps": 1,
             "eval.rewritings": False, "eval.max_new_tokens": 2, "method": "fedit"}  # fmt: skip
    return run(tiny_settings(**quick))


def ends(words: list[Any]) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return int(end.value.code or 0)


def test_an_adapter_comes_with_its_tokenizer_and_a_card_that_names_base_data_scores_and_settings(
    finished: Result, tmp_path: Path
):
    export_round(finished.folder, tmp_path / "out", None, "", merged=False)
    card = (tmp_path / "out" / "README.md").read_text()
    loss = finished.final["global"]["mean"]["loss"]
    assert card.startswith("---\nbase_model: ")
    model = read_settings(finished.folder).model
    assert "auto" not in (model.attention, model.gradient_checkpointing)
    for said in ("library_name: peft", "`fedit`", "built-in: 12 training", f"{loss:.3f}",
                 f'"model.attention" = "{model.attention}"',
                 f'"model.gradient_checkpointing" = "{model.gradient_checkpointing}"',
                 '"client.local_steps" = 1', "--max-lora-rank 8"):  # fmt: skip
        assert said in card, said
    assert str(finished.folder.parent) not in card
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_a_card_names_no_client_and_no_address_of_the_network(finished: Result):
    settings = read_settings(finished.folder)
    secrets = {
        "lora": settings.lora.model_copy(update={"client_ranks": {"clinic-north": 4}}),
        "distill": settings.distill.model_copy(update={"url": "http://10.0.0.7:8000", "top_p": 0.5}),
        "run": settings.run.model_copy(update={"ray": "10.0.0.8:6379"}),
        "federation": settings.federation.model_copy(update={"nodes": "hospitals"}),
    }
    card = model_card(settings.model_copy(update=secrets), 3, "", merged=False, rank=8)
    assert '"distill.top_p" = 0.5' in card
    assert [word for word in ("clinic-north", "10.0.0", "hospitals") if word in card] == []


def test_a_card_says_that_the_weights_in_training_were_not_those_of_the_hub(finished: Result):
    """It said "trained on HuggingFaceTB/SmolLM2-135M-Instruct"; only the terminal told otherwise."""
    settings, run = read_settings(finished.folder), RunFolder(finished.folder)
    own = model_card(settings, 3, "", merged=False, rank=8)
    assert "weights" not in own.partition("## Use")[0]
    model = settings.model.model_copy(update={"name": "smollm2-135m-instruct"})
    about = {"name": model.name, "origin": "SmolLM2-135M-Instruct, Q4_1 dequantised", "identity": ""}
    write_json(run.environment, read_json(run.environment) | {"model": about})
    lent = settings.model_copy(update={"model": model})
    card = model_card(lent, 3, "", merged=False, rank=8)
    assert "trained on SmolLM2-135M-Instruct, Q4_1 dequantised (`fedsdr models` shows the folder)" in card
    assert "on the hub's own weights its answers differ a little." in card
    whole = model_card(lent, 3, "", merged=True, rank=8)
    assert "trained on SmolLM2-135M-Instruct, Q4_1 dequantised, and has these weights" in whole


def test_a_merged_model_is_saved_in_the_type_that_was_asked_for(finished: Result, tmp_path: Path):
    assert ends(["export", finished.folder, tmp_path / "half", "--merged", "--dtype", "bfloat16"]) == 0
    with safe_open(tmp_path / "half" / "model.safetensors", "pt") as weights:
        assert {str(weights.get_tensor(key).dtype) for key in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert ends(["export", finished.folder, tmp_path / "no", "--dtype", "bfloat16"]) == 2
    assert not (tmp_path / "no").exists()


def test_a_scaled_export_is_the_base_plus_a_part_of_the_change(finished: Result, tmp_path: Path):
    """The control of docs/frontier.md, as adapter and as a whole model."""
    for name, scale in (("whole", 1.0), ("half", 0.5)):
        export_round(finished.folder, tmp_path / name, None, "", merged=False, scale=scale)
    whole, half = (load_adapter(tmp_path / name) for name in ("whole", "half"))
    for key in whole:
        factor = 0.5 if "lora_B" in key else 1.0
        assert torch.equal(half[key], factor * whole[key])
    assert any(value.any() for key, value in half.items() if "lora_B" in key)
    card = (tmp_path / "half" / "README.md").read_text()
    assert "multiplied by 0.5" in card and "Of the trained model" in card
    assert "multiplied" not in (tmp_path / "whole" / "README.md").read_text()
    assert ends(["export", finished.folder, tmp_path / "none", "--scale", "0"]) == 2
    assert not (tmp_path / "none").exists()


def test_push_to_hub_uploads_the_folder_that_was_written(
    finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Against a stub of the hub's client: nothing was uploaded in earnest."""
    seen: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, repository: str, **options: Any) -> None:
            seen.append((repository, options))

        def upload_folder(self, repo_id: str, folder_path: Path) -> None:
            seen.append((repo_id, {"files": {path.name for path in Path(folder_path).iterdir()}}))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert ends(["export", finished.folder, tmp_path / "out", "--push-to-hub", "me/mine"]) == 0
    assert seen[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert {"README.md", "adapter_model.safetensors", "tokenizer.json"} <= seen[1][1]["files"]


def test_clean_keeps_what_resuming_and_exporting_need(finished: Result, tmp_path: Path, capsys):
    before = load_adapter(finished.adapter)
    assert ends(["clean", finished.folder, "--keep", "2"]) == 0
    assert list_rounds(finished.folder / "server") == [0, 2, 3]
    assert ends(["clean", finished.folder, "--keep", "last"]) == 0
    assert list_rounds(finished.folder / "server") == [3]
    assert "removed 2 of 3 rounds" in capsys.readouterr().out
    assert resume(finished.folder).final == finished.final
    export_round(finished.folder, tmp_path / "out", None, "", merged=False)
    after = load_adapter(tmp_path / "out")
    assert all((after[key] == before[key]).all() for key in before)
    assert ends(["clean", finished.folder, "--keep", "none"]) == 2
    assert not list(finished.folder.rglob("*.lock"))


CONVERTER = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
base = pathlib.Path(sys.argv[sys.argv.index("--base") + 1])
assert (pathlib.Path(sys.argv[1]) / "adapter_model.safetensors").exists() and (base / "config.json").exists()
out.write_text(json.dumps(sys.argv[1:]))
"""


def test_rounds_that_the_end_of_an_unfinished_run_reads_are_not_cleaned(finished: Result, capsys):
    """Once the run trained its last round and could not end."""
    config = RunFolder(finished.folder).config
    config.write_text(config.read_text().replace("mean_of_rounds = 1", "mean_of_rounds = 3"))
    shutil.rmtree(finished.folder / "server/round-0003")
    assert ends(["clean", finished.folder, "--keep", "last"]) == 2
    assert "finish it first, by `fedsdr resume" in capsys.readouterr().err
    assert list_rounds(finished.folder / "server") == [0, 1, 2]


def test_an_adapter_is_converted_by_llama_cpps_converter_where_it_is_at_hand(
    finished: Result, tmp_path: Path, monkeypatch, capfd
):
    """Against a stub of the converter, which checks what it is given; not the real one."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    assert ends(["export", finished.folder, tmp_path / "a", "--gguf-lora"]) == 2
    assert "LLAMA_CPP = '': there is no convert_lora_to_gguf.py; set this" in capfd.readouterr().err
    assert not (tmp_path / "a").exists()
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    assert ends(["export", finished.folder, tmp_path / "b", "--gguf-lora"]) == 2
    assert "there is no convert_lora_to_gguf.py" in capfd.readouterr().err
    (tmp_path / "convert_lora_to_gguf.py").write_text(CONVERTER)
    assert ends(["export", finished.folder, tmp_path / "b", "--gguf-lora"]) == 0
    assert (tmp_path / "b/adapter.gguf").exists()
    assert ends(["export", finished.folder, tmp_path / "d", "--gguf-lora", "--merged"]) == 2
    assert not (tmp_path / "d").exists()


@pytest.fixture
def with_a_deployed_copy(
    tiny_settings: Callable[..., Settings], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, Path]]:
    """Run a simulation whose messages to client math a deployed node of that name gets, too; both folders."""

    def start(**options: Any) -> tuple[Path, Path]:
        for name, part in ((name, part) for name in ("finance", "math") for part in ("train", "test")):
            rows = read_lines(BUILT_IN / "domains" / name / f"{part}.jsonl")[:4]
            rewrite_lines(tmp_path / "data" / name / f"{part}.jsonl", rows)
        shutil.copytree(tmp_path / "data/math", tmp_path / "own/math")
        node = {"client": "math", "data": str(tmp_path / "own"), "folder": str(tmp_path / "state"),
                "model": str(tiny_folder)}  # fmt: skip
        own, answer = Context(1, 1, node, RecordDict(), {}), LocalGrid._answer

        def answer_twice(grid: LocalGrid, message: Message) -> Message:
            reply = answer(grid, message)
            if message.metadata.dst_node_id == 2:
                again = app(message, own)
                assert not again.has_error()
                if message.metadata.message_type == "train":
                    assert again.content["arrays"] == reply.content["arrays"]
            return reply

        monkeypatch.setattr(LocalGrid, "_answer", answer_twice)
        quick = {"data.root": str(tmp_path / "data"), "data.num_train": 0, "data.num_test": 0,
                 "server.num_rounds": 2, "eval.every": 0, "eval.rewritings": False, "eval.max_new_tokens": 2}  # fmt: skip
        run_folder = run(tiny_settings(**quick | options)).folder
        (state,) = (tmp_path / "state").glob("*-*")
        return run_folder, state

    return start


@pytest.mark.parametrize(
    ("method", "aggregation"), [("dual-raw", "average"), ("fdlora", "average"), ("fedit", "fedsa")]
)
def test_a_client_of_a_deployment_writes_its_personalised_model_itself(
    with_a_deployed_copy: Callable[..., tuple[Path, Path]], tmp_path: Path, method: str, aggregation: str
):
    """The run recommended for personalised models scored them, and nobody could take one out."""
    run_folder, state = with_a_deployed_copy(method=method, **{"server.aggregation": aggregation})
    assert ends(["export", run_folder, tmp_path / "simulated", "--client", "math"]) == 0
    assert ends(["export", state, tmp_path / "deployed"]) == 0
    one, two = (load_adapter(tmp_path / name) for name in ("simulated", "deployed"))
    assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)
    configs = [tmp_path / name / "adapter_config.json" for name in ("simulated", "deployed")]
    assert configs[0].read_bytes() == configs[1].read_bytes()
    assert (
        "personalised model of client math after round 2 of 2"
        in (tmp_path / "deployed/README.md").read_text()
    )
    assert list_rounds(state / "math/received/server") == [2]


def test_a_client_whose_run_stopped_exports_with_the_shared_adapter_that_it_received_last(
    with_a_deployed_copy: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
):
    """In round 2 it receives what round 1 gave; no round was evaluated."""
    save = checkpoint.save_round

    def stop(folder: RunFolder, server_round: int, *rest: Any) -> None:
        if server_round == 2 and folder.path.name != "received":
            raise UserError("stopped")
        save(folder, server_round, *rest)

    monkeypatch.setattr(server_app, "save_round", stop)
    with pytest.raises(UserError, match="stopped"):
        with_a_deployed_copy(method="dual-raw", **{"run.dir": str(tmp_path / "run")})
    (state,) = (tmp_path / "state").glob("*-*")
    assert ends(["export", state / "math", tmp_path / "deployed"]) == 0
    shared, own = load_adapter(tmp_path / "run/server/round-0001"), load_adapter(state / "math/round-0001")
    whole = join(shared, own)
    found = load_adapter(tmp_path / "deployed")
    assert all((found[key] == whole[key]).all() for key in whole)
    assert ends(["export", state, tmp_path / "no", "--client", "math"]) == 2
    assert "leave out --client" in capsys.readouterr().err


def test_a_server_cannot_change_the_method_within_a_run(
    with_a_deployed_copy: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
):
    """To fedala, for example, which would mix the saved private adapter into the one that is sent."""
    messages: list[tuple[Message, Context]] = []
    answer = app

    def recorded(message: Message, context: Context) -> Message:
        messages.append((message, context))
        return answer(message, context)

    monkeypatch.setitem(globals(), "app", recorded)
    with_a_deployed_copy(method="fedsdr")
    monkeypatch.undo()
    message, context = next(one for one in reversed(messages) if one[0].metadata.message_type == "train")
    config = message.content["config"]
    config["settings"] = json.dumps(json.loads(str(config["settings"])) | {"method": "fedala"})
    assert app(message, context).has_error()
    assert "not those with which this run began" in str(context.state["error"]["text"])


def test_a_client_of_a_method_without_personalised_models_keeps_no_shared_adapter(
    with_a_deployed_copy: Callable[..., tuple[Path, Path]],
):
    _, state = with_a_deployed_copy(method="fedit")
    assert not list(state.rglob("received"))


def test_at_the_server_of_a_deployment_the_command_for_a_clients_model_is_named(
    finished: Result, tmp_path: Path, capsys
):
    """It said that the client has no adapter of its own."""
    RunFolder(finished.folder).nonce.write_text("1")
    assert ends(["export", finished.folder, tmp_path / "out", "--client", "math"]) == 2
    told = capsys.readouterr().err
    assert "on their own machines" in told and "fedsdr export STATE/RUN NEW" in told
