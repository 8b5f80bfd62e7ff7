"""The ClientApp: prepare (rewrite the responses), train, evaluate. It is independent of the engine.

Each handler unpacks a message, calls the code that does the work (`client.round`, `evaluate`), and packs the
reply. Settings come with each message; the client's number and folder come from its node's configuration. A
reply contains the shared adapter, the change of its control variates if the correction uses them, and
allow-listed numbers, nothing else.
"""

import json
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsdr import __version__
from fedsdr.callbacks import OnStep, step_hook
from fedsdr.client.round import Broadcast, Participant, Plan, has_own_model, load_adapters, run_round
from fedsdr.client.secure import Session, begin
from fedsdr.client.state import State
from fedsdr.client.update import before_training
from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation, count_cut
from fedsdr.distill.paradox import distill_metrics
from fedsdr.errors import UserError
from fedsdr.evaluate.personal import evaluate_personal
from fedsdr.evaluate.tasks import Answering, Evaluation, answer, evaluate, evaluate_base
from fedsdr.federation.answers import answering_all, answering_own
from fedsdr.federation.client_context import ClientContext, cache_of, open_client, seconds_ahead
from fedsdr.federation.model_cache import model_of, rehearsal_of
from fedsdr.federation.node_config import Node, read_node
from fedsdr.federation.received import keep_received
from fedsdr.messages import wire
from fedsdr.messages.flower import CLIENT_FAILED
from fedsdr.messages.secure_sum import Card, round_digest
from fedsdr.methods import AGGREGATIONS, DRIFT_CORRECTIONS, METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import public_name
from fedsdr.progress import duration, say, show, within
from fedsdr.recipe import check_settings, requested_settings
from fedsdr.rows import has_global
from fedsdr.run_folder import ClientFolder, RunFolder
from fedsdr.seeds import seed_for
from fedsdr.storage import Event, locked, rewrite_lines, write_file, write_json

app = ClientApp()
Handler = Callable[[Message, Context], Message]


def errors_stay_here(handler: Handler) -> Handler:
    """Keep the text of an error at the client: it may quote data, and engines send it to the server.

    The traceback is written to the node's folder; type and text stay in the node's own state. A deployed node
    also shows them to its operator.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        context.state.pop("error", None)
        is_deployed = "client" in context.node_config
        try:
            if is_deployed:
                show()
                # Before anything is written to a wrongly configured place.
                read_node(context.node_config, Path(), "run")
            # Another process may still work on an earlier run of this name.
            with locked(_folder(context) / "node") if is_deployed else nullcontext():
                return handler(message, context)
        except Exception as error:
            kind = type(error).__name__
            context.state["error"] = ConfigRecord({"type": kind, "text": str(error)})
            # A deployed node's id stays private: the server shows this name to others.
            name = "node-error.txt" if is_deployed else f"node-{context.node_id}-error.txt"
            if is_deployed:
                say(f"{kind}: {error}")
            with suppress(OSError, KeyError):  # the cause may be a full disk, or a node without a folder
                write_file(_folder(context) / name, traceback.format_exc())
            where = " at the client, in its folder" * is_deployed
            return Message(Error(CLIENT_FAILED, f"{kind}, see {name}{where}"), reply_to=message)

    return guarded


@app.query("prepare")
@errors_stay_here
def prepare(message: Message, context: Context) -> Message:
    """Rewrite the responses if the method or the evaluation needs it; report the client's id."""
    start = time.monotonic()
    settings, client, _, node = _open(message, context)
    if node.own is not None:
        say(
            f"{client.id}: a run of {settings.method}, {settings.server.num_rounds} rounds; {_work(settings)}"
        )
    if node.ledger:
        say(
            f"{client.id}: updates so far have cost epsilon {node.ledger.spent():.3g} of"
            f" {node.ledger.max_epsilon:g}"
        )
    rehearsal_of(settings)  # a model that cannot write any is refused before round 1
    metrics: dict[str, float] = {"num_train": len(client.data.train), "num_test": len(client.data.test)}
    texts = {view: some for view, some in client.views.items() if view in ("raw", "distilled")}
    metrics |= {f"num_cut_{view}": count_cut(some) for view, some in texts.items()}
    data = client.data
    for kind, part, examples in (("distill", "train", data.train), ("distill-test", "test", data.test)):
        if rewritings := client.rewritings.get(part):
            numbers = distill_metrics(examples, rewritings)
            metrics |= {f"{kind}/{name}": value for name, value in numbers.items()}
    metrics["seconds"] = time.monotonic() - start + seconds_ahead.pop(client.id, 0.0)
    who = ConfigRecord({"id": client.id, "model": model_of(settings).base.identity})
    return Message(RecordDict({"client": who, "metrics": MetricRecord({**metrics})}), reply_to=message)


@app.train()
@errors_stay_here
def train(message: Message, context: Context) -> Message:
    """One round from the broadcast shared adapter (`client.round`)."""
    start = time.monotonic()
    settings, client, server_round, node = _open(message, context)
    model, plan = model_of(settings), _plan(settings)
    steps: list[Event] = []
    on_step = _recorder(steps, step_hook(settings, client.id, server_round))
    participant = _participant(client, node, on_step, rehearsal_of(settings))
    sent = _broadcast(message, plan, model)
    if node.own is not None:
        _load(settings, client, node, model, server_round - 1, sent)
    with within(f"round {server_round}, {client.id}"):
        reply = run_round(model, participant, plan, server_round, sent)
    if settings.privacy.kind == "none":
        rewrite_lines(ClientFolder(client.folder).steps(server_round), steps)
    metrics = reply.metrics | {"round": server_round, "num_examples": len(client.data.train)}
    arrays = ArrayRecord({name: Array(value) for name, value in reply.arrays.items()})
    content: dict[str, ArrayRecord | ConfigRecord] = {"arrays": arrays}
    if node.own is not None:
        size, took = sum(v.nbytes for v in reply.arrays.values()), duration(time.monotonic() - start)
        say(f"{client.id}: round {server_round}: trained {len(steps)} steps in {took}, update {size:,} bytes")
    if settings.privacy.secure_aggregation:
        card = begin_sum(message, settings, client, node, server_round, reply.arrays[wire.VALUES])
        content = {"card": ConfigRecord({key: getattr(card, key) for key in ("mask", "seal", "signature")})}
    metrics["seconds"] = time.monotonic() - start
    return Message(RecordDict({**content, "metrics": MetricRecord({**metrics})}), reply_to=message)


def begin_sum(
    message: Message,
    settings: Settings,
    client: ClientContext,
    node: Node,
    server_round: int,
    trained: wire.Float32,
) -> Card:
    """Begin a secure sum of the client's change in a round."""
    config, arrays = message.content["config"], message.content["arrays"]
    assert isinstance(config, ConfigRecord)
    assert isinstance(arrays, ArrayRecord)
    sent = {name: array.numpy() for name, array in arrays.items()}
    about = round_digest(str(config["run"]), server_round, str(config["settings"]), sent)
    change = trained.astype(np.float64) - sent[wire.VALUES]
    folder = ClientFolder(client.folder).secure
    most = settings.privacy.clipping_norm if settings.privacy.kind == "central" else None
    return begin(folder, node.peers, server_round, about, change, len(client.data.train), most)


@app.query("secure")
@errors_stay_here
def sum_securely(message: Message, context: Context) -> Message:
    """Run a step of a secure sum after training (`client.secure`)."""
    _, client, server_round, node = _open(message, context)
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    given: Any = dict(message.content["given"])
    session = Session(ClientFolder(client.folder).secure, client.id, node.peers, server_round)
    answer: ArrayRecord | ConfigRecord
    match config["step"]:
        case "shares":
            answer = ConfigRecord({**session.shares(given["roll"])})
        case "masked":
            answer = ArrayRecord({wire.VALUES: Array(session.masked(given))})
        case "confirm":
            answer = ConfigRecord({"signature": session.confirm(given["survivors"])})
        case step:
            assert step == "unmask"
            answer = ConfigRecord({**session.unmask(given)})
    return Message(RecordDict({"given": answer}), reply_to=message)


@app.evaluate()
@errors_stay_here
def evaluate_models(message: Message, context: Context) -> Message:
    """Score the global and the personalised model, if they exist, on the client's test examples.

    Round 0 scores the base model.
    """
    start = time.monotonic()
    settings, client, server_round, node = _open(message, context)
    model, plan = model_of(settings), _plan(settings)
    state = _load(settings, client, node, model, server_round, _broadcast(message, plan, model, trains=False))
    names = ["global"] if has_global(plan.method, plan.aggregation) or not server_round else []
    names += ["personalised"] if has_own_model(state, plan.aggregation) else []
    metrics: dict[str, float] = {"round": server_round}
    for name in names:
        with within(f"{client.id}, {name if server_round else 'base'} model"):
            by_domain, records = _evaluate(settings, client, model, name, server_round, node.serves_all)
        for domain, numbers in by_domain.items():
            metrics |= {f"eval/{domain}/{metric}@{name}": value for metric, value in numbers.items()}
        rewrite_lines(ClientFolder(client.folder).answers(server_round, name), records)
    metrics["seconds"] = time.monotonic() - start + seconds_ahead.pop(client.id, 0.0)
    if node.own is not None:
        say(f"{client.id}: round {server_round}: scored {', '.join(names) if server_round else 'base'}")
    return Message(RecordDict({"metrics": MetricRecord({**metrics})}), reply_to=message)


def _load(
    settings: Settings,
    client: ClientContext,
    node: Node,
    model: LoraModel,
    server_round: int,
    sent: Broadcast,
) -> State:
    """Load the adapters after a round; a client of a deployment keeps the shared one for `fedsdr export`."""
    plan = _plan(settings)
    state = load_adapters(model, _participant(client, node), plan, server_round + 1, sent, plan.lora.rank)
    if node.own is not None and has_own_model(state, plan.aggregation):
        keep_received(settings, client, model, server_round, sent)
    return state


def _evaluate(
    settings: Settings,
    client: ClientContext,
    model: LoraModel,
    name: str,
    server_round: int,
    serves_all: bool,
) -> Evaluation:
    """Score one model on the client's test examples; save a fusion of its adapters with the answers."""
    if not serves_all:
        answering: Answering = answer
    elif name == "global":
        answering = answering_all(settings, client, server_round)
    else:
        answering = answering_own(settings, client, server_round, model)
    if name == "global" and not server_round:  # the shared adapter's B is still zero
        folder = cache_of(settings.run, client.folder) / "scores"
        return evaluate_base(model, client.tests, settings.eval, folder, answering)
    if name == "global":
        return evaluate(model, ("shared",), client.tests, settings.eval, answering=answering)
    found, fusion = evaluate_personal(
        model,
        METHODS[settings.method],
        client.tests,
        settings.eval,
        client.views["raw"],
        seed_for(settings.run.seed, "client", client.id, "examples"),
        settings.feddpa,
        settings.fdlora,
        answering,
    )
    if fusion:
        write_json(ClientFolder(client.folder).fusion(server_round), asdict(fusion))
    return found


def _plan(settings: Settings) -> Plan:
    return Plan(
        method=METHODS[settings.method],
        aggregation=AGGREGATIONS[settings.server.aggregation],
        lora=settings.adapter,
        training=settings.client,
        before_rounds=before_training(settings.client, settings.fdlora),
        fedala=settings.fedala,
        dtype=settings.communication.dtype,
        privacy=settings.privacy,
        num_rounds=settings.server.num_rounds,
        max_norm=settings.server.max_norm,
        seed=settings.run.seed,
        base=public_name(settings.model.name),
    )


def _recorder(steps: list[Event], hook: OnStep | None) -> OnStep:
    """A hook that records each step, and passes it on."""

    def record(stage: str, loss: float, num_tokens: int) -> None:
        steps.append({"stage": stage, "loss": loss, "num_tokens": num_tokens})
        if hook:
            hook(stage, loss, num_tokens)

    return record


def _participant(
    client: ClientContext,
    node: Node,
    on_step: OnStep | None = None,
    rehearsal: Sequence[Conversation] = (),
) -> Participant:
    return Participant(client.id, client.folder, client.views, rehearsal, node.ledger, on_step)


def _broadcast(message: Message, plan: Plan, model: LoraModel, trains: bool = True) -> Broadcast:
    """Unpack the server's message, which must contain exactly what the settings imply.

    Anything more would act on training. Sent to some clients only, it could make their changes vanish, and a
    secure sum would be the change of the one that is left.

    Raises:
        UserError: It contains other arrays, or arrays of other types or sizes.
    """
    arrays, shapes = message.content["arrays"], model.shapes("shared")
    assert isinstance(arrays, ArrayRecord)
    expected = {wire.VALUES}
    if trains and DRIFT_CORRECTIONS[plan.training.drift_correction].has_control_variates:
        expected.add(wire.CONTROL_VARIATES)
    if plan.aggregation.adds_to_base and wire.RESIDUAL in arrays:  # there is none before the end of round 1
        expected |= {wire.RESIDUAL, wire.RESIDUAL_RANK}
    if unlike := sorted(expected ^ set(arrays)):
        raise UserError(
            f"the server's message has {len(arrays)} arrays, but its settings imply"
            f" {', '.join(sorted(expected))}; the first that differs is {unlike[0][:80]!r}"
        )
    sent = wire.downloaded(plan.method, plan.aggregation, shapes)
    try:
        return Broadcast(
            wire.receive(arrays, sent),
            wire.receive_residual(arrays, shapes),
            wire.receive_control_variates(arrays, sent),
        )
    except ValueError as reason:
        raise UserError(f"the server's message: {reason}") from None


def _work(settings: Settings) -> str:
    """What a run requires of a client, for the client's own log."""
    client, privacy = settings.client, settings.privacy
    drawn = f"{settings.data.num_train} examples of each domain drawn, " if settings.data.num_train else ""
    noise = f", sigma {privacy.noise_multiplier:g}, C {privacy.clipping_norm:g}"
    kind = "none" if privacy.kind == "none" else privacy.kind + noise
    summed = ", secure aggregation" if privacy.secure_aggregation else ""
    work = f"{client.local_steps} steps" if client.local_steps else f"{client.local_epochs:g} epochs"
    return (
        f"{drawn}{work} {client.budget.replace('_', ' ')}, rank {settings.lora.rank},"
        f" {settings.run.threads} threads, privacy {kind}{summed}"
    )


def _open(message: Message, context: Context) -> tuple[Settings, ClientContext, int, Node]:
    """Settings, client and round of a message, and the client's node."""
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    if config["version"] != __version__:
        raise UserError(f"the server runs fedsdr {config['version']!s}, this client runs {__version__}")
    values = json.loads(str(config["settings"]))
    settings = check_settings(values, source="settings from the server", is_saved=True)
    node = read_node(context.node_config, _folder(context), str(config["run"]))
    settings = node.apply(settings)
    if node.ledger:
        node.ledger.check(settings.privacy.noise_multiplier)
    if (name := config.get("client")) and name != node.who:
        raise UserError(
            f"client = {node.who!r} in this node's configuration, but the server registered its key as"
            f" {name!r}: set this name, or ask the server's operator to save the key as {node.who}.pub"
        )
    node.pin(str(config["settings"]))
    theirs = str(config.get("model", ""))
    client = open_client(settings, node.who, node.folder, theirs)
    return settings, client, int(config["round"]), node  # type: ignore[arg-type]


def _folder(context: Context) -> Path:
    """The node's folder; in Flower's simulation, nodes have none and use the run's folder."""
    if "folder" in context.node_config or "client" in context.node_config:
        return Path(str(context.node_config["folder"]))
    return RunFolder(requested_settings(context.run_config).run.dir).clients
