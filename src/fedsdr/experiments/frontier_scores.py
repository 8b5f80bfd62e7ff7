"""Costs and losses of a run's models at several scales and rounds, per example and without texts.

The global model at scale lambda is W0 + lambda dW, with dW the run's change of W0. A client's personalised
model is scaled in the same way. It is scored on the client's own examples and, with K clients, on every K-th
prompt of the cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from fedsdr.analysis.cost import LONGEST_ANSWER, Scaled, divergences, drift_prompts
from fedsdr.client.state import load_state
from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation, encode
from fedsdr.data.examples import Example
from fedsdr.distill.rehearsal import base_answers
from fedsdr.errors import UserError
from fedsdr.experiments.frontier import CONTROLS
from fedsdr.experiments.measured_run import MeasuredRun
from fedsdr.federation.client_context import data_of
from fedsdr.messages.wire import Arrays
from fedsdr.methods import AGGREGATIONS, METHODS
from fedsdr.model.adapters import LoraModel, Values
from fedsdr.model.loss import mean_losses
from fedsdr.rows import Adapter, has_global
from fedsdr.run_folder import RunFolder
from fedsdr.server.checkpoint import load_round
from fedsdr.storage import Event

Texts = dict[str, dict[str, list[Conversation]]]
"""Part, "test" or "validation" -> domain -> conversations."""
ByClient = dict[str, dict[str, list[tuple[int, Conversation]]]]
"""Client -> domain -> conversations, each with its index in the domain."""
T = TypeVar("T")
DIGITS = 6
"""Decimals of a value per example, in nats."""


def frontier_scores(
    run: MeasuredRun,
    scales: Mapping[int, Sequence[float]],
    tests: Mapping[str, Sequence[Example]] | None = None,
    answers: Sequence[Conversation] | None = None,
) -> list[Event]:
    """Score the base model, and the run's models at the scales of each round.

    Clients save only their last adapters, so personalised models exist for the last round only. A control is
    also scored on validation examples, on which its points are selected.

    Args:
        run: The run.
        scales: Round -> scales lambda of its models.
        tests: Client -> test examples; None: the run's own.
        answers: Prompts of the cost with the base's answers; None: answers to `drift_prompts`.

    Returns:
        Records with model ("base", "global" or "personalised"), round, scale, "test" (for a control
        also "validation"): domain -> mean loss per response token of each example, in the domain's order,
        and "kl": mean KL(base || model) per token of each answer.

    Raises:
        UserError: A control has no validation examples, or the run has no scalable model.
    """
    settings, model, method = run.settings, run.model, METHODS[run.settings.method]
    is_global = has_global(method, AGGREGATIONS[settings.server.aggregation])
    has_personal = method.has_private and method.personal == "sum"
    if not is_global and not has_personal:
        raise UserError(
            f"method = {settings.method}, server.aggregation = {settings.server.aggregation}: no model is the"
            " base plus a sum of adapters, the only kind that can be scaled"
        )
    is_control = settings.method in CONTROLS.values()
    if is_control and not settings.data.validation:
        raise UserError("the control's scale is chosen on validation examples: run with data.validation=0.1")
    size = settings.eval.batch_size
    order = _order(settings) if is_control or not tests else {}
    parts = {"test": _placed(model, settings, tests or _held(settings, "test"), {} if tests else order)}
    if is_control:
        parts["validation"] = _placed(model, settings, _held(settings, "validation"), order)
    pooled: Texts = {part: _pooled(by_client) for part, by_client in parts.items()}
    if answers is None:
        answers = base_answers(model, drift_prompts(), size, LONGEST_ANSWER)
    found: list[Event] = [
        {"model": "base", "round": 0, "scale": 0.0, **_losses(model, Scaled({}), pooled, size)}
    ]
    for number, some in scales.items() if is_global else ():
        shared, residual = load_round(RunFolder(run.folder), number, settings.adapter.rank)
        models = [Scaled({"shared": shared}, residual, scale) for scale in some]
        for one, kl in zip(models, divergences(model, answers, models, size), strict=True):
            place = {"model": "global", "round": number, "scale": one.scale}
            found.append({**place, **_losses(model, one, pooled, size), "kl": _short(kl)})
    last = scales.get(settings.server.num_rounds, ())
    return found + (list(_personalised(run, model, parts, answers, last)) if has_personal else [])


def one_word(settings: Settings) -> list[str]:
    """Domains in which every test response is one word, such as a label."""
    by_domain: dict[str, list[int]] = {}
    for client in data_of(settings)[1]:
        for example in client.test:
            by_domain.setdefault(example.domain, []).append(len(example.response.split()))
    return [domain for domain, words in sorted(by_domain.items()) if max(words) == 1]


def _personalised(
    run: MeasuredRun,
    model: LoraModel,
    parts: Mapping[str, ByClient],
    answers: Sequence[Conversation],
    scales: Sequence[float],
) -> Iterator[Event]:
    settings, last, clients = run.settings, run.settings.server.num_rounds, list(parts["test"])
    shared: Arrays = {}
    residual: Arrays = {}
    if METHODS[settings.method].shares:
        shared, residual = load_round(RunFolder(run.folder), last, settings.adapter.rank)
    for scale in scales:
        of_client: list[tuple[Event, list[float]]] = []
        for number, client in enumerate(clients):
            state = load_state(RunFolder(run.folder).client(client).path, last + 1, True)
            own, kept = state.adapter, state.kept(AGGREGATIONS[settings.server.aggregation])
            if own is None:
                raise UserError(f"client {client} was never sampled, so it has no model of its own")
            adapters: dict[Adapter, Mapping[str, Values]] = {"private": own}
            one = Scaled(adapters | ({"shared": shared | kept} if shared else {}), residual, scale)
            texts = {part: _texts(by_client[client]) for part, by_client in parts.items()}
            (kl,) = divergences(model, answers[number :: len(clients)], [one], settings.eval.batch_size)
            of_client.append((_losses(model, one, texts, settings.eval.batch_size), kl))
        yield {
            **{"model": "personalised", "round": last, "scale": scale},
            **{part: _joined(by_client, [losses[part] for losses, _ in of_client])
               for part, by_client in parts.items()},
            "kl": _short([value for _, kl in of_client for value in kl]),
        }  # fmt: skip


def _held(settings: Settings, part: Literal["test", "validation"]) -> dict[str, Sequence[Example]]:
    """Client -> its examples of this part."""
    scoring = settings.eval.model_copy(update={"split": part})
    return {client.id: client.test for client in data_of(settings.model_copy(update={"eval": scoring}))[1]}


def _order(settings: Settings) -> dict[Example, int]:
    """Indices of all examples, independent of the partition."""
    records = [r for domain in data_of(settings)[0].values() for r in (*domain.train, *domain.test)]
    return {record.example: place for place, record in enumerate(records)}


def _placed(
    model: LoraModel,
    settings: Settings,
    examples: Mapping[str, Sequence[Example]],
    order: Mapping[Example, int],
) -> ByClient:
    """The examples with their true responses, in the given order or that of the client."""
    found: ByClient = {client: {} for client in examples}
    for client, some in examples.items():
        for number, example in enumerate(some):
            text = encode(model.base.tokenizer, example, example.response, settings.model.max_length)
            place = order[example] if order else number
            found[client].setdefault(example.domain, []).append((place, text))
    return found


def _texts(by_domain: Mapping[str, Sequence[tuple[int, Conversation]]]) -> dict[str, list[Conversation]]:
    return {domain: [text for _, text in some] for domain, some in by_domain.items()}


def _pooled(by_client: ByClient) -> dict[str, list[Conversation]]:
    """Examples of all clients by domain, in the domain's order."""
    return _joined(by_client, [_texts(by_domain) for by_domain in by_client.values()])


def _losses(model: LoraModel, one: Scaled, texts: Texts, batch_size: int) -> Event:
    base = model.base
    with one.inference(model):
        return {
            part: {name: _short(mean_losses(base, some, batch_size)) for name, some in by_domain.items()}
            for part, by_domain in texts.items()
        }


def _joined(by_client: ByClient, values: Sequence[Mapping[str, Sequence[T]]]) -> dict[str, list[T]]:
    """Values of all clients' examples by domain, in the domain's order."""
    found: dict[str, list[tuple[int, T]]] = {}
    for texts, own in zip(by_client.values(), values, strict=True):
        for domain, some in own.items():
            places = [place for place, _ in texts[domain]]
            found.setdefault(domain, []).extend(zip(places, some, strict=True))
    return {
        domain: [value for _, value in sorted(found[domain], key=lambda pair: pair[0])]
        for domain in sorted(found)
    }


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
