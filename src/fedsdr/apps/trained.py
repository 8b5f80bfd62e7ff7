"""`fedsdr chat` and `fedsdr export`: using the models of a run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fedsdr.apps.run import checked_round, read_settings
from fedsdr.apps.site import model_of
from fedsdr.client.fusion import fuse
from fedsdr.client.state import fusion_file, load_private
from fedsdr.config import Lora, Settings
from fedsdr.data.conversation import encode_prompt
from fedsdr.data.sources import check_name
from fedsdr.errors import UserError
from fedsdr.model.adapter_files import load_adapter, save_adapter
from fedsdr.model.adapters import Adapters
from fedsdr.model.base import load_base, public_name
from fedsdr.model.generation import Sampling, generate
from fedsdr.progress import say
from fedsdr.storage import list_rounds, read_json, round_folder, write_folder
from fedsdr.tables import METHODS, Adapter


def open_chat(folder: Path, max_new_tokens: int) -> Callable[[str], dict[str, str]]:
    """Load a run's models; the function returned answers one question with each, greedily.

    Raises:
        UserError: The folder holds no run or no finished round.
    """
    settings = read_settings(folder)
    demand_shared(settings, "export a client's model by --client instead")
    shared = load_adapter(round_folder(folder / "server", checked_round(folder, None)))
    base, adapters = model_of(settings)
    check_identity(settings, base.identity)
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

    As an adapter in PEFT's format: the shared one as it is; a client's as one that adds the same to every
    layer, for shared and private of twice the rank and alpha. Merged: the whole model in
    float32, W0 + (alpha/r) B A. (In bfloat16 most of a short training's change would be rounded
    away.)

    Raises:
        UserError: `to` exists, the round is not finished, the client has no adapter of its own, or its model
            is no single adapter.
    """
    settings = read_settings(folder)
    if to.exists():
        raise UserError(f"{to} exists already; name a folder that does not")
    if not client:
        demand_shared(settings, "name a client by --client")
    number = checked_round(folder, server_round)
    state, lora = load_adapter(round_folder(folder / "server", number)), settings.lora
    if client:
        state, lora = _personal_of(settings, client, number, state)
    if merged:
        _export_merged(settings, state, lora, to)
        return
    write_folder(to, lambda aside: save_adapter(aside, state, lora, public_name(settings.model.name)))
    named = public_name(settings.model.name)
    if named != settings.model.name:
        origin = read_json(folder / "environment.json")["model"]["origin"]
        say(
            f"  the adapter names {named} as its base; it was trained on {origin} (`fedsdr models` names the"
            " folder), so on the hub's own weights its answers differ a little"
        )


def demand_shared(settings: Settings, hint: str) -> None:
    """Refuse a run whose shared adapter never learnt.

    Raises:
        UserError: Says so, and the hint.
    """
    if not METHODS[settings.method].shares:
        raise UserError(
            f"method = {settings.method} trains no shared adapter, so there is no global model; {hint}"
        )


def check_identity(settings: Settings, identity: str) -> None:
    """Refuse a base model that is not the one the run was made with.

    Raises:
        UserError: Weights or chat template differ.
    """
    before = read_json(Path(settings.run.dir) / "environment.json")["model"]["identity"]
    if before != identity:
        raise UserError(
            f"model.name = {settings.model.name} is not the model that the run was made with (identity"
            f" {identity[:16]}, then {before[:16]}); restore it"
        )


def _personal_of(
    settings: Settings, client: str, number: int, shared: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Lora]:
    """A client's personalised model of a round as one adapter."""
    folder, kind = Path(settings.run.dir), METHODS[settings.method].personal
    if kind == "weighed":
        raise UserError(
            f"method = {settings.method} weighs a client's adapters anew for each prompt, which no single"
            " adapter can do; export the global model, without --client"
        )
    own = _own_of(folder, client, number)
    if kind == "own":
        return own, settings.lora
    if kind == "sum":
        return _join(shared, own, settings.lora)
    path = fusion_file(folder / "clients" / client, number)
    if not path.exists():
        raise UserError(
            f"client {client!r} has not fused its adapters of round {number}, which it does when it is"
            f" evaluated; `fedsdr evaluate {folder} --round {number}` first"
        )
    fusion = read_json(path)
    return fuse(shared, own, fusion["shared"], fusion["private"]), settings.lora


def _own_of(folder: Path, client: str, number: int) -> dict[str, Tensor]:
    private = load_private(folder / "clients" / check_name(client, "client"), before=number + 1)
    if private is None:
        clients = (folder / "clients").glob("*")
        known = sorted(path.name for path in clients if path.is_dir() and list_rounds(path))
        raise UserError(
            f"client {client!r} has no adapter of its own of round {number};"
            f" clients that have any: {', '.join(known) or 'none'}"
        )
    return private


def _join(a: dict[str, Tensor], b: dict[str, Tensor], lora: Lora) -> tuple[dict[str, Tensor], Lora]:
    """Two adapters as one of twice the rank: B_a A_a + B_b A_b = [B_a B_b] [A_a; A_b]."""
    joined = {key: torch.cat([a[key], b[key]], dim=0 if ".lora_A." in key else 1) for key in a}
    return joined, lora.model_copy(update={"rank": 2 * lora.rank, "alpha": 2 * lora.alpha})


def _export_merged(settings: Settings, state: dict[str, Tensor], lora: Lora, to: Path) -> None:
    if settings.model.quantization != "none":
        say(f"  the {settings.model.quantization} base of the run is merged as the unquantised one")
    plain = settings.model.model_copy(update={"dtype": "float32", "quantization": "none"})
    base = load_base(plain)  # not the shared one of this process: its weights are written
    adapters = Adapters(base.model, lora)
    adapters.load("shared", state)
    adapters.merge("shared")

    def fill(aside: Path) -> None:
        base.model.save_pretrained(aside)
        base.tokenizer.save_pretrained(aside)

    write_folder(to, fill)
