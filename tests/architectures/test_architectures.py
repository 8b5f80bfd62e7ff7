"""Every architecture runs, resumes, exports, and gives the same answers in PEFT; or it is rejected with a
clear error. Each result is a row of docs/models.md. `make test-architectures` tries all of them, and with
FEDSDR_RECORD rewrites the table.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.architectures.configurations import CONFIGURATIONS, IDS, IN_SHORT
from transformers import AutoConfig, AutoModelForCausalLM

import fedsdr
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation.dry_run import dry_run
from fedsdr.federation.export import export_round
from fedsdr.federation.model_cache import model_of
from fedsdr.model.adapter_files import load_adapter
from fedsdr.model.adapters import LoraModel
from fedsdr.model.targets import without_adapter
from fedsdr.run_folder import RunFolder, read_settings

PAGE = Path(__file__).parents[2] / "docs/models.md"
TOKENS = torch.arange(3, 63).reshape(3, 20)
MOVING = {"lora.alpha": 7.0, "client.learning_rate": 0.03, "client.schedule": "constant"}
HEADER = "| architecture | works | layers with adapters | without, or why not |"
LONG = pytest.mark.skipif(not os.environ.get("FEDSDR_FULL"), reason="long; `make test-architectures` runs it")
TRIED = [name if name in IN_SHORT else pytest.param(name, marks=LONG) for name in CONFIGURATIONS]


def build(kind: str, folder: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, folder)
    config = AutoConfig.for_model(kind, **IDS, **CONFIGURATIONS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def works(settings: Settings, folder: Path) -> LoraModel:
    """Run, resume, export and load elsewhere; return the model with the adapter of the last round."""
    dry_run(settings)
    fedsdr.run(settings)
    chosen = read_settings(Path(settings.run.dir))
    run = RunFolder(settings.run.dir)
    whole = [run.round(number) / "adapter_model.safetensors" for number in (1, 2)]
    before = [path.read_bytes() for path in whole]
    shutil.rmtree(run.round(2))
    fedsdr.resume(settings.run.dir)
    assert [path.read_bytes() for path in whole] == before

    model = model_of(chosen)
    model.load("shared", load_adapter(run.round(2)))
    with model.inference(("shared",)):
        ours = model.base.model(TOKENS, use_cache=False).logits
    with model.inference(()):
        plain = model.base.model(TOKENS, use_cache=False).logits
    assert (ours - plain).abs().max() > 0.1
    export_round(run.path, folder / "adapter", None, "", merged=False)
    export_round(run.path, folder / "merged", None, "", merged=True)
    with torch.no_grad():
        base, merged = (
            AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            for path in (settings.model.name, folder / "merged")
        )
        peft = PeftModel.from_pretrained(base, folder / "adapter")
        for theirs in (peft, merged):
            torch.testing.assert_close(ours, theirs(TOKENS, use_cache=False).logits, rtol=1e-4, atol=1e-4)
    return model


@pytest.mark.parametrize("kind", TRIED)
def test_it_works_and_gives_equal_logits_or_is_refused_in_words(
    kind: str, tiny_folder: Path, tmp_path: Path, tiny_settings: Callable[..., Settings]
) -> None:
    build(kind, tmp_path / kind, tiny_folder)
    settings = tiny_settings(
        **{"model.name": tmp_path / kind, "data.domains": ["math"], "server.num_rounds": 2, **MOVING}
    )
    try:
        model = works(settings, tmp_path)
    except UserError as error:
        assert not (Path(settings.run.dir) / "config.toml").exists(), "refused after the folder became a run"
        why = str(error).removeprefix(f"model.name = {tmp_path / kind}: ").partition(";")[0]
        row = f"| {kind} | no | | {why} |"
    else:
        names = ", ".join(sorted({path.rpartition(".")[2] for path in model.layers}))
        rest = ", ".join(sorted(without_adapter(model.base.model, model.layers)))
        attention = model.base.model.config._attn_implementation
        row = f"| {kind} | yes, attention {attention} | {names} | {rest} |"
    if os.environ.get("FEDSDR_RECORD"):
        write(kind, row)
    assert row in PAGE.read_text().splitlines(), f"docs/models.md lacks the row\n{row}"


def write(kind: str, row: str) -> None:
    """Put a row in the page's table, in the order of names."""
    lines = PAGE.read_text().splitlines()
    first = lines.index(HEADER) + 2
    last = next(number for number in range(first, len(lines) + 1) if not "".join(lines[number : number + 1]))
    rows = {line.split("|")[1].strip(): line for line in lines[first:last]} | {kind: row}
    lines[first:last] = [rows[name] for name in sorted(rows)]
    PAGE.write_text("\n".join(lines) + "\n")


def test_the_page_has_a_row_for_each_and_no_other() -> None:
    table = PAGE.read_text().partition(HEADER)[2].splitlines()
    assert [line.split("|")[1].strip() for line in table if line.startswith("| ")] == sorted(CONFIGURATIONS)
