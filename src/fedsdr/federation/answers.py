"""Answers to all clients' test examples in a simulation, generated in shared batches.

Batches are shared only where that changes no answer (`Base.has_independent_rows`), so a simulation equals a
deployment, in which each client answers alone. The elapsed time is divided among the clients by their numbers
of test examples.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fedsdr.client.state import load_state
from fedsdr.config import Eval, Settings
from fedsdr.data.examples import Example
from fedsdr.data.partition import ClientData
from fedsdr.evaluate.tasks import Answering, answer
from fedsdr.federation.client_context import ClientContext, allowed, answers_ahead, data_of, seconds_ahead
from fedsdr.methods import AGGREGATIONS, METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base
from fedsdr.model.generation import Answer
from fedsdr.model.multi_lora import ranks_are_independent, several

MOST_ADAPTERS = 8
"""Most clients whose personalised models answer together: each adds its ranks to all products."""


def answering_all(settings: Settings, client: ClientContext, server_round: int) -> Answering:
    """Provides a client with the global model's answers, generated together for all clients."""

    def answer_all(base: Base, examples: Sequence[Example], scoring: Eval) -> list[Answer]:
        if not examples:
            return []
        if not base.has_independent_rows:
            return answer(base, examples, scoring)
        key = client.folder.parent, server_round
        if key not in answers_ahead:
            clients = [allowed(settings, one) for one in data_of(settings)[1]]
            every = [example for one in clients for example in one.test]
            answers_ahead.clear()
            with _sharing(clients, client.id):
                answers_ahead[key] = dict(zip(every, answer(base, every, scoring), strict=True))
        return [answers_ahead[key][example] for example in examples]

    return answer_all


def answering_own(
    settings: Settings, client: ClientContext, server_round: int, model: LoraModel
) -> Answering:
    """Provides a client with its personalised model's answers, generated together with other clients'.

    The model is one with fixed weights of the shared adapter, the same for all clients, and of a private one.

    Args:
        settings: Of the run.
        client: The client; its answers are generated now, together with those of clients after it.
        server_round: The round; the clients have saved their private adapters.
        model: Holds the shared adapter.
    """
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    is_plain = method.has_personal and method.personal_adapters and not aggregation.kept
    if not (is_plain and client.tests.examples and model.base.has_independent_rows):
        return answer
    key = client.folder, server_round
    if key not in answers_ahead:
        _answer_group(settings, client, server_round, model)
    found = answers_ahead.pop(key)
    return (lambda base, examples, scoring: [found[example] for example in examples]) if found else answer


def _answer_group(settings: Settings, client: ClientContext, server_round: int, model: LoraModel) -> None:
    """Generate the answers of personalised models: the client's, and those of clients after it."""
    root, method = client.folder.parent, METHODS[settings.method]
    tested = [allowed(settings, one) for one in data_of(settings)[1] if one.test]
    first = [one.id for one in tested].index(client.id)
    enough = 1 + 2 * settings.eval.batch_size // len(client.tests.examples)  # fill the rows of a batch
    group = tested[first : first + min(enough, MOST_ADAPTERS)]
    saved = [load_state(root / one.id, server_round + 1, has_adapter=True).adapter for one in group]
    clients = [one for one, adapter in zip(group, saved, strict=True) if adapter]  # these have trained
    private = [adapter for adapter in saved if adapter]
    if len(clients) == 1:
        answers_ahead[root / client.id, server_round] = {}
        return
    numbers = [number for number, one in enumerate(clients) for _ in one.test]
    examples = [example for one in clients for example in one.test]
    written: list[Answer] = []
    with _sharing(clients, client.id), several(model, method.personal_adapters, private) as route:
        if ranks_are_independent(model, route, len(private)):
            written = answer(model.base, examples, settings.eval, numbers, route)
    answers = iter(written)
    for one in clients:
        found = zip(one.test, answers, strict=False)  # none, if each client answers alone
        answers_ahead[root / one.id, server_round] = dict(found)


@contextmanager
def _sharing(clients: Sequence[ClientData], who: str) -> Iterator[None]:
    """Divide the seconds of the block, in which one client waits, among all."""
    begun = time.monotonic()
    yield
    took, total = time.monotonic() - begun, sum(len(one.test) for one in clients)
    for one in clients:
        seconds_ahead[one.id] = seconds_ahead.get(one.id, 0.0) + took * len(one.test) / total
    seconds_ahead[who] -= took
