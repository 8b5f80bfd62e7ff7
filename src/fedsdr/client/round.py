"""A client's round: load the broadcast, smooth, rectify, pack the reply, save the client's state.

Notation: R the shared adapter (LoRA-R), S the private one (LoRA-S), k the client, t the round.

    load      R_k <- R_t; S_k <- the client's saved adapter
    smooth    train S_k on the rewritten data
    rectify   train R_k on the raw data
    pack      send R_k or its change: rounded, or with noise, as the run is configured
    save      keep S_k at the client, with the rest of its state

Smooth and rectify are FedSDR's stages; other methods have others (`methods`). Nothing here depends on the
transport of messages.

Paper: Ren et al., FedSDR, ICML 2026, arXiv 2605.18028, section 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsdr.callbacks import OnStep
from fedsdr.client.drift import BY_MU, NO_CORRECTION, Correction, by_control_variates, by_rehearsal
from fedsdr.client.fedala import aggregate_locally
from fedsdr.client.scaffold import ControlVariates
from fedsdr.client.state import State, is_forgotten, load_state, save_state
from fedsdr.client.update import Views, before_rounds, learning_rate, local_update
from fedsdr.config import Client, FedALA, Lora, Privacy
from fedsdr.data.conversation import Conversation
from fedsdr.errors import Diverged
from fedsdr.messages import wire
from fedsdr.messages.privacy import Ledger, noise_seed, noised
from fedsdr.messages.wire import Arrays, Float32
from fedsdr.methods import DRIFT_CORRECTIONS
from fedsdr.model.adapters import LoraModel
from fedsdr.progress import here, say, within
from fedsdr.rows import Adapter, Aggregation, MessageDtype, Method
from fedsdr.run_folder import ClientFolder
from fedsdr.seeds import seed_for

ERROR_FEEDBACK, WEIGHTS = "error_feedback", "weights"
"""Names of saved arrays, like `wire.CONTROL_VARIATES`: rounding errors of messages, and W of fedala."""


@dataclass(frozen=True)
class Plan:
    """What a run requires of its clients, the same in all rounds."""

    method: Method
    aggregation: Aggregation
    lora: Lora
    training: Client
    before_rounds: Client
    """Training in the stages before round 1."""
    fedala: FedALA
    dtype: MessageDtype
    privacy: Privacy
    num_rounds: int
    max_norm: float
    """Largest norm of a tensor accepted by the server."""
    seed: int
    """Seed of the run."""
    base: str
    """Public name of the base model, written into adapter files."""


@dataclass(frozen=True)
class Participant:
    """Client k: everything that its rounds need."""

    id: str
    folder: Path
    views: Views
    rehearsal: Sequence[Conversation] = ()
    """Synthetic conversations of the base, if the drift correction rehearses them."""
    ledger: Ledger | None = None
    """Its record of noised updates, if it keeps one."""
    on_step: OnStep | None = None
    """Called after each optimizer step."""


@dataclass(frozen=True)
class Broadcast:
    """The content of the server's message."""

    shared: Arrays
    """The transmitted part of R."""
    residual: Arrays = field(default_factory=dict)
    """The residual that the aggregation added to the base."""
    control_variates: Float32 | None = None
    """c, if the drift correction uses control variates."""


@dataclass(frozen=True)
class Reply:
    """The content of the client's reply."""

    arrays: Mapping[str, NDArray[Any]]
    """Laid out as in `wire.layout`."""
    metrics: dict[str, float]


def run_round(model: LoraModel, client: Participant, plan: Plan, server_round: int, sent: Broadcast) -> Reply:
    """Run one round at one client; afterwards the model holds its adapters.

    Raises:
        Diverged: Training diverged, or the server would drop the update.
        UserError: The client's saved state is damaged, or its privacy budget is exhausted.
    """
    rank, rate = plan.lora.rank_of(client.id), learning_rate(plan.training, server_round, plan.num_rounds)
    received = wire.cut(sent.shared, rank)

    if is_forgotten(client.folder, server_round):
        say(
            f"  {client.folder} has no state from before round {server_round}, to which the server went back:"
            " the client starts as in its first round"
        )
    before = load_adapters(model, client, plan, server_round, sent, rank)
    metrics, saved = _prepare(model, client, plan, server_round, before)

    control_variates = _control_variates(sent, before)
    metrics |= local_update(
        model,
        plan.method,
        client.views,
        plan.training,
        rate,
        _seed(plan, client, "round", server_round),
        plan.aggregation.factors,
        _correction(model, client, plan, server_round, control_variates, received),
        client.on_step,
    )

    trained = {key: value.numpy() for key, value in model.state("shared").items()}
    arrays, feedback = _pack(client, plan, server_round, wire.cut(trained, rank), received, before)

    saved |= {key: value for key, value in trained.items() if plan.aggregation.keeps(key)} | feedback
    if control_variates:
        num_steps = _num_shared_steps(plan.method, metrics)
        change = control_variates.change(wire.pack(received), arrays[wire.VALUES], num_steps, rate)
        arrays[wire.CONTROL_VARIATES] = change
        saved[wire.CONTROL_VARIATES] = control_variates.own + change
    name: Adapter = "shared" if plan.method.personal == "own" else "private"
    own = model.state(name) if plan.method.has_personal else None
    save_state(client.folder, server_round, State(own, saved), plan.lora, plan.base)
    return Reply(arrays, metrics)


def load_adapters(
    model: LoraModel, client: Participant, plan: Plan, server_round: int, sent: Broadcast, rank: int
) -> State:
    """Load R_t up to its first `rank` ranks, the aggregation's residual, and the client's own adapter.

    Ranks beyond are zero in both factors. So are their gradients, and they stay zero in training.

    Returns:
        The client's state before this round.
    """
    state = load_state(client.folder, server_round, plan.method.has_personal)
    shapes = model.shapes("shared")
    if len(sent.shared) < len(shapes):  # factors that are not sent follow from the run's seed
        path = ("round", server_round) if plan.aggregation.is_fresh else ()
        model.initialise("shared", seed_for(plan.seed, "shared", *path))
    drawn = {key: value.numpy() for key, value in model.state("shared").items()}
    whole = drawn | sent.shared | state.kept(plan.aggregation)
    model.load("shared", wire.pad(wire.cut(whole, rank), shapes))
    model.load_residual(sent.residual)
    if state.adapter is not None:
        model.load("private", state.adapter)
    elif plan.method.has_personal:
        model.initialise("private", _seed(plan, client, "private"))
    return state


def has_own_model(state: State, aggregation: Aggregation) -> bool:
    """Whether the client has trained before and saved an adapter, or a factor, of its own."""
    return state.adapter is not None or bool(state.kept(aggregation))


def _prepare(
    model: LoraModel, client: Participant, plan: Plan, server_round: int, state: State
) -> tuple[dict[str, float], Arrays]:
    """Run the method's steps before the stages of a round; return metrics, and arrays to save."""
    if not plan.method.keeps_private:
        model.initialise("private", _seed(plan, client, "private", server_round))
    if not has_own_model(state, plan.aggregation):
        if not plan.method.before_rounds:
            return {}, {}
        with within("before round 1"):
            seed = _seed(plan, client)
            views, training = client.views, plan.before_rounds
            return before_rounds(model, plan.method, views, training, seed, client.on_step), {}
    if plan.method.on_receive == "take":
        return {}, {}
    weights, metrics = aggregate_locally(
        model,
        client.views["raw"],
        state.arrays.get(WEIGHTS),
        plan.fedala,
        plan.training.batch_size,
        _seed(plan, client, "weights", server_round),
        plan.aggregation.factors,
    )
    return metrics, {WEIGHTS: weights}


def _control_variates(sent: Broadcast, state: State) -> ControlVariates | None:
    """C and c_k, which is zero at first; None without control variates."""
    if sent.control_variates is None:
        return None
    own = state.arrays.get(wire.CONTROL_VARIATES)
    return ControlVariates(
        sent.control_variates, np.zeros_like(sent.control_variates) if own is None else own
    )


def _correction(
    model: LoraModel,
    client: Participant,
    plan: Plan,
    server_round: int,
    control_variates: ControlVariates | None,
    received: Arrays,
) -> Correction:
    if control_variates:
        shapes = {key: value.shape for key, value in received.items()}
        return by_control_variates(model, wire.unpack(control_variates.shift, shapes))
    training = plan.training
    if DRIFT_CORRECTIONS[training.drift_correction].rehearses:
        seed = _seed(plan, client, "rehearsal", server_round)
        return by_rehearsal(client.rehearsal, training.weight, training.batch_size, seed)
    by_mu = BY_MU.get(training.drift_correction)
    return by_mu(model, training.weight) if by_mu else NO_CORRECTION


def _pack(
    client: Participant, plan: Plan, server_round: int, trained: Arrays, received: Arrays, state: State
) -> tuple[dict[str, NDArray[Any]], Arrays]:
    """The arrays of the reply, and their rounding error, to be saved.

    Raises:
        Diverged: The server would drop the update. Not raised under local privacy, which bounds the change
            itself: whether it exceeded the bound is the client's secret.
    """
    new = {key: value for key, value in trained.items() if plan.method.sends(key, plan.aggregation)}
    if plan.privacy.kind == "local":
        seed = noise_seed(plan.privacy, plan.seed, "client", client.id, "round", server_round)
        new = noised(new, received, plan.privacy, seed, ClientFolder(client.folder).noise_key, client.ledger)
    else:
        require_acceptable(trained, plan)
    arrays, lost = wire.encode(new, received, state.arrays.get(ERROR_FEEDBACK), plan.dtype)
    return arrays, {} if lost is None else {ERROR_FEEDBACK: lost}


def require_acceptable(trained: Arrays, plan: Plan) -> None:
    """Reject, at the client, an update that the server would drop, and report the reason.

    Raises:
        Diverged: A tensor of the shared adapter is not finite, or its norm exceeds `server.max_norm`.
    """
    for value in trained.values():
        norm = float(np.linalg.norm(value.astype(np.float64)))
        if not norm <= plan.max_norm:  # also true for NaN
            raise Diverged(
                f"{here()}: training diverged: a tensor of the shared adapter has the norm {norm:.3g}; lower"
                f" client.learning_rate = {plan.training.learning_rate}"
            )


def _num_shared_steps(method: Method, metrics: Mapping[str, float]) -> float:
    """K: optimizer steps of the shared adapter in this round, each weighted by its rate over the round's."""
    stages = zip(method.stage_names(), method.stages, strict=True)
    return sum(
        metrics[f"train/{name}/num_steps"] * stage.rate for name, stage in stages if "shared" in stage.train
    )


def _seed(plan: Plan, client: Participant, *path: str | int) -> int:
    """Seed of a random choice at this client."""
    return seed_for(plan.seed, "client", client.id, *path)
