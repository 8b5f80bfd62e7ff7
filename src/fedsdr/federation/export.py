"""`fedsdr chat` and `fedsdr export`: using the models of a run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fedsdr.client.fdlora import fuse
from fedsdr.client.state import fusion_file, load_kept, load_private
from fedsdr.config import Lora, Settings
from fedsdr.data.conversation import encode_prompt
from fedsdr.data.sources import check_name
from fedsdr.errors import UserError
from fedsdr.federation.client_context import model_of
from fedsdr.federation.run import checked_round, read_settings
from fedsdr.messages.wire import rank_of
from fedsdr.methods import AGGREGATIONS, METHODS, Adapter
from fedsdr.model.adapter_files import join, load_adapter, save_adapter
from fedsdr.model.adapters import Adapters
from fedsdr.model.base import load_base, public_name
from fedsdr.model.generation import Sampling, generate
from fedsdr.progress import say
from fedsdr.server.checkpoint import load_round
from fedsdr.storage import list_rounds, read_json, round_folder, write_folder


def open_chat(folder: Path, max_new_tokens: int) -> Callable[[str], dict[str, str]]:
    """Load a run's models; the function returned answers one question with each, greedily.

    Raises:
        UserError: The folder holds no run or no finished round, or the run has no global model.
    """
    settings = read_settings(folder)
    demand_global(settings, "export a client's model by --client instead")
    shared, residual = load_round(folder / "server", checked_round(folder, None), settings.adapter.rank)
    base, adapters = model_of(settings)
    check_identity(settings, base.identity)
    adapters.load("shared", {key: torch.from_numpy(value) for key, value in shared.items()})
    adapters.load_residual({key: torch.from_numpy(value) for key, value in residual.items()})

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

    As an adapter in PEFT's format: the global model's as the round's folder holds it; a client's as one that
    adds the same to every layer, for shared and private of both ranks and the same scale. Merged: the whole
    model in float32, W0 + (alpha/r) B A. (In bfloat16 most of a short training's change would be rounded
    away.)

    Raises:
        UserError: `to` exists, the round is not finished, the run has no global model, or the client has
            nothing of its own, or no single adapter is its model.
    """
    settings = read_settings(folder)
    if to.exists():
        raise UserError(f"{to} exists already; name a folder that does not")
    if not client:
        demand_global(settings, "name a client by --client")
    number = checked_round(folder, server_round)
    state = load_adapter(round_folder(folder / "server", number))
    if client:
        state = _personal_of(settings, client, number, state)
    lora = settings.adapter.widened(rank_of(state))
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


def demand_global(settings: Settings, hint: str) -> None:
    """Refuse a run that has no global model.

    Raises:
        UserError: Says why, and the hint.
    """
    if not METHODS[settings.method].shares:
        raise UserError(
            f"method = {settings.method} trains no shared adapter, so there is no global model; {hint}"
        )
    aggregation = AGGREGATIONS[settings.server.aggregation]
    if aggregation.kept:
        raise UserError(
            f"server.aggregation = {settings.server.aggregation} leaves {' and '.join(aggregation.kept)} at"
            f" the clients, so there is no global model; {hint}"
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
) -> dict[str, Tensor]:
    """A client's personalised model of a round as one adapter."""
    folder, method = Path(settings.run.dir) / "clients", METHODS[settings.method]
    if method.personal == "weighed":
        raise UserError(
            f"method = {settings.method} weighs a client's adapters anew for each prompt, which no single"
            " adapter can do; export the global model, without --client"
        )
    place, before = folder / check_name(client, "client"), number + 1
    keeps = AGGREGATIONS[settings.server.aggregation].keeps
    kept = {key: torch.from_numpy(value) for key, value in load_kept(place, before).items() if keeps(key)}
    own = load_private(place, before) if method.has_personal else None
    if own is None and not kept:
        known = sorted(path.name for path in folder.glob("*") if path.is_dir() and list_rounds(path))
        raise UserError(
            f"client {client!r} has no adapter of its own of round {number};"
            f" clients that have any: {', '.join(known) or 'none'}"
        )
    shared = shared | kept
    if own is None:
        return shared
    if method.personal == "own":
        return own
    if method.personal == "sum":
        return join(shared, own)
    path = fusion_file(place, number)
    if not path.exists():
        raise UserError(
            f"client {client!r} has not fused its adapters of round {number}, which it does when it is"
            f" evaluated; `fedsdr evaluate {settings.run.dir} --round {number}` first"
        )
    fusion = read_json(path)
    return fuse(shared, own, fusion["shared"], fusion["private"])


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
