"""What an exported folder holds besides weights, where it can be pushed, and what clean leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from fedsdr.cli import main
from fedsdr.config import Settings
from fedsdr.federation.export import export_round
from fedsdr.federation.model_card import model_card
from fedsdr.federation.run import resume, run
from fedsdr.model.adapter_files import load_adapter
from fedsdr.run_folder import Result, list_rounds, read_settings


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
    assert "auto" not in (model.attention, model.checkpointing)
    for said in ("library_name: peft", "`fedit`", "built-in: 12 training", f"{loss:.3f}",
                 f'"model.attention" = "{model.attention}"', f'"model.checkpointing" = "{model.checkpointing}"',
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


def test_a_merged_model_is_saved_in_the_type_that_was_asked_for(finished: Result, tmp_path: Path):
    assert ends(["export", finished.folder, tmp_path / "half", "--merged", "--dtype", "bfloat16"]) == 0
    with safe_open(tmp_path / "half" / "model.safetensors", "pt") as weights:
        assert {str(weights.get_tensor(key).dtype) for key in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert ends(["export", finished.folder, tmp_path / "no", "--dtype", "bfloat16"]) == 2
    assert not (tmp_path / "no").exists()


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
