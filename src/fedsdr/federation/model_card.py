"""The README.md of an exported model: base, data, settings, scores, and how to serve it."""

from pathlib import Path
from typing import Any

import tomli_w

from fedsdr import __version__
from fedsdr.catalogue import changed_values
from fedsdr.config import Settings
from fedsdr.model.base import public_name
from fedsdr.report.sheets import loss_sheet, render_text, score_sheet
from fedsdr.run_folder import RunFolder
from fedsdr.storage import read_json

APART = ("run.dir", "run.cache", "run.ray", "data.root", "data.sources", "distill.url", "federation.nodes",
         "lora.client_ranks")  # fmt: skip
"""Settings with local paths, network addresses and client names: useless to readers, and a card may be
published."""


def model_card(
    settings: Settings, server_round: int, client: str, merged: bool, rank: int, scale: float = 1.0
) -> str:
    """Write a model card with the metadata that the hub reads.

    Args:
        settings: The run's settings.
        server_round: The exported round.
        client: Client of the personalised model; "": the global one.
        merged: Whether it is a whole model, not an adapter.
        rank: Rank of the adapter.
        scale: What the trained change of the base is multiplied by.
    """
    run = RunFolder(settings.run.dir)
    base, data = public_name(settings.model.name), read_json(run.environment)["data"]
    base = Path(base).name if Path(base).exists() else base
    meta = {"base_model": base, "library_name": "transformers" if merged else "peft"}
    whose = f"The personalised model of client {client}" if client else "The global model"
    path = run.evaluation(server_round)
    scores = read_json(path) if path.exists() else {}
    before = read_json(run.evaluation(0)) if run.evaluation(0).exists() else {}
    sheets = [make(before, scores) for make in (score_sheet, loss_sheet)]
    tables = [render_text(sheet, markdown=True) for sheet in sheets if sheet.rows]
    num_train = sum(data["num_train"].values())
    return "\n".join(
        [
            "---",
            *(f"{key}: {value}" for key, value in meta.items()),
            "tags: [federated-learning, lora, fedsdr]",
            "---",
            f"# {client or run.path.resolve().name}",
            f"{whose} after round {server_round} of {settings.server.num_rounds}, trained by"
            f" `{settings.method}` with fedsdr {__version__} on {base}.",
            *([f"{weights}."] if (weights := other_weights(settings, merged)) else []),
            *([f"The trained change of the base is multiplied by {scale:g}."] if scale != 1 else []),
            "\n## Data",
            f"{data['origin']}: {num_train:,} training examples of {len(data['num_train'])} clients.",
            "\n## Scores",
            *([f"Of the trained model, not of this one at scale {scale:g}."] if scale != 1 else []),
            *("\n\n".join(tables).split("\n") if scores else ["This round was not evaluated here."]),
            "\n## Use",
            _use(merged, rank),
            "\n## Settings that differ from the defaults, with what `auto` chose",
            f"```toml\n{tomli_w.dumps(_for_readers(settings))}```\n",
        ]
    )


def other_weights(settings: Settings, merged: bool) -> str:
    """Say that the model was not trained on the hub's own weights; "" if it was, or is not on the hub."""
    named = public_name(settings.model.name)
    if named == settings.model.name:
        return ""
    origin = read_json(RunFolder(settings.run.dir).environment)["model"]["origin"]
    if merged:
        return f"The model was trained on {origin}, and has these weights, not the hub's own"
    return (
        f"The adapter names {named} as its base; it was trained on {origin} (`fedsdr models` shows the"
        " folder), so on the hub's own weights its answers differ a little"
    )


def _use(merged: bool, rank: int) -> str:
    if merged:
        return "```\nvllm serve FOLDER\npython convert_hf_to_gguf.py FOLDER    # of llama.cpp\n```"
    ranks = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
    return (
        "```python\n"
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "FOLDER")\n'
        "```\n\n```\n"
        f"vllm serve BASE --enable-lora --max-lora-rank {ranks} --lora-modules mine=FOLDER\n"
        "python convert_lora_to_gguf.py FOLDER --base BASE_FOLDER --outfile mine.gguf    # of llama.cpp\n"
        "llama-server --model BASE.gguf --lora mine.gguf\n"
        "```\nBASE is the base model above. vLLM allows certain ranks only:"
        f" {ranks} is the smallest that holds this adapter's {rank}."
    )


def _for_readers(settings: Settings) -> dict[str, Any]:
    """Changed settings by dotted key, without `APART` and paths."""
    return {
        key: value
        for key, value in changed_values(settings).items()
        if not key.startswith(APART) and not Path(str(value)).is_absolute()
    }


def push(folder: Path, repository: str) -> None:
    """Upload an exported folder to the Hugging Face hub, into a private repository if it is new.

    Raises:
        UserError: The hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from fedsdr.errors import UserError

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except HfHubHTTPError as error:
        raise UserError(f"--push-to-hub {repository}: {error}; log in by `hf auth login`") from None
