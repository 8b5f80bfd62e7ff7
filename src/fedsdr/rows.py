"""What a row of the tables in `methods` holds: types alone."""

from dataclasses import dataclass, replace
from typing import Literal

Adapter = Literal["shared", "private"]
View = Literal["raw", "distilled", "mixed"]
"""Mixed: the raw and the distilled examples together, twice as many."""
MessageDtype = Literal["float32", "float16", "int8"]
Personal = Literal["sum", "weighed", "fused", "own"]
"""What a client's personalised model is (`PERSONAL`)."""
LocalOptimizer = Literal["adamw", "sgd"]
Factor = Literal["A", "B"]
PrivacyKind = Literal["none", "central", "local"]


@dataclass(frozen=True)
class Stage:
    """One part of a local update."""

    train: tuple[Adapter, ...]
    """The adapters that learn."""
    on: View
    """The view of the client's data."""
    active: tuple[Adapter, ...]
    """The adapters in the forward pass."""
    mix: tuple[float, ...] | None = None
    """Their weights there, in that order; None: all one."""

    @property
    def description(self) -> str:
        """What learns on what, in words."""
        return f"{'+'.join(self.train)} adapter, on {self.on} data"


@dataclass(frozen=True)
class Method:
    """What a client trains, on what, in which order."""

    summary: str
    paper: str
    stages: tuple[Stage, ...]
    keeps_private: bool = True
    """Whether a client goes on with its private adapter in the next round, or begins a new one."""
    is_pooled: bool = False
    """Whether one client holds the data of all."""
    before_rounds: tuple[Stage, ...] = ()
    """Stages that a client goes through once, before its first round. They train the private adapter."""
    on_receive: Literal["take", "adapt"] = "take"
    """Whether the shared adapter begins a round as it was sent, or as the client's own last one moved
    towards that by weights which it learns."""
    times_rank: int = 1
    """How many times lora.rank its adapters have, at the same scale."""
    personal: Personal = "sum"
    """What a client's personalised model is, where it has one (`PERSONAL`)."""

    def __post_init__(self) -> None:
        """Refuse a row whose stages could not be told apart, in seeds and in the log."""
        if len({(stage.train, stage.on) for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages train the same adapters on the same view; make them one")
        if any(stage.train != ("private",) for stage in self.before_rounds):
            raise ValueError("before the rounds there is no shared adapter yet; train the private one")

    def sends(self, key: str, aggregation: "Aggregation") -> bool:
        """Whether the shared adapter's tensor of that PEFT key travels."""
        return self.shares and aggregation.sends(key)

    @property
    def shares(self) -> bool:
        """Whether the shared adapter learns, and so is sent to the server."""
        return any("shared" in stage.train for stage in self.stages)

    @property
    def learns_last(self) -> View:
        """The view that the model which is judged learns last: the shared adapter's, if it learns."""
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
    def needs_rewritings(self) -> bool:
        """Whether some stage trains on the rewritten data."""
        return any(stage.on != "raw" for stage in (*self.before_rounds, *self.stages))

    def stage_names(self) -> tuple[str, ...]:
        """Name each stage by its learner; where one learns twice, by learner and view."""
        learners = ["+".join(stage.train) for stage in self.stages]
        return tuple(
            f"{learner}-{stage.on}" if learners.count(learner) > 1 else learner
            for learner, stage in zip(learners, self.stages, strict=True)
        )

    def logged(self) -> dict[str, str]:
        """Name all training that the log tells of, train/<name>/..., and say it in words."""
        before = {
            f"before-{name}": f"{stage.description}, before round 1"
            for name, stage in zip(self.before().stage_names(), self.before_rounds, strict=True)
        }
        weights = {"weights": "weights of the local aggregation"} if self.on_receive == "adapt" else {}
        stages = zip(self.stage_names(), self.stages, strict=True)
        return before | weights | {name: stage.description for name, stage in stages}

    def before(self) -> "Method":
        """The method whose stages are those before round 1."""
        return replace(self, stages=self.before_rounds, before_rounds=())


@dataclass(frozen=True)
class Named:
    """A choice whose function or wording is looked up by its name at its package."""

    summary: str
    paper: str


@dataclass(frozen=True)
class Aggregation(Named):
    """How the clients' LoRA factors become one target; its function is in `server.aggregate`."""

    factors: tuple[Factor, ...] = ("A", "B")
    """Which factors of the shared adapter learn; the others stay as they were drawn."""
    kept: tuple[Factor, ...] = ()
    """Which of those stay at the client, so that there is no global model; the rest travels."""
    is_linear: bool = True
    """Whether each number of the target is made from the same number of every client. Else a server
    optimizer's moments, a robust aggregator of single numbers, and what a client's earlier messages lost
    would mean nothing."""
    adds_to_base: bool = False
    """Whether part of the target is kept beside the base, as factors of their own (the residual)."""
    is_fresh: bool = False
    """Whether every round begins with newly drawn factors, which therefore need not travel down."""
    is_turned: bool = False
    """Whether each client's factors are rotated before they are aggregated."""
    ranks: Literal["one", "any", "several"] = "one"
    """Whether all clients must have one rank, may have several, or must, since with one it is `average`."""

    @property
    def is_plain(self) -> bool:
        """Whether what a client sends is, number by number, what the server takes the mean of."""
        return self.is_linear and not self.is_turned and not self.kept and self.ranks == "one"

    def keeps(self, key: str) -> bool:
        """Whether the tensor of that PEFT key learns and stays at the client."""
        return any(f".lora_{factor}." in key for factor in self.kept)

    def sends(self, key: str) -> bool:
        """Whether the tensor of that PEFT key learns and travels."""
        return any(f".lora_{factor}." in key for factor in self.factors) and not self.keeps(key)


@dataclass(frozen=True)
class RobustAggregator(Named):
    """How the same factor of several clients becomes one; its function is in `server.robust`."""

    least: tuple[int, int] = (0, 1)
    """(a, b): with f bad clients its theory asks for a f + b clients."""
    wants_byzantine: bool = True
    """Whether f enters the computing, so that f = 0 would be no protection at all."""

    def num_needed(self, num_byzantine: int) -> int:
        """Fewest clients for that many bad ones among them."""
        factor, more = self.least
        return factor * num_byzantine + more


@dataclass(frozen=True)
class DriftCorrection(Named):
    """What changes the local steps of the shared adapter against its drift; `client.update` does it."""

    is_proximal: bool = False
    """Whether the shared adapter is pulled to the broadcast one, with the weight `client.mu`."""
    has_control_variates: bool = False
    """Whether control variates steer the steps (`client.scaffold`): one more array up and down. The server
    keeps their plain mean."""
    optimizer: LocalOptimizer | None = None
    """The only local optimizer that it holds for; None: any. A row of sgd reads gradients off the steps, so
    these may not be clipped."""


@dataclass(frozen=True)
class Optimizer(Named):
    """A server optimizer; its step is in `server.optimize`."""

    rate: float = 1.0
    """Learning rate that is used where the user sets none."""
    reads: tuple[str, ...] = ("learning_rate", "beta1")
    """The settings of [server] that its step depends on."""


def has_global(method: Method, aggregation: Aggregation) -> bool:
    """Whether a run has a global model: something is shared, and all that learns of it."""
    return method.shares and not aggregation.kept
