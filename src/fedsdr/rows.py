"""The types of the rows in `methods` and of the rules in `compatibility`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Adapter = Literal["shared", "private"]
View = Literal["raw", "distilled", "mixed", "likely"]
"""mixed: raw and distilled examples together, twice as many. likely: raw examples, with tokens weighted by
their likelihood under the base (`distill.token_mask`)."""
MessageDtype = Literal["float32", "float16", "int8"]
Personal = Literal["sum", "weighted", "fused", "own"]
"""What a client's personalised model is (`PERSONAL`)."""
LocalOptimizer = Literal["adamw", "sgd"]
Factor = Literal["A", "B"]
PrivacyKind = Literal["none", "central", "local"]


@dataclass(frozen=True)
class Stage:
    """One part of a local update."""

    train: tuple[Adapter, ...]
    """The trained adapters."""
    on: View
    """The view of the client's data."""
    active: tuple[Adapter, ...]
    """The adapters in the forward pass."""
    mix: tuple[float, ...] | None = None
    """Their weights in the forward pass, in the same order; None: all one."""
    drop: float = 0.0
    """Probability of leaving an active, untrained adapter out of a step."""
    share: float = 1.0
    """Its steps as a multiple of client.local_steps or local_epochs; with a budget per round, its weight."""
    rate: float = 1.0
    """Its learning rate as a multiple of the round's."""
    begins_from: Adapter | None = None
    """Adapter whose values initialise the trained one; None: it continues from its own."""

    def __post_init__(self) -> None:
        """Reject a stage that no step could train."""
        if not self.train or not set(self.train) <= set(self.active):
            raise ValueError(f"train = {self.train}, active = {self.active}; train active adapters")
        if self.mix is not None and len(self.mix) != len(self.active):
            raise ValueError(f"mix = {self.mix}, active = {self.active}; give each active adapter a weight")

    @property
    def description(self) -> str:
        """The trained adapter and its data, as text."""
        return f"{'+'.join(self.train)} adapter, on {self.on} data"


@dataclass(frozen=True)
class Method:
    """What a client trains, on what, in which order."""

    summary: str
    paper: str
    stages: tuple[Stage, ...]
    keeps_private: bool = True
    """Whether a client keeps its private adapter for the next round, or starts a new one."""
    cycles: int = 1
    """Number of alternations between the stages in a round; each stage then takes its steps in that many
    parts. 0: alternate after every step, so that the adapters learn simultaneously, each on its own view."""
    is_pooled: bool = False
    """Whether one client holds the data of all."""
    before_rounds: tuple[Stage, ...] = ()
    """Stages that a client runs once, before its first round. They train the private adapter."""
    on_receive: Literal["take", "adapt"] = "take"
    """take: a round starts from the broadcast shared adapter. adapt: from the client's last one, moved
    towards the broadcast one by learned weights."""
    times_rank: int = 1
    """The rank of its adapters as a multiple of lora.rank, at the same scale."""
    personal: Personal = "sum"
    """The type of a client's personalised model, if there is one (`PERSONAL`)."""

    def __post_init__(self) -> None:
        """Reject a row that a client would not train as it says."""
        if len({(stage.train, stage.on) for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages train the same adapters on the same view; make them one")
        if any(stage.train != ("private",) for stage in self.before_rounds):
            raise ValueError("before the rounds there is no shared adapter yet; train the private one")
        if self.on_receive == "adapt" and self.personal != "own":
            raise ValueError("on_receive = 'adapt' needs the client's last shared adapter: personal = 'own'")
        if self.has_private and self.personal == "own":
            raise ValueError(
                "with personal = 'own' a client keeps its shared adapter; activate no private one"
            )

    def sends(self, key: str, aggregation: "Aggregation") -> bool:
        """Whether the shared adapter's tensor with this PEFT key is transmitted."""
        return self.shares and aggregation.sends(key)

    @property
    def shares(self) -> bool:
        """Whether the shared adapter is trained, and so sent to the server."""
        return any("shared" in stage.train for stage in self.stages)

    @property
    def learns_last(self) -> View:
        """The view that the evaluated model learns last: the shared adapter's, if that is trained."""
        return [stage.on for stage in self.stages if "shared" in stage.train or not self.shares][-1]

    @property
    def has_private(self) -> bool:
        """Whether a client trains a private adapter."""
        return any("private" in stage.active for stage in (*self.before_rounds, *self.stages))

    @property
    def has_personal(self) -> bool:
        """Whether a client keeps an adapter, and so has a personalised model."""
        return self.has_private or self.personal == "own"

    @property
    def personal_adapters(self) -> tuple[Adapter, ...]:
        """The adapters of the personalised model; none if each client chooses their weights."""
        if self.personal == "own":
            return ("private",)
        if self.personal == "sum":
            return ("shared", "private") if self.has_private else ("shared",)
        return ()

    @property
    def needs_rewritings(self) -> bool:
        """Whether some stage trains on the rewritten data."""
        return bool({"distilled", "mixed"} & self.views)

    @property
    def views(self) -> set[View]:
        """The views that some stage trains on."""
        return {stage.on for stage in (*self.before_rounds, *self.stages)}

    def stage_names(self) -> tuple[str, ...]:
        """Name each stage by its trained adapters; if they are trained twice, by adapters and view."""
        learners = ["+".join(stage.train) for stage in self.stages]
        return tuple(
            f"{learner}-{stage.on}" if learners.count(learner) > 1 else learner
            for learner, stage in zip(learners, self.stages, strict=True)
        )

    def logged(self) -> dict[str, str]:
        """All training logged as train/<name>/...: name -> description."""
        before = {
            f"before-{name}": f"{stage.description}, before round 1"
            for name, stage in zip(self.before().stage_names(), self.before_rounds, strict=True)
        }
        weights = {"weights": "weights of the local aggregation"} if self.on_receive == "adapt" else {}
        stages = zip(self.stage_names(), self.stages, strict=True)
        return before | weights | {name: stage.description for name, stage in stages}

    def before(self) -> "Method":
        """A method with the stages before round 1 as its stages."""
        return replace(self, stages=self.before_rounds, before_rounds=(), cycles=1)

    def divide(self, num_steps: int) -> tuple[int, ...]:
        """Divide the steps of a round over the stages, by their shares; the last ones get the remainder."""
        total = sum(stage.share for stage in self.stages)
        steps = [int(num_steps * stage.share // total) for stage in self.stages]
        first = len(steps) - (num_steps - sum(steps))
        return tuple(num + (number >= first) for number, num in enumerate(steps))


@dataclass(frozen=True)
class Named:
    """A choice whose function or wording is found by name in its package."""

    summary: str
    paper: str


@dataclass(frozen=True)
class Rewriter(Named):
    """A prompt for the teacher; its wording is in `distill.prompts`."""


@dataclass(frozen=True)
class Aggregation(Named):
    """How the clients' LoRA factors become one target; its function is in `server.aggregate`."""

    factors: tuple[Factor, ...] = ("A", "B")
    """The trained factors of the shared adapter; the others keep their initial values."""
    kept: tuple[Factor, ...] = ()
    """The trained factors that stay at the client, so that there is no global model; the others are sent."""
    is_linear: bool = True
    """Whether each value of the target depends only on the same value of every client. Server optimizers
    with moments, robust aggregators and error feedback require this."""
    adds_to_base: bool = False
    """Whether part of the target is added to the base, as a third pair of factors (the residual)."""
    is_fresh: bool = False
    """Whether every round starts with new random factors, which need no broadcast."""
    is_rotated: bool = False
    """Whether each client's factors are rotated before they are aggregated."""
    ranks: Literal["one", "any", "several"] = "one"
    """Whether clients must have the same rank (one), may differ (any) or must differ (several)."""

    is_plugin: bool = False
    """Whether it is a plugin's (`plugins`), which itself decides how the clients' values are combined."""

    @property
    def is_plain(self) -> bool:
        """Whether the server takes the plain mean of every transmitted value."""
        is_mean = self.is_linear and not self.is_plugin and not self.is_rotated
        return is_mean and not self.kept and self.ranks == "one"

    def keeps(self, key: str) -> bool:
        """Whether the tensor with this PEFT key is trained and stays at the client."""
        return any(f".lora_{factor}." in key for factor in self.kept)

    def sends(self, key: str) -> bool:
        """Whether the tensor with this PEFT key is trained and transmitted."""
        return any(f".lora_{factor}." in key for factor in self.factors) and not self.keeps(key)


@dataclass(frozen=True)
class RobustAggregator(Named):
    """How the same factor of several clients is combined; its function is in `server.robust`."""

    least: tuple[int, int] = (0, 1)
    """(a, b): for f bad clients its theory requires a f + b clients."""
    wants_byzantine: bool = True
    """Whether f is part of the computation, so that f = 0 gives no protection."""

    def num_needed(self, num_byzantine: int) -> int:
        """Minimum number of clients for this many malicious ones."""
        factor, more = self.least
        return factor * num_byzantine + more


@dataclass(frozen=True)
class DriftCorrection(Named):
    """How client drift of the shared adapter is corrected in local steps; see `client.update`."""

    weight: float = 0.0
    """Default of `client.mu`, the weight of the term that it adds to the loss; 0: it adds none."""
    rehearses: bool = False
    """Whether this term needs synthetic conversations of the base (`distill.rehearsal`)."""
    has_control_variates: bool = False
    """Whether control variates correct the steps (`client.scaffold`): one more array up and down. The server
    keeps their plain mean."""
    optimizer: LocalOptimizer | None = None
    """The only local optimizer that it is defined for; None: any. With sgd, gradients are computed from the
    steps, so these may not be clipped."""


@dataclass(frozen=True)
class Optimizer(Named):
    """A server optimizer; its step is in `server.optimize`."""

    rate: float = 1.0
    """Default learning rate."""
    reads: tuple[str, ...] = ("learning_rate", "beta1")
    """The keys of [server] that its step depends on."""
    extrapolates: bool = False
    """Whether its step depends on the spread of the clients' changes."""
    num_moments: int = 0
    """Number of float64 values saved between rounds for each value of the adapter; used by the disk
    estimate."""


def has_global(method: Method, aggregation: Aggregation) -> bool:
    """Whether a run has a global model: all trained factors of the shared adapter are shared."""
    return method.shares and not aggregation.kept


Test = tuple[Any, ...] | Callable[[Any], bool]
"""Condition on a setting: one of these values, or a choice whose row has a property."""


@dataclass(frozen=True)
class But:
    """Condition on a setting: any value but this one."""

    value: Any


@dataclass(frozen=True)
class Rule:
    """Under some settings, others are restricted."""

    under: Mapping[str, Test]
    """Setting -> condition for the rule to apply; all must hold."""
    needs: Mapping[str, Test]
    """Setting -> requirement if the rule applies."""
    reason: str
    """Continues the sentence "... does not go with these settings, which ..."."""


@dataclass(frozen=True)
class Use:
    """A setting, or a section, used only by some choices. With others it must have its default."""

    setting: str
    key: str
    by: Test | But
    but: tuple[str, ...] = ()
    """Settings of the section that other choices use too."""
