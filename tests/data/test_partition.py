"""Every example is at exactly one client, and each kind of partition keeps its promise."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.config import Settings
from fedsdr.data.examples import Example
from fedsdr.data.partition import ClientData, partition
from fedsdr.data.readers import Record
from fedsdr.data.sources import Domain
from fedsdr.errors import UserError
from fedsdr.recipe import check_settings

RANDOM_KINDS = ["iid", "dirichlet", "quantity", "pathological"]


def make_domains(sizes: dict[str, tuple[int, int]], num_labels: int = 0) -> dict[str, Domain]:
    """Domains of the given numbers of train and test examples; each example has its own instruction."""

    def records(name: str, part: str, count: int) -> list[Record]:
        label = [f"label{n % num_labels}" if num_labels else "" for n in range(count)]
        return [
            Record(Example(f"{name} {part} {n}", "x", name, label=label[n]), client=f"ward{n % 4}")
            for n in range(count)
        ]

    return {n: Domain(records(n, "train", a), records(n, "test", b)) for n, (a, b) in sizes.items()}


USED = {
    "by": ("dirichlet", "pathological"),
    "alpha": ("dirichlet", "quantity"),
    "classes_per_client": ("pathological",),
}
"""Key -> kinds that use it; under others it is refused."""


def used(kind: str = "domain", **keys) -> dict:
    """The keys of [partition] that this kind uses."""
    return {"kind": kind} | {key: value for key, value in keys.items() if kind in USED.get(key, (kind,))}


def choose(seed: int = 0, **keys) -> Settings:
    return check_settings({"data": {"seed": seed}, "partition": used(**keys)}, "test")


def instructions(clients: list[ClientData], part: str) -> list[str]:
    return sorted(example.instruction for client in clients for example in getattr(client, part))


FIVE = make_domains(dict.fromkeys(("code", "finance", "general", "math", "medicine"), (60, 15)))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["domain", "natural", *RANDOM_KINDS]),
    by=st.sampled_from(["domain", "label"]),
    num_clients=st.integers(3, 9),
    seed=st.integers(0, 2**32),
    alpha=st.sampled_from([0.5, 5.0, 1e6]),
    sizes=st.lists(st.tuples(st.integers(40, 80), st.integers(1, 20)), min_size=1, max_size=3),
)
def test_every_example_is_at_exactly_one_client(kind, by, num_clients, seed, alpha, sizes):
    domains = make_domains({f"d{i}": size for i, size in enumerate(sizes)}, num_labels=3)
    keys = {"kind": kind, "by": by, "alpha": alpha, "classes_per_client": 3}
    keys["num_clients"] = 0 if kind == "natural" else num_clients
    clients = partition(domains, choose(seed, **keys))
    for part in ("train", "test"):
        everything = [r.example.instruction for d in domains.values() for r in getattr(d, part)]
        assert instructions(clients, part) == sorted(everything)
    assert [client.id for client in clients] == sorted({client.id for client in clients})
    assert min(len(client.train) for client in clients) >= 1
    assert len(clients) == (4 if kind == "natural" else num_clients)


@pytest.mark.parametrize("kind", ["domain", *RANDOM_KINDS])
def test_the_seed_decides(kind):
    keys = {"kind": kind, "num_clients": 10, "alpha": 1.0}
    first, again, other = (partition(FIVE, choose(seed, **keys)) for seed in (0, 0, 1))
    assert first == again
    assert [client.train for client in first] != [client.train for client in other]
    assert [client.test for client in first] != [client.test for client in other]


def test_one_client_per_domain_by_default():
    clients = partition(FIVE, choose())
    assert [client.id for client in clients] == sorted(FIVE)
    for client in clients:
        assert client.train == [record.example for record in FIVE[client.id].train]
        assert client.test == [record.example for record in FIVE[client.id].test]


def test_more_clients_than_domains_split_domains_evenly():
    clients = partition(FIVE, choose(num_clients=7))
    assert [client.id for client in clients] == [
        "code-0", "code-1", "finance-0", "finance-1", "general", "math", "medicine"
    ]  # fmt: skip
    halves = [client for client in clients if client.id.startswith("code")]
    assert [len(client.train) for client in halves] == [30, 30]
    assert sorted(len(client.test) for client in halves) == [7, 8]


def test_two_clients_of_one_id_are_an_error():
    """The two parts of "fin" are fin-0 and fin-1; the other domain would take the place of the first."""
    domains = make_domains({"fin": (4, 2), "fin-0": (4, 2)})
    with pytest.raises(UserError, match="two clients would be called 'fin-0'"):
        partition(domains, choose(num_clients=3))


def test_fewer_clients_than_domains_is_an_error():
    with pytest.raises(UserError, match="num_clients = 3 is below the number of domains, 5"):
        partition(FIVE, choose(num_clients=3))


def test_iid_clients_are_of_one_size_and_hold_every_domain():
    clients = partition(FIVE, choose(kind="iid", num_clients=7))
    assert {len(client.train) for client in clients} <= {300 // 7, 300 // 7 + 1}
    assert all({example.domain for example in client.train} == set(FIVE) for client in clients)


def test_smaller_alpha_is_more_uneven():
    def largest_share(alpha: float) -> float:
        """Mean over clients of the share of its largest domain."""
        clients = partition(FIVE, choose(kind="dirichlet", num_clients=5, alpha=alpha))
        return sum(max(Counter(e.domain for e in c.train).values()) / len(c.train) for c in clients) / 5

    assert largest_share(1e6) < 0.25  # a fifth of five domains, but for rounding
    assert largest_share(0.01) > 3 * largest_share(1e6)


def test_dirichlet_survives_a_vanishing_alpha():
    clients = partition(FIVE, choose(kind="dirichlet", num_clients=5, alpha=1e-6))
    assert sorted(len(client.train) for client in clients) == [60] * 5


def test_dirichlet_that_cannot_hold_says_what_to_change():
    with pytest.raises(UserError, match=r"1000 draws.*num_clients or min_examples, a larger partition.alpha"):
        partition(FIVE, choose(kind="dirichlet", num_clients=20, alpha=1e-3))


def test_min_examples_hold():
    for kind in ("dirichlet", "quantity"):
        clients = partition(FIVE, choose(kind=kind, num_clients=5, alpha=0.5, min_examples=15))
        assert min(len(client.train) for client in clients) >= 15
    with pytest.raises(UserError, match="min_examples = 61"):
        partition(FIVE, choose(min_examples=61))


def test_quantity_makes_sizes_uneven_and_not_the_mix():
    clients = partition(FIVE, choose(kind="quantity", num_clients=4, alpha=0.5))
    sizes = [len(client.train) for client in clients]
    assert max(sizes) > 2 * min(sizes)
    largest = max(clients, key=lambda client: len(client.train))
    assert {example.domain for example in largest.train} == set(FIVE)


@pytest.mark.parametrize("by", ["domain", "label"])
def test_pathological_clients_hold_no_more_classes_than_asked(by):
    domains = make_domains({"a": (90, 30), "b": (200, 30), "c": (30, 30)}, num_labels=2)
    clients = partition(domains, choose(kind="pathological", num_clients=8, by=by, classes_per_client=2))
    for client in clients:
        held = {(e.domain, e.label if by == "label" else "") for e in client.train}
        assert len(held) <= 2
        assert {(e.domain, e.label if by == "label" else "") for e in client.test} <= held


def test_pathological_must_hold_all_classes():
    with pytest.raises(UserError, match="cannot hold 5 classes"):
        partition(FIVE, choose(kind="pathological", num_clients=2, classes_per_client=2))


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_test_examples_follow_the_mix_of_the_training_examples(kind):
    clients = partition(FIVE, choose(kind=kind, num_clients=5, alpha=0.5))
    for client in clients:
        train, test = (Counter(e.domain for e in part) for part in (client.train, client.test))
        for domain in FIVE:
            # 15 test examples for 60 training examples, and rounding moves less than one.
            assert abs(test[domain] - train[domain] * 15 / 60) < 1


def test_natural_follows_the_ids_of_train_and_test():
    clients = partition(FIVE, choose(kind="natural"))
    assert [client.id for client in clients] == ["ward0", "ward1", "ward2", "ward3"]
    for client in clients:
        for example in client.train + client.test:
            assert f"ward{int(example.instruction.split()[-1]) % 4}" == client.id


def test_natural_needs_ids_that_can_name_a_folder():
    nameless = {"d": Domain([Record(Example("a", "b", "d"))], [])}
    with pytest.raises(UserError, match="names no client under 'client'"):
        partition(nameless, choose(kind="natural"))
    hostile = {"d": Domain([Record(Example("a", "b", "d"), "../../etc")], [])}
    with pytest.raises(UserError, match="cannot name a folder"):
        partition(hostile, choose(kind="natural"))
    with pytest.raises(UserError, match="num_clients = 3, but the data names 4"):
        partition(FIVE, choose(kind="natural", num_clients=3))


def test_settings_that_are_missing_are_named():
    with pytest.raises(UserError, match=r"'iid' needs partition.num_clients"):
        partition(FIVE, choose(kind="iid"))
    with pytest.raises(UserError, match="no example has a label"):
        partition(FIVE, choose(kind="dirichlet", by="label", num_clients=2))


VALIDATED = {"data": {"validation": 0.1}}


@pytest.mark.parametrize("kind", ["domain", *RANDOM_KINDS])
def test_validation_examples_are_a_tenth_that_nobody_trains_on_and_no_test_example(kind: str):
    keys = {"partition": used(kind, num_clients=5, classes_per_client=3), **VALIDATED}
    tested = partition(FIVE, check_settings(keys, "test"))
    validated = partition(FIVE, check_settings({**keys, "eval": {"split": "validation"}}, "test"))
    train = instructions(tested, "train")
    assert train == instructions(validated, "train")
    held_out = instructions(validated, "test")
    assert len(held_out) == 5 * 6
    assert sorted(train + held_out) == sorted(r.example.instruction for d in FIVE.values() for r in d.train)
    assert instructions(tested, "test") == sorted(
        r.example.instruction for d in FIVE.values() for r in d.test
    )


def test_pooling_keeps_out_the_same_examples():
    """Else the pooled method would have its settings chosen on what the others train on."""
    keys = {**VALIDATED, "eval": {"split": "validation"}}
    pooled = partition(FIVE, check_settings({**keys, "method": "centralised"}, "test"))
    assert instructions(pooled, "test") == instructions(partition(FIVE, check_settings(keys, "test")), "test")


def test_a_conversation_and_equal_prompts_are_either_validated_on_or_trained_on():
    """Training on a later turn, whose prompt has the earlier answer, would make validation too optimistic."""
    first = [Example(f"question {n}", f"answer {n}", "chat") for n in range(20)]
    later = [Example("go on", "more", "chat", history=((one.instruction, one.response),)) for one in first]
    again = [Example(f" Question  {n}", "said otherwise", "chat") for n in range(20)]
    chat = {"chat": Domain([Record(one, "") for one in (*first, *later, *again)], [Record(first[0], "")])}
    keys = {"partition": {"kind": "iid", "num_clients": 2}, **VALIDATED, "eval": {"split": "validation"}}
    clients = partition(chat, check_settings(keys, "test"))

    def openings(part: str) -> set[str]:
        examples = [example for client in clients for example in getattr(client, part)]
        opened = [one.history[0][0] if one.history else one.instruction for one in examples]
        return {text.split()[-1] for text in opened}

    held_out = openings("test")
    assert len(held_out) == 2 and openings("train") == {str(n) for n in range(20)} - held_out
    assert sum(len(client.test) for client in clients) == 2 * 3


def test_a_validation_share_that_leaves_nothing_is_refused():
    tiny = make_domains({"code": (1, 1)})
    with pytest.raises(
        UserError, match=r"data.validation = 0.1 leaves domain 'code' no examples to train on"
    ):
        partition(tiny, check_settings(VALIDATED, "test"))
