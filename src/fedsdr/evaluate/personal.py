"""Scores of a client's personalised model, which each method defines (`methods.PERSONAL`)."""

import random
from collections.abc import Sequence

from fedsdr.client.fdlora import Fusion, search_fusion
from fedsdr.config import Eval, FDLoRA, FedDPA
from fedsdr.data.conversation import Conversation
from fedsdr.evaluate.feddpa import evaluate_weighted, private_weights
from fedsdr.evaluate.tasks import Answering, Evaluation, TestSet, answer, evaluate
from fedsdr.model.adapters import LoraModel
from fedsdr.rows import Method


def evaluate_personal(
    model: LoraModel,
    method: Method,
    tests: TestSet,
    scoring: Eval,
    training: Sequence[Conversation],
    seed: int,
    feddpa: FedDPA,
    fdlora: FDLoRA,
    answering: Answering = answer,
) -> tuple[Evaluation, Fusion | None]:
    """Score the client's personalised model.

    Args:
        model: Holds the shared adapter and the client's own. If the method fuses them, the fusion replaces
            the latter.
        method: Determines the personalised model.
        tests: The client's test examples.
        scoring: Lengths and batches.
        training: The client's raw training examples; a sample determines the weights of the adapters.
        seed: Seed of that sample.
        feddpa: Size of the sample, the largest weight, and which adapter has it.
        fdlora: Size of the sample, and the number of fusions to try.
        answering: Answers the examples if the method's weights of the adapters are fixed.

    Returns:
        The scores, and the fusion, if the method has one.
    """
    if method.personal_adapters:
        return evaluate(model, method.personal_adapters, tests, scoring, answering=answering), None
    num = (feddpa if method.personal == "weighted" else fdlora).num_examples
    examples = random.Random(seed).sample(training, min(num, len(training)))
    if method.personal == "weighted":
        weights = private_weights(model, examples, tests.raw, feddpa.max_weight, scoring.batch_size)
        if feddpa.weighs == "shared":
            weights = [1 - weight for weight in weights]
        return evaluate_weighted(model, tests, weights, scoring), None
    fusion = search_fusion(model, examples, fdlora.num_evaluations, scoring.batch_size)
    return evaluate(model, ("private",), tests, scoring), fusion
