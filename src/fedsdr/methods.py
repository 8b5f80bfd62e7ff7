"""The tables of methods, drift corrections, aggregations, robust aggregators, server optimizers and prompts.

A row is data, of a type in `rows`. The functions behind the names are in the packages `client`, `server` and
`distill`. `compatibility` defines the allowed combinations. This file imports nothing heavy, so that `fedsdr
--help` is fast. `plugins` adds rows of other packages.
"""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from fedsdr.errors import UserError
from fedsdr.rows import (
    Adapter,
    Aggregation,
    DriftCorrection,
    Method,
    Optimizer,
    Personal,
    Rewriter,
    RobustAggregator,
    Stage,
)

Row = TypeVar("Row")

KRUM_PAPER = "Blanchard et al., NeurIPS 2017, arXiv 1703.02757"
BOTH: tuple[Adapter, ...] = ("shared", "private")
CONTROL = "our own control"
VARIANT = "our variant of Ren et al., FedSDR, ICML 2026"
ABLATION = "our ablation of Ren et al., FedSDR, ICML 2026"
FEDSDR_PAPER = "Ren et al., FedSDR, ICML 2026, arXiv 2605.18028"
REDDI_PAPER = "Reddi et al., Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295"
ADAPTIVE = ("learning_rate", "beta1", "beta2", "tau")
SDFT_PAPER = "Yang et al., SDFT, ACL 2024, arXiv 2402.13669"

PERSONAL: Mapping[Personal, str] = {
    "sum": "base + shared adapter + the client's own private adapter, which never leaves the client",
    "weighted": "base + shared and own private adapter, with weights of both that follow from each prompt",
    "fused": "base + one adapter fused from the shared and the private one, which never leaves the client",
    "own": "base + shared adapter as the client itself last trained it",
}

METHODS: dict[str, Method] = {
    "fedit": Method(
        "plain federated LoRA: the shared adapter on the raw data",
        "Zhang et al., FedIT, ICASSP 2024, arXiv 2305.05644",
        (Stage(("shared",), "raw", ("shared",)),),
    ),
    "fedit-wide": Method(
        "fedit at twice the rank: as many trainable parameters as fedsdr, twice the bytes",
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
        "fedsdr with raw data in both stages: isolates the effect of distillation",
        CONTROL,
        (Stage(("private",), "raw", BOTH), Stage(("shared",), "raw", BOTH)),
    ),
    "fedsdr-drop": Method(
        "as fedsdr, with the private adapter left out of half of the rectifying steps",
        VARIANT,
        (Stage(("private",), "distilled", BOTH), Stage(("shared",), "raw", BOTH, drop=0.5)),
    ),
    "fedsdr-once": Method(
        "as fedsdr, with the private adapter trained once, before round 1, on the base alone",
        VARIANT,
        (Stage(("shared",), "raw", BOTH),),
        before_rounds=(Stage(("private",), "distilled", ("private",)),),
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
        "swapped views: private on the raw data, then shared on the rewritten data",
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
    "token-mask": Method(
        "without rewriting: fedit on those raw tokens that the base finds likely",
        "Wu et al., Selective Token Masking, NeurIPS 2025, arXiv 2501.14315",
        (Stage(("shared",), "likely", ("shared",)),),
    ),
    "local-only": Method(
        "no federation: each client trains an adapter of its own on its raw data; nothing is sent",
        CONTROL,
        (Stage(("private",), "raw", ("private",)),),
    ),
    "centralised": Method(
        "no federation: one client holds the raw data of all, as an upper reference",
        CONTROL,
        (Stage(("shared",), "raw", ("shared",)),),
        is_pooled=True,
    ),
    "feddpa": Method(
        "a private adapter with half of the shared one, then the shared one alone; each test prompt gets"
        " its own weights of both",
        "Yang et al., FedDPA-T, NeurIPS 2024, arXiv 2403.19211",
        (Stage(("private",), "raw", BOTH, mix=(0.5, 0.5)), Stage(("shared",), "raw", ("shared",))),
        personal="weighted",
    ),
    "fdlora": Method(
        "the private adapter learns once before round 1, the shared one in the rounds; then both are fused",
        "Qi et al., FDLoRA, arXiv 2406.07925",
        (Stage(("shared",), "raw", ("shared",)),),
        before_rounds=(Stage(("private",), "raw", ("private",)),),
        personal="fused",
    ),
    "fedala": Method(
        "a round starts between the client's last shared adapter and the broadcast one, by learned weights",
        "Zhang et al., FedALA, AAAI 2023, arXiv 2212.01197",
        (Stage(("shared",), "raw", ("shared",)),),
        on_receive="adapt",
        personal="own",
    ),
}

AGGREGATIONS: dict[str, Aggregation] = {
    "average": Aggregation(
        "separate means of A and B",
        "Zhang et al., FedIT, ICASSP 2024, arXiv 2305.05644",
    ),
    "ffa": Aggregation(
        "only B learns and is sent; A keeps its initial values from the run's seed",
        "Sun et al., FFA-LoRA, ICLR 2024, arXiv 2403.12313",
        factors=("B",),
    ),
    "fedsa": Aggregation(
        "A and B learn, only A is sent; each client keeps its own B, so there is no global model",
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
        "the mean of the products B A is added to the base without truncation; new factors in each round",
        "Wang et al., FLoRA, NeurIPS 2024, arXiv 2409.05976",
        is_linear=False,
        adds_to_base=True,
        is_fresh=True,
        ranks="any",
    ),
    "fedex": Aggregation(
        "separate means of A and B; the rest of the mean of B A is added to the base",
        "Singhal et al., FedEx-LoRA, ACL 2025, arXiv 2410.09432",
        is_linear=False,
        adds_to_base=True,
    ),
    "fedrot": Aggregation(
        "separate means of A and B, after each client's factors are rotated towards the broadcast ones",
        "Zhang et al., FedRot-LoRA, ICML 2026, arXiv 2602.23638",
        is_rotated=True,
    ),
    "zeropad": Aggregation(
        "clients of different rank: separate means of A and B, padded with zeros",
        "the baseline of Cho et al., HetLoRA, EMNLP 2024, arXiv 2401.06432",
        ranks="several",
    ),
}

ROBUST_AGGREGATORS: Mapping[str, RobustAggregator] = {
    "none": RobustAggregator(
        "weighted mean by the clients' example counts; one bad client can move it anywhere",
        "McMahan et al., AISTATS 2017, arXiv 1602.05629",
        wants_byzantine=False,
    ),
    "median": RobustAggregator(
        "unweighted median of each number",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        (2, 1),
        wants_byzantine=False,
    ),
    "trimmed-mean": RobustAggregator(
        "unweighted mean of each number without the f smallest and f largest",
        "Yin et al., ICML 2018, arXiv 1803.01498",
        (2, 1),
    ),
    "krum": RobustAggregator(
        "the client with the smallest distance to its n - f - 2 nearest others", KRUM_PAPER, (2, 3)
    ),
    "multi-krum": RobustAggregator(
        "mean of the n - f - 2 clients with the best score of krum", KRUM_PAPER, (2, 3)
    ),
    "bulyan": RobustAggregator(
        "n - 2 f clients chosen by krum, then of each number the mean of the n - 4 f nearest their median",
        "El Mhamdi et al., ICML 2018, arXiv 1802.07927",
        (4, 3),
    ),
}

DRIFT_CORRECTIONS: Mapping[str, DriftCorrection] = {
    "none": DriftCorrection("no correction", "-"),
    "fedprox": DriftCorrection(
        "adds mu / 2 times the squared distance to the broadcast shared adapter to the loss",
        "Li et al., FedProx, MLSys 2020, arXiv 1812.06127",
        weight=0.01,
    ),
    "l2": DriftCorrection(
        "adds mu / 2 times the squared norm of the shared adapter to the loss",
        "Li et al., L2-SP, ICML 2018, arXiv 1802.01483",
        weight=0.1,
    ),
    "kl": DriftCorrection(
        "adds mu times the KL divergence from the base's distribution of each response token",
        "as LwF, Li and Hoiem, ECCV 2016, arXiv 1606.09282",
        weight=1.0,
    ),
    "not-true": DriftCorrection(
        "as kl, of the distributions over all tokens but the label",
        "as FedNTD, Lee et al., NeurIPS 2022, arXiv 2106.03097",
        weight=1.0,
    ),
    "rehearsal": DriftCorrection(
        "as kl, on the base's own answers to synthetic prompts",
        "as pseudo-rehearsal, Robins, Connection Science 1995; prompts as Magpie, Xu et al., ICLR 2025",
        weight=4.0,
        rehearses=True,
    ),
    "scaffold": DriftCorrection(
        "control variates correct each step towards the clients' mean gradient; plain SGD",
        "Karimireddy et al., SCAFFOLD, ICML 2020, arXiv 1910.06378, option II",
        has_control_variates=True,
        optimizer="sgd",
    ),
    "scaffold-adamw": DriftCorrection(
        "scaffold with mean AdamW steps in place of gradients, which its derivation does not cover",
        "as in OpenFedLLM, Ye et al., KDD 2024, arXiv 2402.06954",
        has_control_variates=True,
        optimizer="adamw",
    ),
}

OPTIMIZERS: dict[str, Optimizer] = {  # how the server steps towards the target: server.optimize
    "fedavg": Optimizer("take the target", "McMahan et al., AISTATS 2017, arXiv 1602.05629", reads=()),
    "fedavgm": Optimizer(
        "momentum, undamped: in steady state its steps are 1 / (1 - beta1) times those of fedavg",
        "Hsu et al. 2019, arXiv 1909.06335",
        num_moments=1,
    ),
    "fedavgm-damped": Optimizer(
        "momentum, damped: the mean change has the factor 1 - beta1",
        "as in OpenFedLLM, Ye et al., KDD 2024, arXiv 2402.06954, which does not damp round 1",
        num_moments=1,
    ),
    "fedexp": Optimizer(
        "extrapolates beyond the target, the further the more the clients' changes differ",
        "Jhunjhunwala et al., FedExP, ICLR 2023, arXiv 2301.09604",
        reads=("tau",),
        extrapolates=True,
    ),
    "fedadagrad": Optimizer(
        "second moments summed", REDDI_PAPER, 1e-3, reads=("learning_rate", "beta1", "tau"), num_moments=2
    ),
    "fedadam": Optimizer(
        "second moments averaged, without bias correction", REDDI_PAPER, 1e-3, reads=ADAPTIVE, num_moments=2
    ),
    "fedyogi": Optimizer(
        "second moments moved by the sign of their change", REDDI_PAPER, 1e-3, reads=ADAPTIVE, num_moments=2
    ),
}

PROMPTS: dict[str, Rewriter] = {  # for the teacher: distill.prompts
    "reference": Rewriter("instruction and reference answer; write your own response", SDFT_PAPER),
    "paraphrase": Rewriter("only the answer; rewrite it and keep every fact, number and name", "our own"),
    "turn": Rewriter("question, answer, then: say that again in your own words", "our own"),
}
GIVEN = "given"
"""Replaces the prompt's name if the data supply the rewriting."""


MEANT: Mapping[str, str] = {
    "fedavg": "method = fedit: server.aggregation = average and server.optimizer = fedavg are the defaults",
    "fedprox": "client.drift_correction = fedprox",
    "scaffold": "client.drift_correction = scaffold",
    "ffa-lora": "server.aggregation = ffa",
    "fedsa-lora": "server.aggregation = fedsa",
    "fedex-lora": "server.aggregation = fedex",
    "fedrot-lora": "server.aggregation = fedrot",
    "hetlora": "server.aggregation = zeropad with lora.client_ranks",
    "sdft": "method = fedsd, which trains on rewritings made by SDFT's prompt (distill.prompts)",
    "fedadam": "server.optimizer = fedadam",
    "fedyogi": "server.optimizer = fedyogi",
    "local": "method = local-only",
    "centralized": "method = centralised",
}
"""Names that users try as a method -> the equivalent setting."""


def look_up(table: Mapping[str, Row], name: str, key: str) -> Row:
    """Return the row with this name.

    Args:
        table: One of the tables above.
        name: The name given by the user.
        key: The setting with this value, for the message.

    Raises:
        UserError: The name is unknown; the message lists the known ones, nearest first.
    """
    if name in table:
        return table[name]
    if name.lower() in table:
        raise UserError(f"{key} = {name!r} is unknown; did you mean {name.lower()}?")
    if name.lower() in MEANT:
        raise UserError(f"{key} = {name!r} is unknown here; you may mean {MEANT[name.lower()]}")
    ranked = sorted(table, key=lambda known: -difflib.SequenceMatcher(None, name, known).ratio())
    raise UserError(
        f"{key} = {name!r} is unknown (a row of your own is registered first: docs/python.md); known, nearest"
        f" first: {', '.join(ranked)}"
    )
