"""The ClientApp: prepare (rewrite the responses), train, evaluate. It never knows which engine runs it.

Settings come with each message; the client's number and folder come from its node's configuration.
What leaves is the shared adapter, the change of its control variates where the correction has them, and
listed numbers, nothing else.
"""

import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import wraps
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsdr import __version__
from fedsdr.client.fdlora import search_fusion
from fedsdr.client.fedala import aggregate_locally
from fedsdr.client.scaffold import ControlVariates
from fedsdr.client.state import fusion_file, load_kept, load_private, save_state
from fedsdr.client.update import before_rounds, learning_rate, local_update
from fedsdr.config import Settings
from fedsdr.data.examples import Example
from fedsdr.distill.paradox import paradox_counts
from fedsdr.distill.rewrite import Rewriting
from fedsdr.errors import Diverged, UserError
from fedsdr.evaluate.feddpa import evaluate_weighed, private_weights
from fedsdr.evaluate.tasks import evaluate, evaluate_base
from fedsdr.federation.client_context import ClientContext, cache_of, model_of, open_client
from fedsdr.federation.node_config import Node, read_node
from fedsdr.messages import wire
from fedsdr.messages.flower import CLIENT_FAILED
from fedsdr.messages.privacy import noise_seed, noised
from fedsdr.methods import AGGREGATIONS, DRIFT_CORRECTIONS, METHODS, Adapter, has_global
from fedsdr.model.adapters import Adapters
from fedsdr.model.base import Base, public_name
from fedsdr.progress import say
from fedsdr.recipe import asked_settings, check_settings
from fedsdr.seeds import seed_for
from fedsdr.storage import Event, locked, rewrite_lines, write_file, write_json

app = ClientApp()
Handler = Callable[[Message, Context], Message]


def errors_stay_here(handler: Handler) -> Handler:
    """Keep the text of an error at the client: it may quote data, and engines send it to the server.

    The traceback is written to the node's folder; type and text stay in the node's own state. A node of a
    deployment says it to its own operator too.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        context.state.pop("error", None)
        is_deployed = "client" in context.node_config
        try:
            if is_deployed:  # before anything is written where a wrong configuration might say
                read_node(context.node_config, Path(), "run")
            # Another process may still be busy with what a run asked that was since begun anew.
            with locked(_folder(context) / "node") if is_deployed else nullcontext():
                return handler(message, context)
        except Exception as error:
            kind = type(error).__name__
            context.state["error"] = ConfigRecord({"type": kind, "text": str(error)})
            # The id of a deployed node is no one's business: the server shows this name to others.
            name = "node-error.txt" if is_deployed else f"node-{context.node_id}-error.txt"
            if is_deployed:
                say(f"{kind}: {error}")
            with suppress(OSError, KeyError):  # a full disk may be why, or a node without a folder
                write_file(_folder(context) / name, traceback.format_exc())
            return Message(Error(CLIENT_FAILED, f"{kind}, see {name}"), reply_to=message)

    return guarded


@app.query("prepare")
@errors_stay_here
def prepare(message: Message, context: Context) -> Message:
    """Rewrite the responses where the method or the evaluation wants it; tell the client's id."""
    start = time.monotonic()
    settings, site, _, node = _open(message, context)
    base, _ = model_of(settings)
    if node.own is not None:
        say(f"{site.id}: a run of {settings.method}, {settings.server.num_rounds} rounds; {_asked(settings)}")
    if node.ledger:
        say(f"{site.id}: updates so far have cost epsilon {node.ledger.spent():.3g} of {node.ledger.most:g}")
    metrics: dict[str, float] = {"num_train": len(site.data.train), "num_test": len(site.data.test)}
    for part, examples in (("distill", site.data.train), ("distill-test", site.data.test)):
        if rewritings := site.rewritings.get("train" if part == "distill" else "test"):
            numbers = distill_metrics(examples, rewritings)
            metrics |= {f"{part}/{name}": value for name, value in numbers.items()}
    metrics["seconds"] = time.monotonic() - start
    client = ConfigRecord({"id": site.id, "model": base.identity})
    content = RecordDict({"client": client, "metrics": _as_record(metrics)})
    return Message(content, reply_to=message)


@app.train()
@errors_stay_here
def train(message: Message, context: Context) -> Message:
    """One local update from the broadcast shared adapter; the private one is kept here."""
    start = time.monotonic()
    settings, site, server_round, node = _open(message, context)
    base, adapters = model_of(settings)
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    rank, what = settings.adapter.rank_of(site.id), f"round {server_round}, {site.id}"
    received, is_known = _load_adapters(message, settings, site, adapters, server_round, rank)
    if not method.keeps_private:
        adapters.initialise(
            "private", seed_for(settings.run.seed, "client", site.id, "private", server_round)
        )
    metrics, kept = _begin(settings, site, server_round, base, adapters, is_known)
    control_variates = _load_control_variates(message, settings, site, server_round)
    rate = learning_rate(settings.client, server_round, settings.server.num_rounds)
    shapes = {key: value.shape for key, value in received.items()}
    metrics |= local_update(
        base,
        adapters,
        method,
        site.views,
        settings.client,
        rate,
        seed_for(settings.run.seed, "client", site.id, "round", server_round),
        what,
        shared_factors=aggregation.factors,
        shift=wire.unpack(control_variates.shift, shapes) if control_variates else None,
    )
    if (
        settings.privacy.kind != "local"
    ):  # which bounds the change itself, and must not tell whether it had to
        _demand_sane(adapters, settings, what)
    arrays, more = _pack_reply(settings, site, node, server_round, received, adapters, rank)
    kept |= more
    if control_variates:
        num_steps = sum(
            int(metrics[f"train/{name}/num_steps"])
            for name, stage in zip(method.stage_names(), method.stages, strict=True)
            if "shared" in stage.train
        )
        change = control_variates.change(wire.pack(received), arrays[wire.VALUES].numpy(), num_steps, rate)
        arrays[wire.CONTROL_VARIATES], kept[wire.CONTROL_VARIATES] = (
            Array(change),
            control_variates.own + change,
        )
    own = adapters.state("shared" if method.personal == "own" else "private") if method.has_personal else None
    if own is not None or kept:
        name = public_name(settings.model.name)
        save_state(site.folder, server_round, own, kept, settings.adapter, name)
    metrics |= {"round": server_round, "num_examples": len(site.data.train)}
    metrics["seconds"] = time.monotonic() - start
    content = RecordDict({"arrays": arrays, "metrics": _as_record(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
@errors_stay_here
def evaluate_models(message: Message, context: Context) -> Message:
    """Score the global and the personalised model, where there are such, on the client's tests.

    Round 0 scores the base model.
    """
    start = time.monotonic()
    settings, site, server_round, _ = _open(message, context)
    base, adapters = model_of(settings)
    rank = settings.adapter.rank
    _, is_personal = _load_adapters(message, settings, site, adapters, server_round + 1, rank)
    is_global = has_global(METHODS[settings.method], AGGREGATIONS[settings.server.aggregation])
    models = ["global"] if is_global or not server_round else []
    models += ["personalised"] if is_personal else []
    metrics: dict[str, float] = {"round": server_round}
    for model in models:
        what = f"{model} model answers {site.id}"
        if model == "personalised":
            by_domain, records = _evaluate_personal(settings, site, server_round, base, adapters, what)
        elif server_round:
            by_domain, records = evaluate(base, adapters, ("shared",), site.tests, settings.eval, what)
        else:  # the shared adapter's B is still zero
            what, kept = f"base model answers {site.id}", cache_of(settings, site.folder) / "scores"
            by_domain, records = evaluate_base(base, adapters, site.tests, settings.eval, kept, what)
        for domain, numbers in by_domain.items():
            metrics |= {f"eval/{domain}/{name}@{model}": value for name, value in numbers.items()}
        rewrite_lines(site.folder / "evaluation" / f"round-{server_round:04d}-{model}.jsonl", records)
    metrics["seconds"] = time.monotonic() - start
    return Message(RecordDict({"metrics": _as_record(metrics)}), reply_to=message)


def distill_metrics(examples: Sequence[Example], rewritings: Sequence[Rewriting]) -> dict[str, float]:
    """Counts of the rewrite paradox before and after fall-back, of the prompts, and of the reasons.

    Before: of the examples that the teacher was shown.
    """
    metrics: dict[str, float] = {}
    shown = [(e, new.first) for e, new in zip(examples, rewritings, strict=True) if new.first is not None]
    taught = [(e, new.distilled) for e, new in zip(examples, rewritings, strict=True)]
    for when, pairs in (("before", shown), ("after", taught)):
        counts = paradox_counts([example for example, _ in pairs], [text for _, text in pairs])
        metrics |= {f"{name}@{when}": value for name, value in counts.items()}
    for kind, names in (
        ("fallback", Counter(new.fallback for new in rewritings if new.fallback)),
        ("prompt", Counter(new.prompt for new in rewritings if new.prompt)),
    ):
        metrics |= {f"num_{kind}/{name.replace(' ', '_')}": num for name, num in names.items()}
    return metrics


def _asked(settings: Settings) -> str:
    """What a run asks of a client, for the client's own log."""
    client, privacy = settings.client, settings.privacy
    drawn = f"{settings.data.num_train} examples of each domain drawn, " if settings.data.num_train else ""
    noise = "" if privacy.kind == "none" else f", sigma {privacy.noise:g}, C {privacy.clip:g}"
    work = f"{client.local_steps} steps" if client.local_steps else f"{client.local_epochs:g} epochs"
    return (
        f"{drawn}{work} {client.budget.replace('_', ' ')}, rank {settings.lora.rank},"
        f" {settings.run.threads} threads, privacy {privacy.kind}{noise}"
    )


def _as_record(metrics: dict[str, float]) -> MetricRecord:
    return MetricRecord(dict(metrics))


def _open(message: Message, context: Context) -> tuple[Settings, ClientContext, int, Node]:
    """Settings, client and round that a message is about, and the client's machine."""
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    if config["version"] != __version__:
        raise UserError(f"the server runs fedsdr {config['version']!s}, this client {__version__}")
    settings = check_settings(json.loads(str(config["settings"])), source="settings from the server")
    node = read_node(context.node_config, _folder(context), str(config["run"]))
    settings = node.apply(settings)
    if node.ledger:
        node.ledger.check(settings.privacy.noise)
    if (name := config.get("client")) and name != node.who:
        raise UserError(
            f"client = {node.who!r} in this node's configuration, but the server has its key as that of"
            f" {name!r}: set that, or let the server's operator save the key as {node.who}.pub"
        )
    theirs = str(config.get("model", ""))
    site = open_client(settings, node.who, node.folder, node.runs_programs, theirs)
    return settings, site, int(config["round"]), node  # type: ignore[arg-type]


def _folder(context: Context) -> Path:
    """The node's folder; in Flower's simulation nodes have none and take that of the run."""
    if "folder" in context.node_config or "client" in context.node_config:
        return Path(str(context.node_config["folder"]))
    return Path(asked_settings(context.run_config).run.dir) / "clients"


def _load_adapters(
    message: Message, settings: Settings, site: ClientContext, adapters: Adapters, before: int, rank: int
) -> tuple[wire.Arrays, bool]:
    """Take the broadcast shared adapter, its first `rank` ranks, the residual, and what is this client's own.

    Ranks beyond are zero in both factors. So are their gradients, and they stay zero in training.

    Returns:
        What was broadcast of those ranks, and whether this client has trained before. The private adapter is
        then its own, or what it keeps in that place.
    """
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    shapes = adapters.shapes("shared")
    going_down = wire.going_down(settings, shapes)
    if len(going_down) < len(shapes):  # what does not come is drawn
        path = ("round", before) if aggregation.is_fresh else ()
        adapters.initialise("shared", seed_for(settings.run.seed, "shared", *path))
    received = wire.receive(arrays, going_down)
    own = {key: v for key, v in load_kept(site.folder, before).items() if aggregation.keeps(key)}
    drawn = {key: value.numpy() for key, value in adapters.state("shared").items()}
    shared = wire.pad(wire.cut(drawn | received | own, rank), shapes)
    adapters.load("shared", {key: torch.from_numpy(value) for key, value in shared.items()})
    residual = wire.receive_residual(arrays, shapes)
    adapters.load_residual({key: torch.from_numpy(value) for key, value in residual.items()})
    received = wire.cut(received, rank)
    if not method.has_personal:
        return received, bool(own)
    private = load_private(site.folder, before)
    if private is None:
        adapters.initialise("private", seed_for(settings.run.seed, "client", site.id, "private"))
        return received, False
    adapters.load("private", private)
    return received, True


def _begin(
    settings: Settings, site: ClientContext, server_round: int, base: Base, adapters: Adapters, is_known: bool
) -> tuple[dict[str, float], wire.Arrays]:
    """Do what a method does before the stages of a round; return metrics, and arrays to keep."""
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    if not is_known:
        if not method.before_rounds:
            return {}, {}
        seed, what = seed_for(settings.run.seed, "client", site.id), f"before round 1, {site.id}"
        return before_rounds(base, adapters, method, site.views, settings, seed, what), {}
    if method.on_receive == "take":
        return {}, {}
    weights, metrics = aggregate_locally(
        base,
        adapters,
        site.views["raw"],
        load_kept(site.folder, server_round).get("weights"),
        settings,
        seed_for(settings.run.seed, "client", site.id, "weights", server_round),
        aggregation.factors,
    )
    return metrics, {"weights": weights}


def _evaluate_personal(
    settings: Settings, site: ClientContext, server_round: int, base: Base, adapters: Adapters, what: str
) -> tuple[dict[str, dict[str, float]], list[Event]]:
    """Score the client's personalised model, whatever the method says that it is."""
    method, raw = METHODS[settings.method], site.views["raw"]
    kind = method.personal
    if kind in ("sum", "own"):
        both: tuple[Adapter, ...] = ("shared", "private") if method.has_private else ("shared",)
        active: tuple[Adapter, ...] = both if kind == "sum" else ("private",)
        return evaluate(base, adapters, active, site.tests, settings.eval, what)
    draw = random.Random(seed_for(settings.run.seed, "client", site.id, "examples"))
    chosen = settings.feddpa if kind == "weighed" else settings.fdlora
    examples = draw.sample(raw, min(chosen.num_examples, len(raw)))
    if kind == "weighed":
        tests, most = site.tests, settings.feddpa.max_weight
        weights = private_weights(base, adapters, examples, tests.raw, most, settings.eval)
        return evaluate_weighed(base, adapters, tests, weights, settings.eval, what)
    fusion = search_fusion(base, adapters, examples, settings.fdlora.num_evaluations, settings.eval)
    write_json(fusion_file(site.folder, server_round), asdict(fusion))
    return evaluate(base, adapters, ("private",), site.tests, settings.eval, what)


def _demand_sane(adapters: Adapters, settings: Settings, what: str) -> None:
    """Refuse an update that the server would drop, here where it can be said why.

    Raises:
        Diverged: A tensor of the shared adapter is not finite, or larger than `server.max_norm`.
    """
    for value in adapters.parameters(("shared",)):
        norm = float(value.detach().norm())
        if not norm <= settings.server.max_norm:  # so that NaN is refused too
            raise Diverged(
                f"{what}: training diverged: a tensor of the shared adapter has the norm {norm:.3g}; lower"
                f" client.learning_rate = {settings.client.learning_rate}"
            )


def _load_control_variates(
    message: Message, settings: Settings, site: ClientContext, server_round: int
) -> ControlVariates | None:
    """Take the server's control variates and this client's own, zero at first; None without any."""
    if not DRIFT_CORRECTIONS[settings.client.drift_correction].has_control_variates:
        return None
    server = message.content["arrays"][wire.CONTROL_VARIATES].numpy()  # type: ignore[union-attr]
    own = load_kept(site.folder, server_round).get(wire.CONTROL_VARIATES)
    return ControlVariates(server, np.zeros_like(server) if own is None else own)


def _pack_reply(
    settings: Settings,
    site: ClientContext,
    node: Node,
    server_round: int,
    received: wire.Arrays,
    adapters: Adapters,
    rank: int,
) -> tuple[ArrayRecord, wire.Arrays]:
    """The trained shared adapter as it travels, and what the client keeps of it and of the sending."""
    aggregation = AGGREGATIONS[settings.server.aggregation]
    trained = {key: value.numpy() for key, value in adapters.state("shared").items()}
    new = wire.cut(wire.travelling(settings, trained), rank)
    if settings.privacy.kind == "local":
        seed = noise_seed(settings.privacy, settings.run.seed, "client", site.id, "round", server_round)
        new = noised(new, received, settings.privacy, seed, site.folder / "noise.key", node.ledger)
    kept = {key: value for key, value in trained.items() if aggregation.keeps(key)}
    feedback = load_kept(site.folder, server_round).get("error_feedback")
    arrays, feedback = wire.encode(new, received, feedback, settings.communication.dtype)
    return arrays, kept if feedback is None else kept | {"error_feedback": feedback}
