"""`fedsdr chat` and `fedsdr export`: using the models of a run."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fedsdr.client.fdlora import fuse
from fedsdr.client.state import load_state
from fedsdr.config import Lora, Model, Settings
from fedsdr.data.conversation import encode_prompt
from fedsdr.data.sources import check_name
from fedsdr.errors import UserError
from fedsdr.federation.model_cache import load_model
from fedsdr.federation.model_card import model_card, other_weights
from fedsdr.messages.wire import rank_of
from fedsdr.methods import AGGREGATIONS, METHODS
from fedsdr.model.adapter_files import join, load_adapter, save_adapter, scaled
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import find, find_on_hub, load_base, public_name, quiet
from fedsdr.model.chat_template import settle_template
from fedsdr.model.generation import Sampling, generate
from fedsdr.progress import say
from fedsdr.rows import Adapter
from fedsdr.run_folder import ClientFolder, RunFolder, checked_round, list_rounds, read_settings
from fedsdr.storage import read_json, write_folder

LLAMA_CPP = "LLAMA_CPP"
"""Environment variable that names the folder of llama.cpp's sources."""
CONVERTER = "convert_lora_to_gguf.py"


@dataclass(frozen=True)
class Trained:
    """A trained model, as one adapter by PEFT key."""

    settings: Settings
    round: int
    client: str
    """Client of a personalised model; "": the global one."""
    adapter: dict[str, Tensor]

    @property
    def lora(self) -> Lora:
        """Shape of the adapter."""
        return self.settings.adapter.widened(rank_of(self.adapter))


def read_trained(folder: Path, server_round: int | None, client: str) -> Trained:
    """Read the global model of a round, or a client's personalised one.

    Args:
        folder: A run's folder. Or, at a client of a deployment, what its node wrote for a run,
            `<folder>/<run>`: that holds one model, the client's personalised one, from its own adapter and
            the last shared one that it received.
        server_round: The round; None: the last one.
        client: The client; "": the global model.

    Raises:
        UserError: The round is not finished, the run has no global model, or the client has no adapter of its
            own, or no single adapter represents its model.
    """
    places = [own for own in map(ClientFolder, (folder, *folder.glob("*"))) if own.received.config.exists()]
    if len(places) > 1:
        names = ", ".join(str(own.path) for own in places)
        raise UserError(f"{folder} has the models of several clients; name one: {names}")
    if places:
        if client or server_round is not None:
            raise UserError(f"{folder} holds one model, its client's: leave out --client and --round")
        own = places[0]
        settings, number = read_settings(own.received.path), own.received.last_round()
        adapter = _personal_of(settings, own, number, load_adapter(own.received.round(number)))
        return Trained(settings, number, own.path.resolve().name, adapter)
    settings, run = read_settings(folder), RunFolder(folder)
    if not client:
        require_global(settings, "name a client by --client")
    elif run.nonce.exists():
        raise UserError(
            "the adapters of this run's clients are on their own machines: there, `fedsdr export STATE/RUN"
            " NEW` writes the client's model, with STATE the `folder` of its node.toml"
        )
    number = checked_round(folder, server_round)
    adapter = load_adapter(run.round(number))
    if client:
        adapter = _personal_of(settings, run.client(check_name(client, "client")), number, adapter)
    return Trained(settings, number, client, adapter)


def open_chat(
    folder: Path, max_new_tokens: int, server_round: int | None = None, client: str = ""
) -> Callable[[str], dict[str, str]]:
    """Load a trained model; the returned function answers a question with it and with its base, greedily.

    Raises:
        UserError: As for `read_trained`, or the base is another one than the run's.
    """
    trained = read_trained(folder, server_round, client)
    settings = trained.settings
    model = load_model(settings.model, trained.lora, settings.run.threads)
    check_identity(Path(settings.run.dir), model.base.identity)
    model.load("shared", trained.adapter)

    def ask(question: str) -> dict[str, str]:
        prompt = encode_prompt(model.base.tokenizer, [{"role": "user", "content": question}])
        models: dict[str, tuple[Adapter, ...]] = {"base": (), trained.client or "global": ("shared",)}
        answers = {}
        for name, active in models.items():
            with model.inference(active):
                (answer,) = generate(model.base, [prompt], Sampling(max_new_tokens))
            answers[name] = answer.text
        return answers

    return ask


def export_round(
    folder: Path,
    to: Path,
    server_round: int | None,
    client: str,
    merged: bool,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    scale: float = 1.0,
) -> Model:
    """Export the global model of a round, or a client's personalised one; folders as for `read_trained`.

    As an adapter in PEFT's format: for the global model, the files of the round's folder; for a client, one
    adapter equivalent to shared plus private, with both ranks and the same scale. Merged: the whole model, W0
    + (alpha/r) B A, computed in float32 and saved in `dtype`. (In bfloat16, rounding removes most of a short
    training's change.) Both include the tokenizer and a model card.

    Args:
        folder: The run's.
        to: A new folder.
        server_round: The round; None: the last one.
        client: The client; "": the global model.
        merged: Whether the whole model is written.
        dtype: Type of a merged model.
        scale: lambda of W0 + lambda dW (docs/frontier.md), with dW the trained change; 1: the trained model.

    Returns:
        The base model.

    Raises:
        UserError: `to` exists, or as for `read_trained`.
    """
    if to.exists():
        raise UserError(f"{to} already exists; name a new folder")
    trained = read_trained(folder, server_round, client)
    settings, lora = trained.settings, trained.lora
    adapter = scaled(trained.adapter, scale)
    card = model_card(settings, trained.round, trained.client, merged, lora.rank, scale)
    if merged:
        export_merged(settings.model, adapter, lora, to, card, dtype)
        return settings.model

    def fill(aside: Path) -> None:
        save_adapter(aside, adapter, lora, public_name(settings.model.name))
        _tokenizer(settings.model).save_pretrained(aside)
        (aside / "README.md").write_text(card)

    write_folder(to, fill)
    if weights := other_weights(settings, merged):
        say(f"  {weights}")
    return settings.model


def _tokenizer(spec: Model) -> Any:
    """Load the tokenizer alone, with the chat template used in training."""
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(_folder_of(spec), trust_remote_code=spec.trust_remote_code)
    settle_template(spec, tokenizer)
    return tokenizer


def _folder_of(spec: Model) -> Path:
    """Folder of a base model on this machine."""
    return find(spec.name)[0] or find_on_hub(spec)


def lora_converter() -> Path:
    """llama.cpp's converter of adapters.

    Raises:
        UserError: `LLAMA_CPP` does not name the folder of llama.cpp's sources.
    """
    sources = os.environ.get(LLAMA_CPP, "")
    script = Path(sources) / CONVERTER
    if not sources or not script.is_file():
        raise UserError(
            f"{LLAMA_CPP} = {sources!r}: there is no {CONVERTER}; set this environment variable to the folder"
            " of llama.cpp's sources"
        )
    return script


def convert_lora(base_model: Model, exported: Path, script: Path) -> None:
    """Write adapter.gguf into an exported adapter's folder by llama.cpp's own converter.

    Raises:
        UserError: The converter fails.
    """
    target = exported / "adapter.gguf"
    base = _folder_of(base_model)
    words = [str(exported), "--base", str(base), "--outfile", str(target), "--outtype", "f32"]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script} failed: {done.stderr.strip()[-500:]}")
    say(f"  {target}: llama-server --model BASE.gguf --lora {target}")


def require_global(settings: Settings, hint: str) -> None:
    """Reject a run without a global model.

    Raises:
        UserError: States the reason and the hint.
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


def check_identity(folder: Path, identity: str) -> None:
    """Reject a base model other than the run's.

    Raises:
        UserError: The weights or the chat template differ.
    """
    before = read_json(RunFolder(folder).environment)["model"]
    if before["identity"] != identity:
        raise UserError(
            f"model.name = {before['name']} is not the model of this run (identity"
            f" {identity[:16]}, originally {before['identity'][:16]}); restore the original"
        )


def _personal_of(
    settings: Settings, place: ClientFolder, number: int, shared: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A client's personalised model of a round, as one adapter."""
    client, method = place.path.name, METHODS[settings.method]
    if method.personal == "weighted":
        raise UserError(
            f"method = {settings.method} weights a client's adapters for each prompt, which no single"
            " adapter can do; export the global model, without --client"
        )
    aggregation = AGGREGATIONS[settings.server.aggregation]
    state = load_state(place.path, number + 1, method.has_personal)
    kept = {key: torch.from_numpy(value) for key, value in state.kept(aggregation).items()}
    own = state.adapter
    if own is None and not kept:
        others = RunFolder(settings.run.dir).client_folders()
        known = [other.path.name for other in others if list_rounds(other.path)]
        raise UserError(
            f"client {client!r} has no adapter of its own for round {number};"
            f" clients that have any: {', '.join(known) or 'none'}"
        )
    shared = shared | kept
    if own is None:
        return shared
    if method.personal == "own":
        return dict(own)
    if method.personal == "sum":
        return join(shared, dict(own))
    path = place.fusion(number)
    if not path.exists():
        raise UserError(
            f"client {client!r} has not fused its adapters of round {number}, which happens when it is"
            f" evaluated: by `fedsdr evaluate RUN --round {number}` first; in a deployment, at the run's end"
        )
    fusion = read_json(path)
    return fuse(shared, own, fusion["shared"], fusion["private"])


def export_merged(
    base_model: Model, state: dict[str, Tensor], lora: Lora, to: Path, card: str, dtype: str
) -> None:
    """Write the base with an adapter merged into it, with tokenizer and card."""
    if base_model.quantization != "none":
        say(f"  the {base_model.quantization} base of the run is merged as the unquantised one")
    plain = base_model.model_copy(update={"dtype": "float32", "quantization": "none"})
    base = load_base(plain)  # not the cached one of this process, since its weights are modified
    model = LoraModel(base, lora)
    model.load("shared", state)
    model.merge("shared")

    def fill(aside: Path) -> None:
        base.model.to(getattr(torch, dtype)).save_pretrained(aside)
        (aside / "README.md").write_text(card)
        base.tokenizer.save_pretrained(aside)

    write_folder(to, fill)
