"""The tables of methods, aggregations, server optimizers and rewriting prompts: names and flags.

A row is data. This file imports nothing heavy, so that settings are checked and `fedsdr --help`
answers at once; the functions behind a row's name live at its package (`client`, `server`,
`distill`).
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from fedsdr.errors import UserError

Adapter = Literal["shared", "private"]
View = Literal["raw", "distilled", "mixed"]
"""Mixed: the raw and the distilled examples together, twice as many."""
MessageDtype = Literal["float32", "float16", "int8"]
Personal = Literal["sum", "weighed", "fused", "own"]
"""What a client's personalised model is (`PERSONAL`)."""
LocalOptimizer = Literal["adamw", "sgd"]
Row = TypeVar("Row")


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


KRUM_PAPER = "Blanchard et al., NeurIPS 2017, arXiv 1703.02757"
BOTH: tuple[Adapter, ...] = ("shared", "private")
CONTROL = "control of ours"
ABLATION = "ablation of ours, of Ren et al., FedSDR, ICML 2026"
FEDSDR_PAPER = "Ren et al., FedSDR, ICML 2026, arXiv 2605.18028"
REDDI_PAPER = "Reddi et al., Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295"
SDFT_PAPER = "Yang et al., SDFT, ACL 2024, arXiv 2402.13669"


Factor = Literal["A", "B"]


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


PERSONAL: Mapping[Personal, str] = {
    "sum": "base + shared adapter + the client's own private adapter, which never leaves the client",
    "weighed": "base + shared and own private adapter, with weights of both that follow from each prompt",
    "fused": "base + one adapter fused from the shared and the private one, which never leaves the client",
    "own": "base + shared adapter as the client itself last trained it",
}

METHODS: Mapping[str, Method] = {
    "fedit": Method(
        "plain federated LoRA: the shared adapter on the raw data",
        "Zhang et al., FedIT, ICASSP 2024, arXiv 2305.05644",
        (Stage(("shared",), "raw", ("shared",)),),
    ),
    "fedit-wide": Method(
        "fedit at twice the rank: as many numbers to learn as fedsdr has, and twice its bytes",
        CONTROL,
        (Stage(("shared",), "raw", ("shared",)),),
        times_rank=2,
    ),
    "fedsd": Method(
        "self-distillation: the shared adapter on the rewritten data",
        FEDSDR_PAPER,
        (Stage(("shared",), "distilled", ("shared",)),),
    ),
    "fedsdr": Method(
        "with rectification: a private adapter on the rewritten data, then the shared one on the raw data",
        FEDSDR_PAPER,
        (Stage(("private",), "distilled", BOTH), Stage(("shared",), "raw", BOTH)),
    ),
    "dual-raw": Method(
        "as fedsdr with the raw data in both stages: what two adapters give without distillation",
        CONTROL,
        (Stage(("private",), "raw", BOTH), Stage(("shared",), "raw", BOTH)),
    ),
    "fedsdr-reset": Method(
        "as fedsdr, with a new private adapter in each round",
        ABLATION,
        (Stage(("private",), "distilled", BOTH), Stage(("shared",), "raw", BOTH)),
        keeps_private=False,
    ),
    "fedsdr-joint": Method(
        "both adapters at once, in one stage, on raw and rewritten data together",
        ABLATION,
        (Stage(BOTH, "mixed", BOTH),),
    ),
    "fedsdr-swapped": Method(
        "the wrong adapter is shared: private on the raw data, then shared on the rewritten data",
        ABLATION,
        (Stage(("private",), "raw", BOTH), Stage(("shared",), "distilled", BOTH)),
    ),
    "fedsd-then-raw": Method(
        "one adapter in two stages: the shared one on the rewritten data, then on the raw data",
        ABLATION,
        (Stage(("shared",), "distilled", ("shared",)), Stage(("shared",), "raw", ("shared",))),
    ),
    "mixed": Method(
        "one adapter: the shared one on raw and rewritten data together",
        ABLATION,
        (Stage(("shared",), "mixed", ("shared",)),),
    ),
    "local-only": Method(
        "no federation: each client trains an adapter of its own on its raw data; nothing is sent",
        CONTROL,
        (Stage(("private",), "raw", ("private",)),),
    ),
    "centralised": Method(
        "no federation: one client holds the raw data of all; what pooling would give",
        CONTROL,
        (Stage(("shared",), "raw", ("shared",)),),
        is_pooled=True,
    ),
    "feddpa": Method(
        "a private adapter beside half of the shared one, then the shared one alone; each test prompt gets"
        " its own weights of both",
        "Yang et al., FedDPA-T, NeurIPS 2024, arXiv 2403.19211",
        (Stage(("private",), "raw", BOTH, mix=(0.5, 0.5)), Stage(("shared",), "raw", ("shared",))),
        personal="weighed",
    ),
    "fdlora": Method(
        "the private adapter learns once before round 1, the shared one in the rounds; then both are fused",
        "Qi et al., FDLoRA, arXiv 2406.07925",
        (Stage(("shared",), "raw", ("shared",)),),
        before_rounds=(Stage(("private",), "raw", ("private",)),),
        personal="fused",
    ),
    "fedala": Method(
        "the shared adapter begins a round between the client's last one and the one sent, as learnt",
        "Zhang et al., FedALA, AAAI 2023, arXiv 2212.01197",
        (Stage(("shared",), "raw", ("shared",)),),
        on_receive="adapt",
        personal="own",
    ),
}

AGGREGATIONS: Mapping[str, Aggregation] = {
    "average": Aggregation(
        "A and B each for itself",
        "Zhang et al., FedIT, ICASSP 2024, arXiv 2305.05644",
    ),
    "ffa": Aggregation(
        "B alone learns and is sent; A stays as it was drawn from the run's seed",
        "Sun et al., FFA-LoRA, ICLR 2024, arXiv 2403.12313",
        factors=("B",),
    ),
    "fedsa": Aggregation(
        "A and B learn, A alone is sent; each client keeps its own B, so there is no global model",
        "Guo et al., FedSA-LoRA, ICLR 2025, arXiv 2410.01463",
        kept=("B",),
    ),
    "flexlora": Aggregation(
        "the mean of the products B A, cut to rank r by its singular values",
        "Bai et al., FlexLoRA, NeurIPS 2024, arXiv 2402.11505",
        is_linear=False,
        ranks="any",
    ),
    "flora": Aggregation(
        "the mean of the products B A, stacked and kept whole beside the base; new factors in each round",
        "Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976",
        is_linear=False,
        adds_to_base=True,
        is_fresh=True,
        ranks="any",
    ),
    "fedex": Aggregation(
        "A and B each for itself; what that leaves out of the mean of B A is kept beside the base",
        "Singhal et al., FedEx-LoRA, ACL 2025, arXiv 2410.09432",
        is_linear=False,
        adds_to_base=True,
    ),
    "fedrot": Aggregation(
        "A and B each for itself, after each client's factors are rotated towards the broadcast ones",
        "Zhang et al., FedRot-LoRA, ICML 2026, arXiv 2602.23638",
        is_turned=True,
    ),
    "zeropad": Aggregation(
        "clients of different rank: A and B each for itself, with zeros for the ranks that a client lacks",
        "the baseline of Cho et al., HetLoRA, EMNLP 2024, arXiv 2401.06432",
        ranks="several",
    ),
}

ROBUST_AGGREGATORS: Mapping[str, RobustAggregator] = {
    "none": RobustAggregator(
        "mean weighted by the clients' example counts; one bad client can move it anywhere",
        "McMahan et al., AISTATS 2017, arXiv 1602.05629",
        wants_byzantine=False,
    ),
    "median": RobustAggregator(
        "middle value of each number, unweighted",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        (2, 1),
        wants_byzantine=False,
    ),
    "trimmed-mean": RobustAggregator(
        "mean of each number without the f smallest and f largest, unweighted",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        (2, 1),
    ),
    "krum": RobustAggregator(
        "the one client that is nearest to its n - f - 2 nearest others", KRUM_PAPER, (2, 3)
    ),
    "multi-krum": RobustAggregator("mean of the n - f - 2 best clients by krum's score", KRUM_PAPER, (2, 3)),
    "bulyan": RobustAggregator(
        "n - 2 f clients chosen by krum, then of each number the mean of the n - 4 f nearest their median",
        "El Mhamdi et al., ICML 2018, arXiv 1802.07927",
        (4, 3),
    ),
}

DRIFT_CORRECTIONS: Mapping[str, DriftCorrection] = {
    "none": DriftCorrection("the stages' own losses", "-"),
    "fedprox": DriftCorrection(
        "mu / 2 times the squared distance to the broadcast shared adapter is added to the loss",
        "Li et al., FedProx, MLSys 2020, arXiv 1812.06127",
        is_proximal=True,
    ),
    "scaffold": DriftCorrection(
        "each step adds what the clients' mean gradient of the round before has over the client's; plain SGD",
        "Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, option II",
        has_control_variates=True,
        optimizer="sgd",
    ),
    "scaffold-adamw": DriftCorrection(
        "as scaffold with mean steps of AdamW for gradients, which its derivation does not cover",
        "as in OpenFedLLM, Ye et al., KDD 2024, arXiv 2402.06954",
        has_control_variates=True,
        optimizer="adamw",
    ),
}

OPTIMIZERS: Mapping[str, Optimizer] = {  # how the server steps towards the target: server.optimize
    "fedavg": Optimizer("take the target", "McMahan et al., AISTATS 2017, arXiv 1602.05629"),
    "fedavgm": Optimizer(
        "momentum, undamped: in steady state it moves 1 / (1 - beta1) times as far as fedavg",
        "Hsu et al. 2019, arXiv 1909.06335",
    ),
    "fedavgm-damped": Optimizer(
        "momentum, damped: the mean change enters with the factor 1 - beta1",
        "as in OpenFedLLM, Ye et al., KDD 2024, arXiv 2402.06954",
    ),
    "fedadagrad": Optimizer("second moments summed", REDDI_PAPER, 1e-3),
    "fedadam": Optimizer("second moments averaged, without bias correction", REDDI_PAPER, 1e-3),
    "fedyogi": Optimizer("second moments moved by the sign of their change", REDDI_PAPER, 1e-3),
}

PROMPTS: Mapping[str, Named] = {  # how the teacher is asked to rewrite: distill.prompts
    "reference": Named("instruction and reference answer; write your own response", SDFT_PAPER),
    "paraphrase": Named("only the answer is shown; rewrite it and keep every fact, number and name", "ours"),
    "turn": Named("question, answer, then: say that again in your own words", "ours"),
}


def has_global(method: Method, aggregation: Aggregation) -> bool:
    """Whether a run has a global model: something is shared, and all that learns of it."""
    return method.shares and not aggregation.kept


def obstacles(aggregation: Aggregation) -> dict[str, str]:
    """Settings of which only the plain choice makes sense with an aggregation, and why."""
    found: dict[str, str] = {}
    if aggregation.kept:
        found["client.drift_correction"] = (
            "leaves part of the adapter at the client, which no broadcast anchors"
        )
    if aggregation.is_turned:
        found["communication.dtype"] = "rotates what a client sends, but not what its earlier messages lost"
    if aggregation.ranks == "several":
        found["server.robust"] = "fills up with zeros, which are no client's values to be counted"
    if not aggregation.is_linear:
        why = "aggregates whole products B A, beside which nothing can work number by number"
        found |= dict.fromkeys(("server.robust", "server.optimizer", "communication.dtype"), why)
    return found


def clash(method: Method, aggregation: Aggregation) -> str:
    """Say why a method does not go with an aggregation; "" if it does."""
    if method.on_receive == "adapt" and aggregation.kept:
        return "leaves part of the adapter at the client, so no broadcast could be moved towards"
    if method.on_receive == "adapt" and (aggregation.is_turned or not aggregation.is_linear):
        return "makes new factors in each round, so a client's last ones are no numbers to move from"
    if method.personal != "sum" and aggregation.adds_to_base:
        return "adds to the base what a client's own adapter could neither weigh nor hold"
    return ""


def allowed_with(aggregation: Aggregation) -> dict[str, list[str]]:
    """Name what goes with an aggregation, for each of the settings that may not."""
    choices: dict[str, tuple[str, Iterable[str]]] = {
        "client.drift_correction": ("none", DRIFT_CORRECTIONS),
        "server.robust": ("none", ROBUST_AGGREGATORS),
        "server.optimizer": ("fedavg", OPTIMIZERS),
        "communication.dtype": ("float32", get_args(MessageDtype)),
    }
    hindered = obstacles(aggregation)
    return {"method": [name for name, row in METHODS.items() if not clash(row, aggregation)]} | {
        key: [name for name in names if key not in hindered or name == plain]
        for key, (plain, names) in choices.items()
    }


def allowed_beside(correction: DriftCorrection) -> dict[str, list[str]]:
    """Name the local optimizers, aggregations and messages that make sense with a drift correction.

    Control variates are plain means of changes of single numbers: one bad client would move what a robust
    aggregator protects, and where an aggregation does more than average they have no meaning.
    """
    free = not correction.has_control_variates
    return {
        "client.optimizer": [
            name for name in get_args(LocalOptimizer) if correction.optimizer in (None, name)
        ],
        "server.aggregation": [name for name, row in AGGREGATIONS.items() if free or row.is_plain],
        "server.robust": [name for name in ROBUST_AGGREGATORS if free or name == "none"],
        "communication.dtype": [name for name in get_args(MessageDtype) if free or name == "float32"],
    }


METRICS: Mapping[str, str] = {
    "score": "num_scored",
    "choice_score": "num_chosen",
    "unsupported_rate": "num_examples",
    "words": "num_examples",
    "filler_rate": "num_examples",
    "redundancy": "num_examples",
    "cut_off_rate": "num_examples",
    "loss": "loss_tokens",
    "loss_distilled": "loss_distilled_tokens",
}
"""What is measured of a model on test examples, all of it means, and the count that each is a mean over."""

ALWAYS_SCORED = ("num_examples", "num_scored", *(name for name in METRICS if METRICS[name] == "num_examples"))
"""What is told of every model and domain; scores and losses only where they could be had."""


def group_scores(metrics: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """Sort metrics by the key eval/<domain>/<metric>@<model>: (model, domain) -> metric -> value."""
    grouped: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        if key.startswith("eval/"):
            _, domain, rest = key.split("/")
            metric, model = rest.split("@")
            grouped.setdefault((model, domain), {})[metric] = value
    return grouped


def look_up(table: Mapping[str, Row], name: str, key: str) -> Row:
    """Return the row of that name.

    Args:
        table: One of the tables above.
        name: The name that the user gave.
        key: The setting that held it, for the message.

    Raises:
        UserError: The name is unknown; the message lists the known ones, nearest first.
    """
    if name in table:
        return table[name]
    ranked = sorted(table, key=lambda known: -difflib.SequenceMatcher(None, name, known).ratio())
    raise UserError(f"{key} = {name!r} is unknown; known, nearest first: {', '.join(ranked)}")
