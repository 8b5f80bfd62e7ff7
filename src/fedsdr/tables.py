"""The tables of methods, combinations, server optimizers and rewriting prompts: names and flags.

A row is data. This file imports nothing heavy, so that settings are checked and `fedsdr --help`
answers at once; the functions behind a row's name live at its station (`client`, `server`,
`distill`).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from fedsdr.errors import UserError

Adapter = Literal["shared", "private"]
View = Literal["raw", "distilled", "mixed"]
"""Mixed: the raw and the distilled examples together, twice as many."""
WireType = Literal["float32", "float16", "int8"]
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

    def __post_init__(self) -> None:
        """Refuse a row whose stages could not be told apart, in seeds and in the log."""
        if len({(stage.train, stage.on) for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages train the same adapters on the same view; make them one")

    def sends(self, key: str, combination: "Combination") -> bool:
        """Whether the shared adapter's tensor of that PEFT key travels."""
        return self.shares and combination.sends(key)

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
        """Whether a client keeps a private adapter, and so has a personalised model."""
        return any("private" in stage.active for stage in self.stages)

    @property
    def needs_rewritings(self) -> bool:
        """Whether some stage trains on the rewritten data."""
        return any(stage.on != "raw" for stage in self.stages)

    def stage_names(self) -> tuple[str, ...]:
        """Name each stage by its learner; where one learns twice, by learner and view."""
        learners = ["+".join(stage.train) for stage in self.stages]
        return tuple(
            f"{learner}-{stage.on}" if learners.count(learner) > 1 else learner
            for learner, stage in zip(learners, self.stages, strict=True)
        )


@dataclass(frozen=True)
class Named:
    """A choice whose function or wording is looked up by its name at its station."""

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
class Combination(Named):
    """How the clients' LoRA factors become one target; its function is in `server.combine`."""

    factors: tuple[Factor, ...] = ("A", "B")
    """Which factors of the shared adapter learn and travel; the others stay as they were drawn."""
    is_linear: bool = True
    """Whether each number of the target is made from the same number of every client. Else a server
    optimizer's moments, a robust reduction of single numbers, and what a client's earlier messages lost
    would mean nothing."""

    def sends(self, key: str) -> bool:
        """Whether the tensor of that PEFT key learns and travels."""
        return any(f".lora_{factor}." in key for factor in self.factors)


@dataclass(frozen=True)
class Reduction(Named):
    """How the same factor of several clients becomes one; its function is in `server.reduce`."""

    least: tuple[int, int] = (0, 1)
    """(a, b): with f bad clients its theory asks for a f + b clients."""
    wants_byzantine: bool = True
    """Whether f enters the computing, so that f = 0 would be no protection at all."""

    def num_needed(self, num_byzantine: int) -> int:
        """Fewest clients for that many bad ones among them."""
        factor, more = self.least
        return factor * num_byzantine + more


@dataclass(frozen=True)
class Correction(Named):
    """What changes the local steps of the shared adapter against its drift; `client.update` does it."""

    is_proximal: bool = False
    """Whether the shared adapter is pulled to the broadcast one, with the weight `client.mu`."""
    has_controls: bool = False
    """Whether control variates steer the steps (`client.controls`): one more array up and down. The server
    keeps their plain mean."""
    optimizer: LocalOptimizer | None = None
    """The only local optimizer that it holds for; None: any. A row of sgd reads gradients off the steps, so
    these may not be clipped."""


@dataclass(frozen=True)
class Optimizer(Named):
    """A server optimizer; its step is in `server.optimize`."""

    rate: float = 1.0
    """Learning rate that is used where the user sets none."""


METHODS: Mapping[str, Method] = {
    "fedit": Method(
        "plain federated LoRA: the shared adapter on the raw data",
        "Zhang et al., FedIT, ICASSP 2024, arXiv 2305.05644",
        (Stage(("shared",), "raw", ("shared",)),),
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
}

COMBINATIONS: Mapping[str, Combination] = {
    "average": Combination(
        "A and B each for itself",
        "Zhang et al., FedIT, ICASSP 2024, arXiv 2305.05644",
    ),
    "ffa": Combination(
        "B alone learns and is sent; A stays as it was drawn from the run's seed",
        "Sun et al., FFA-LoRA, ICLR 2024, arXiv 2403.12313",
        factors=("B",),
    ),
    "flexlora": Combination(
        "the mean of the products B A, cut to rank r by its singular values",
        "Bai et al., FlexLoRA, NeurIPS 2024, arXiv 2402.11505",
        is_linear=False,
    ),
}

REDUCTIONS: Mapping[str, Reduction] = {
    "mean": Reduction(
        "mean weighted by the clients' example counts; one bad client can move it anywhere",
        "McMahan et al., AISTATS 2017, arXiv 1602.05629",
        wants_byzantine=False,
    ),
    "median": Reduction(
        "middle value of each number, unweighted",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        (2, 1),
        wants_byzantine=False,
    ),
    "trimmed-mean": Reduction(
        "mean of each number without the f smallest and f largest, unweighted",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        (2, 1),
    ),
    "krum": Reduction("the one client that is nearest to its n - f - 2 nearest others", KRUM_PAPER, (2, 3)),
    "multi-krum": Reduction("mean of the n - f - 2 best clients by krum's score", KRUM_PAPER, (2, 3)),
    "bulyan": Reduction(
        "n - 2 f clients chosen by krum, then of each number the mean of the n - 4 f nearest their median",
        "El Mhamdi et al., ICML 2018, arXiv 1802.07927",
        (4, 3),
    ),
}

CORRECTIONS: Mapping[str, Correction] = {
    "none": Correction("the stages' own losses", "-"),
    "proximal": Correction(
        "mu / 2 times the squared distance to the broadcast shared adapter is added to the loss",
        "Li et al., FedProx, MLSys 2020, arXiv 1812.06127",
        is_proximal=True,
    ),
    "scaffold": Correction(
        "each step adds what the clients' mean gradient of the round before has over the client's; plain SGD",
        "Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, option II",
        has_controls=True,
        optimizer="sgd",
    ),
    "scaffold-adamw": Correction(
        "as scaffold with mean steps of AdamW for gradients, which its derivation does not cover",
        "as in OpenFedLLM, Ye et al., KDD 2024, arXiv 2402.06954",
        has_controls=True,
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


def allowed_with(combination: Combination) -> dict[str, list[str]]:
    """Name the reductions, server optimizers and types of message that make sense with a combination."""
    linear = combination.is_linear
    return {
        "server.reduction": [name for name in REDUCTIONS if linear or name == "mean"],
        "server.optimizer": [name for name in OPTIMIZERS if linear or name == "fedavg"],
        "wire.dtype": [name for name in get_args(WireType) if linear or name == "float32"],
    }


def allowed_beside(correction: Correction) -> dict[str, list[str]]:
    """Name the local optimizers, combinations, reductions and messages that make sense with a correction.

    Control variates are plain means of changes of single numbers: one bad client would move what a robust
    reduction protects, and a combination that makes new factors leaves them without meaning.
    """
    free = not correction.has_controls
    return {
        "client.optimizer": [
            name for name in get_args(LocalOptimizer) if correction.optimizer in (None, name)
        ],
        "server.combination": [name for name, row in COMBINATIONS.items() if free or row.is_linear],
        "server.reduction": [name for name in REDUCTIONS if free or name == "mean"],
        "wire.dtype": [name for name in get_args(WireType) if free or name == "float32"],
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
