"""`fedsdr chat` and `fedsdr export`: using the models of a run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fedsdr.apps.run import checked_round, read_settings
from fedsdr.apps.site import load_model
from fedsdr.client.state import load_private
from fedsdr.config import Lora, Settings
from fedsdr.data.conversation import encode_prompt
from fedsdr.errors import UserError
from fedsdr.model.adapter_files import load_adapter, save_adapter
from fedsdr.model.generation import Sampling, generate
from fedsdr.server.checkpoint import round_folder
from fedsdr.storage import write_folder
from fedsdr.tables import Adapter


def open_chat(folder: Path, max_new_tokens: int) -> Callable[[str], dict[str, str]]:
    """Load a run's models; the function returned answers one question with each, greedily.

    Raises:
        UserError: The folder holds no run or no finished round.
    """
    settings = read_settings(folder)
    shared = load_adapter(round_folder(folder / "server", checked_round(folder, None)))
    base, adapters = load_model(settings.model, settings.lora, settings.run.threads)
    adapters.load("shared", shared)

    def ask(question: str) -> dict[str, str]:
        prompt = encode_prompt(base.tokenizer, [{"role": "user", "content": question}])
        models: dict[str, tuple[Adapter, ...]] = {"base": (), "global": ("shared",)}
        answers = {}
        for model, active in models.items():
            with adapters.inference(active, base.dtype):
                (answer,) = generate(base, [prompt], Sampling(max_new_tokens))
            answers[model] = answer.text
        return answers

    return ask


def export_round(folder: Path, to: Path, server_round: int | None, client: str, merged: bool) -> None:
    """Write the global model of a round, or a client's personalised one, for use elsewhere.

    As an adapter in PEFT's format: the shared one as it is; shared and private as one adapter of
    twice the rank and alpha, which adds the same to every layer. Merged: the whole model in
    float32, W0 + (alpha/r) B A. (In bfloat16 most of a short training's change would be rounded
    away.)

    Raises:
        UserError: `to` exists, the round is not finished, or the client has no private adapter.
    """
    settings = read_settings(folder)
    if to.exists():
        raise UserError(f"{to} exists already; name a folder that does not")
    number = checked_round(folder, server_round)
    state, lora = load_adapter(round_folder(folder / "server", number)), settings.lora
    if client:
        state, lora = _join(state, _private_of(folder, client, number), lora)
    if merged:
        _export_merged(settings, state, lora, to)
        return
    targets = sorted({key.split(".")[-3] for key in state})
    write_folder(to, lambda aside: save_adapter(aside, state, lora, targets, settings.model.name))


def _private_of(folder: Path, client: str, number: int) -> dict[str, Tensor]:
    private = load_private(folder / "clients" / client, before=number + 1)
    if private is None:
        known = sorted(path.parent.name for path in (folder / "clients").glob("*/round-*"))
        raise UserError(
            f"client {client!r} has no private adapter of round {number};"
            f" clients that have any: {', '.join(dict.fromkeys(known)) or 'none'}"
        )
    return private


def _join(a: dict[str, Tensor], b: dict[str, Tensor], lora: Lora) -> tuple[dict[str, Tensor], Lora]:
    """Two adapters as one of twice the rank: B_a A_a + B_b A_b = [B_a B_b] [A_a; A_b]."""
    joined = {key: torch.cat([a[key], b[key]], dim=0 if ".lora_A." in key else 1) for key in a}
    return joined, lora.model_copy(update={"rank": 2 * lora.rank, "alpha": 2 * lora.alpha})


def _export_merged(settings: Settings, state: dict[str, Tensor], lora: Lora, to: Path) -> None:
    plain = settings.model.model_copy(update={"dtype": "float32", "quantization": "none"})
    base, adapters = load_model(plain, lora, settings.run.threads)
    adapters.load("shared", state)
    adapters.merge("shared")
    base.model.save_pretrained(to)
    base.tokenizer.save_pretrained(to)
