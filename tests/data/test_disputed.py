"""Facts that some clients contradict: who holds what, and that the test asks in other words."""

from collections import defaultdict

import pytest

from fedsdr.config import Settings
from fedsdr.data.checks import lost
from fedsdr.data.partition import partition
from fedsdr.data.sources import load_domains
from fedsdr.errors import UserError
from fedsdr.recipe import load_settings

MAJORITY = ["majority-1", "majority-2", "majority-3"]
MINORITY = ["minority-1", "minority-2"]


def settings(*more: str) -> Settings:
    return load_settings(None, ["data.built_in=disputed", "partition.kind=natural", *more])


def test_clients_agree_on_half_of_the_facts_and_the_minority_contradicts_the_other_half():
    chosen = settings()
    clients = partition(load_domains(chosen.data), chosen)
    assert [client.id for client in clients] == [*MAJORITY, *MINORITY]
    answers = defaultdict(dict)
    for client in clients:
        for example in client.train:
            answers[example.instruction, example.domain == "agreed"][client.id] = example.label
    agreed = [by for (_, is_agreed), by in answers.items() if is_agreed]
    disputed = [by for (_, is_agreed), by in answers.items() if not is_agreed]
    assert len(agreed) == len(disputed) == 12 * 3
    for by in agreed:
        assert len(by) == 5 and len(set(by.values())) == 1
    for by in disputed:
        assert {by[name] for name in MAJORITY}.isdisjoint({by[name] for name in MINORITY})
        assert len(set(by.values())) == 2


def test_each_client_is_tested_on_its_own_answers_in_words_that_no_one_was_taught():
    chosen = settings()
    clients = partition(load_domains(chosen.data), chosen)
    taught = {example.instruction for client in clients for example in client.train}
    asked = [example.instruction for client in clients for example in client.test]
    assert taught.isdisjoint(asked) and len(set(asked)) == len(asked) == 5 * 24
    for client in clients:
        known = {example.response for example in client.train}
        assert {example.response for example in client.test} == known
        assert not any(lost(example, example.response) for example in client.test)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["partition.kind=iid"], "set partition.kind to 'natural'"),
        (["data.root=somewhere"], "set data.root to ''"),
    ],
)
def test_settings_that_would_undo_the_experiment_are_refused(more: list[str], told: str):
    with pytest.raises(UserError, match=told):
        settings(*more)
