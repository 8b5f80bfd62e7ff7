"""The guard: every way in which a reply can be bad has its reason, and none brings the server down."""

import io
import math
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.distill.paradox import COUNTS
from fedsdr.messages import wire
from fedsdr.methods import PROMPTS
from fedsdr.rows import MessageDtype, Rewriter
from fedsdr.server.validate import (
    MAX_EXAMPLES,
    Rejected,
    check_array,
    check_metrics,
    check_prepared,
    check_reply,
    check_scores,
)

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"
SHAPES = {A: (2, 3), B: (4, 2)}
SENT = {key: np.ones(shape, np.float32) for key, shape in SHAPES.items()}
METRICS = {"round": 7, "num_examples": 5, "seconds": 1.5} | {
    f"train/shared/{name}": value
    for name, value in {
        "loss": 2.5,
        "first_loss": 3.0,
        "last_loss": 2.0,
        "num_steps": 4,
        "num_tokens": 80,
    }.items()
}


pytestmark = pytest.mark.usefixtures("flower_task")


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    values = {
        key: np.arange(math.prod(shape), dtype=np.float32).reshape(shape) for key, shape in SHAPES.items()
    }
    return values | changes


def reply(content: RecordDict | None = None, error: Error | None = None) -> Message:
    question = Message(RecordDict(), 3, "train")
    question.metadata.__dict__["_message_id"] = "question"
    return Message(content, reply_to=question) if error is None else Message(error, reply_to=question)


def training(values: dict[str, np.ndarray] | None = None, **metrics: Any) -> Message:
    """A reply with the adapter `values`, of the keys of SHAPES."""
    return sending({"values": wire.pack(arrays() if values is None else values)}, **metrics)


def sending(named: dict[str, np.ndarray], **metrics: Any) -> Message:
    """A reply with arrays of any name."""
    record = ArrayRecord({name: Array(value) for name, value in named.items()})
    return reply(RecordDict({"arrays": record, "metrics": MetricRecord({**METRICS, **metrics})}))


def check(
    message: Message,
    max_norm: float = 1e4,
    dtype: MessageDtype = "float32",
    has_control_variates: bool = False,
):
    return check_reply(message, "finance", 5, SENT, dtype, 7, max_norm, has_control_variates)


def reason(message: Message, **keys: Any) -> str:
    with pytest.raises(Rejected) as caught:
        check(message, **keys)
    return str(caught.value)


def raw(data: bytes) -> Array:
    """An array as a client may send it: what it says of itself need not be true."""
    return Array("float32", (2, 3), "numpy.ndarray", data)


def saved(value: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def test_a_good_reply_passes_with_its_values_weight_and_metrics():
    update = check(training())
    assert (update.client, update.num_examples) == ("finance", 5)
    assert list(update.arrays) == [A, B]
    for key, value in arrays().items():
        assert update.arrays[key].tobytes() == value.tobytes()
        assert update.arrays[key].shape == SHAPES[key]
    assert update.metrics == METRICS


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float):
    """One NaN would make every client's next adapter NaN."""
    spoiled = arrays()
    spoiled[B][3, 1] = bad
    assert reason(training(spoiled)) == f"{B} contains values that are not finite"


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 7), np.float32),  # as many bytes
        np.zeros((1,), np.float32),  # would be broadcast
        np.zeros((1, 14), np.float32),  # would be broadcast
        np.zeros((), np.float32),
        np.zeros((13,), np.float32),
        np.zeros((15,), np.float32),
        np.zeros((0,), np.float32),
        np.zeros((14,), np.float64),
        np.zeros((14,), np.float16),
        np.zeros((14,), np.int32),  # as many bytes
        np.zeros((14,), ">f4"),
    ],
    ids=lambda value: f"{value.dtype.str}{value.shape}",
)
def test_an_array_of_another_shape_or_type_is_refused_and_never_broadcast(value: np.ndarray):
    """2 * 3 + 4 * 2 = 14 numbers."""
    assert "values is not float32 of shape (14,)" in reason(sending({"values": value}))


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        ("float32", {}),
        ("int8", {"values": np.zeros(14, np.int8)}),
        ("float16", {"values": np.zeros(14, np.float16), "scales": np.zeros(2, np.float32)}),
        ("float32", {"values": np.zeros(14, np.float32), "private": np.zeros(14, np.float32)}),
    ],
)
def test_the_arrays_are_those_of_the_type_that_travels(dtype: MessageDtype, named: dict[str, np.ndarray]):
    """No fewer, and no more, such as the private adapter sent by mistake."""
    assert re.match("1 keys are (missing|not on the allow-list)", reason(sending(named), dtype=dtype))


@pytest.mark.parametrize("scales", [[math.nan, 1], [math.inf, 1], [1e38, 1]])
def test_scales_that_would_spoil_the_adapter_are_refused(scales: list[float]):
    named = {"values": np.full(14, 100, np.int8), "scales": np.array(scales, np.float32)}
    assert A in reason(sending(named), dtype="int8")


def test_small_types_are_read_as_changes_of_what_was_sent():
    """1 + 2 * 0.5 in A, 1 + 3 * 0.25 in B."""
    steps = np.repeat(np.array([2, 3], np.int8), [6, 8])
    update = check(sending({"values": steps, "scales": np.array([0.5, 0.25], np.float32)}), dtype="int8")
    assert update.num_bytes == 14 + 2 * 4
    assert set(update.arrays[A].ravel()) == {2.0}
    assert set(update.arrays[B].ravel()) == {1.75}


CONTROL_VARIATES = {"values": np.zeros(14, np.float32), "control_variates": np.arange(14, dtype=np.float32)}


def test_a_change_of_control_variates_passes_where_it_must_come():
    update = check(sending(CONTROL_VARIATES), has_control_variates=True)
    assert update.control_variates.tolist() == list(range(14))
    assert update.num_bytes == 2 * 14 * 4
    assert check(training()).control_variates is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "1 keys are missing, first 'control_variates'"),
        (np.zeros(13, np.float32), "control_variates is not float32 of shape (14,)"),
        (np.zeros(14, np.float16), "control_variates is not float32 of shape (14,)"),
        (np.full(14, np.nan, np.float32), f"control_variates of {A} contains values that are not finite"),
        (
            np.array([0] * 13 + [12], np.float32),
            f"control_variates of {B} has norm 12, above server.max_norm = 11",
        ),
    ],
    ids=["missing", "short", "float16", "nan", "huge"],
)
def test_control_variates_that_would_spoil_their_mean_are_refused(value: Any, says: str):
    """One NaN would steer every client's next step to NaN."""
    named = {"values": CONTROL_VARIATES["values"]} | ({} if value is None else {"control_variates": value})
    assert says in reason(sending(named), has_control_variates=True, max_norm=11)


def test_control_variates_without_such_a_correction_are_refused():
    assert reason(sending(CONTROL_VARIATES)) == "1 keys are not on the allow-list, first 'control_variates'"


@pytest.mark.parametrize("weight", [0, -1, 4, 6, 2**62, 5.0, 0.5, math.nan, math.inf, [5]])
def test_a_weight_that_is_not_what_the_client_prepared_with_is_refused(weight: Any):
    """A negative one would push the others away from the mean, a huge one would be the mean."""
    assert "num_examples" in reason(training(num_examples=weight))


def test_a_weight_may_not_be_a_truth_value():
    """Flower refuses it when the record is made; a record that was tampered with is refused here."""
    message = training()
    message.content["metrics"].__dict__["_data"]["num_examples"] = True
    assert "num_examples" in reason(message)


@pytest.mark.parametrize("server_round", [6, 8, 0])
def test_a_reply_to_another_round_is_refused(server_round: int):
    assert reason(training(round=server_round)) == f"it answers round {server_round}, expected 7"


def test_a_reply_without_round_or_weight_is_refused():
    for missing in ("round", "num_examples"):
        message = training()
        del message.content["metrics"][missing]
        assert "None" in reason(message)


@pytest.mark.parametrize(
    "key",
    ["note", "train/shared/prompt", "train/shared/loss/", "train/other/loss", "ROUND", "eval/a/score@global"],
)
def test_a_metric_that_is_not_listed_is_refused(key: str):
    assert f"metric {key!r} is not on the allow-list" in reason(training(**{key: 1.0}))


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, 2.0], [1]])
def test_a_metric_that_is_no_finite_number_is_refused(value: Any):
    assert (
        reason(training(**{"train/shared/loss": value}))
        == "metric train/shared/loss is not a finite number of at least 0"
    )


def test_metrics_are_listed_for_each_kind_of_message():
    key = "eval/finance/score@global"
    good = {"round": 1, "seconds": 1.0, key: 0.5}
    assert check_metrics(MetricRecord(good), "evaluate") == good
    for kind in ("train", "prepare"):
        with pytest.raises(Rejected, match="not on the allow-list"):
            check_metrics(MetricRecord(good), kind)
    prepared = TOLD | {"distill/omission_rate@before": 0.5, "distill/num_fallback/cut_off": 1}
    assert check_metrics(MetricRecord(prepared), "prepare") == prepared


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seconds": None}, "metric seconds is missing"),
        ({"train/shared/num_tokens": None}, "metric train/shared/num_tokens is missing"),
        ({"train/private/loss": 2.0}, "metric train/private/.* is missing"),
        ({"train/shared/num_steps": 1.5}, "not a whole number"),
        ({"train/shared/loss": 1e300}, "is above 1e"),
    ],
)
def test_what_would_break_the_report_after_the_last_round_is_dropped_at_once(change: dict, says: str):
    metrics = {key: value for key, value in (METRICS | change).items() if value is not None}
    with pytest.raises(Rejected, match=says):
        check_metrics(MetricRecord(metrics), "train")


def test_an_absurdly_large_update_is_refused_even_if_only_two_clients_take_part():
    """Went wrong elsewhere: outliers by three standard deviations, which among ten clients cannot occur.

    0, 1, ..., 7 has the norm sqrt(140) = 11.83.
    """
    assert check(training(), max_norm=11.84)
    assert reason(training(), max_norm=11.83) == f"{B} has norm 11.8, above server.max_norm = 11.8"
    huge = arrays(**{A: np.full((2, 3), 3e38, np.float32)})  # its square overflows in float32
    assert "has norm 7.35e+38" in reason(training(huge))  # sqrt(6) * 3e38


def test_an_error_reply_is_refused_with_its_reason():
    assert reason(reply(error=Error(2, "KeyError"))) == "the client failed: KeyError"


@pytest.mark.parametrize(
    "content",
    [
        {"metrics": MetricRecord(METRICS)},
        {"arrays": ArrayRecord()},
        {
            "arrays": ArrayRecord(),
            "metrics": MetricRecord(METRICS),
            "config": ConfigRecord({"text": "secret"}),
        },
        {"arrays": MetricRecord(METRICS), "metrics": MetricRecord(METRICS)},
        {"arrays": ArrayRecord(), "metrics": ConfigRecord({"round": 7})},
        {"arrays": ArrayRecord(), "metrics": ArrayRecord()},
    ],
    ids=[
        "no arrays",
        "no metrics",
        "one more",
        "arrays are metrics",
        "metrics are config",
        "metrics are arrays",
    ],
)
def test_a_reply_with_other_records_is_refused(content: dict[str, Any]):
    assert "records" in reason(reply(RecordDict(content)))


def test_a_reply_with_many_records_gives_a_short_reason_without_control_characters():
    """The reason goes to the terminal, into the log and on the page."""
    many = {f"\x1b[2J{number:06d}".ljust(90, "x"): ConfigRecord() for number in range(20_000)}
    told = reason(reply(RecordDict(many)))
    assert told.startswith("it contains 20000 records, first '\\x1b[2J000000xxx")
    assert len(told) < 200 and told.isprintable()


def test_an_array_cut_anywhere_is_refused():
    data = saved(arrays()[A])
    for size in range(len(data)):
        with pytest.raises(Rejected):
            check_array(A, raw(data[:size]), "<f4", (2, 3))
    with pytest.raises(Rejected, match="25 bytes, expected 24"):
        check_array(A, raw(data + b"\0"), "<f4", (2, 3))
    assert check_array(A, raw(data), "<f4", (2, 3)).tobytes() == arrays()[A].tobytes()


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"PK\x03\x04"])
)
def test_random_bytes_are_refused(tail: bytes, head: bytes):
    with pytest.raises(Rejected):
        check_array(A, raw(head + tail), "<f4", (2, 3))


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }",
        b"{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2, 3), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }",
        b"{'descr': '<f4', 'fortran_order': 0, 'shape': (True, True), }",
        b"{'descr': '<f4', 'shape': (2, 3), }",
        b"{[]: 1}",
        b"{1: 2, 'a': 3}",
        b"((((((((",
        b"'''",
        b"-" * 9000 + b"1",
        b"9" * 9000,
        b"__import__('os').abort()",
        b"\x00\xff",
        b"",
    ],
    ids=lambda header: header[:20],
)
def test_a_header_that_lies_is_refused_and_takes_no_memory(header: bytes):
    """A server that believes a header of 24 bytes of data may allocate terabytes, or fall over its syntax."""
    data = b"\x93NUMPY\x01\x00" + len(header + b"\n").to_bytes(2, "little") + header + b"\n" + bytes(24)
    array = raw(data)
    tracemalloc.start()
    with pytest.raises(Rejected):
        check_array(A, array, "<f4", (2, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


SCORES = {"round": 7, "seconds": 1.0, "eval/finance/num_examples@global": 6} | {
    f"eval/finance/{name}@global": value
    for name, value in {
        "score": 0.5, "num_scored": 4, "unsupported_rate": 0.5, "words": 9.0, "filler_rate": 0.0,
        "redundancy": 0.0, "cut_off_rate": 0.0, "loss": 2.0, "loss_tokens": 80,
    }.items()
}  # fmt: skip
LABELS = {"eval/finance/num_answer-0-none@global": 1, "eval/finance/num_answer-12-1@global": 3}
LABELS |= {"eval/finance/label_set@global": 65535}
MINE = {key.replace("@global", "@personalised"): value for key, value in SCORES.items() if "@" in key}


def without(*names: str) -> dict[str, float]:
    return {key: value for key, value in SCORES.items() if not any(f"/{name}@" in key for name in names)}


def test_good_scores_pass():
    bare = without("score", "loss", "loss_tokens") | {"eval/finance/num_scored@global": 0}
    for good in (SCORES, SCORES | MINE, bare, SCORES | LABELS):
        assert check_scores(reply(RecordDict({"metrics": MetricRecord(good)})), 6, 7, True, 100) == good
    nothing = {"round": 7, "seconds": 1.0}  # a client without test examples
    assert check_scores(reply(RecordDict({"metrics": MetricRecord(nothing)})), 0, 7, True, 100) == nothing


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "records"),
        ({"metrics": ArrayRecord()}, "records"),
        ({"metrics": ConfigRecord({"round": 7})}, "records"),
        ({"metrics": MetricRecord(SCORES), "answers": ConfigRecord({"a": "x"})}, "records"),
        ({"metrics": MetricRecord({**SCORES, "round": 6})}, "answers round 6"),
        ({"metrics": MetricRecord({**SCORES, "eval/finance/score@global": math.nan})}, "finite"),
        ({"metrics": MetricRecord({**SCORES, "eval/finance/score@local": 1.0})}, "allow-list"),
        ({"metrics": MetricRecord({**SCORES, "eval/finance/score@global": 1.5})}, "not between 0 and 1"),
        ({"metrics": MetricRecord(without("loss_tokens"))}, "loss and its count"),
        ({"metrics": MetricRecord({**SCORES, "eval/finance/num_scored@global": 0})}, "score and its count"),
        ({"metrics": MetricRecord(without("words"))}, "words and its count"),
        ({"metrics": MetricRecord(without("num_examples"))}, "num_examples"),
        ({"metrics": MetricRecord({**SCORES, "eval/finance/num_scored@global": 7})}, "more answers scored"),
        (
            {
                "metrics": MetricRecord(
                    {**SCORES, "eval/finance/choice_score@global": 0.5, "eval/finance/num_chosen@global": 7}
                )
            },
            "more answers scored",
        ),
        (
            {"metrics": MetricRecord({**SCORES, "eval/finance/choice_score@global": 0.5})},
            "choice_score and its count",
        ),
        (
            {"metrics": MetricRecord({**SCORES, **LABELS, "eval/finance/num_answer-1-1@global": 1})},
            "more labels than answers",
        ),
        (
            {"metrics": MetricRecord({**SCORES, "eval/finance/num_answer-1-1@global": 1})},
            "label_set must come together",
        ),
        (
            {"metrics": MetricRecord({**SCORES, **LABELS, "eval/finance/label_set@global": 65536})},
            "label_set is not from 0 to 65535",
        ),
        (
            {"metrics": MetricRecord({**SCORES, **LABELS, "eval/finance/num_answer-1-1@global": 0.5})},
            "not a whole number",
        ),
        (
            {"metrics": MetricRecord({**SCORES, "eval/finance/num_answer-positive-1@global": 1})},
            "allow-list",
        ),
        (
            {"metrics": MetricRecord({**SCORES, "eval/finance/num_examples@global": 10**11})},
            "prepare reported 6",
        ),
        (
            {"metrics": MetricRecord({k.replace("finance", "mean"): v for k, v in SCORES.items()})},
            "not a valid domain name",
        ),
        ({"metrics": MetricRecord({"round": 7, "seconds": 1.0, **MINE})}, "the global model was scored on 0"),
        ({"metrics": MetricRecord({**SCORES, "seconds": -1.0})}, "at least 0"),
    ],
    ids=[
        "empty",
        "arrays",
        "config",
        "one more",
        "other round",
        "nan",
        "other model",
        "too large a share",
        "mean without its count",
        "mean over nothing",
        "mean missing",
        "count missing",
        "more scored than given",
        "more chosen than given",
        "choice without its count",
        "more labels than answers",
        "labels without their set",
        "a set beyond its hash",
        "half a label",
        "a label in words",
        "absurd count",
        "a domain called mean",
        "personalised alone",
        "negative",
    ],
)
def test_bad_scores_are_refused_with_a_reason(content: dict[str, Any], says: str):
    with pytest.raises(Rejected, match=says):
        check_scores(reply(RecordDict(content)), 6, 7, True, 100)


TOLD = {"num_train": 4, "num_test": 0, "seconds": 2.0}
PREPARED = TOLD | {f"distill/{name}@{when}": 1 for name in COUNTS for when in ("before", "after")}
PREPARED |= {"distill/num_examples@after": 4, "distill/num_examples@before": 3}


def prepared(client: Any, metrics: dict[str, float]) -> Message:
    return reply(
        RecordDict({"client": ConfigRecord({"id": client, "model": "m"}), "metrics": MetricRecord(metrics)})
    )


def test_a_client_with_another_base_model_is_not_let_in():
    """Its adapter would be averaged into nonsense, and nobody would know why."""
    with pytest.raises(Rejected, match="client bank has another base model than the server"):
        check_prepared(prepared("bank", PREPARED), "other", 100)


def test_a_client_is_known_by_its_id_and_complete_counts():
    assert check_prepared(prepared("bank-7", PREPARED), "m", 100) == ("bank-7", PREPARED)
    assert check_prepared(prepared("bank-7", TOLD), "m", 100) == ("bank-7", TOLD)


@pytest.mark.parametrize(
    ("client", "metrics", "says"),
    [
        ("../../etc", PREPARED, "not a valid name"),
        (7, PREPARED, "not a valid name"),
        ("bank", TOLD | {"distill/words@before": 3.0}, "incomplete"),
        ("bank", PREPARED | {"distill/num_examples@after": 5}, "it has 4"),
        ("bank", PREPARED | {"distill/num_examples@before": 5}, "it has 4"),
        ("bank", PREPARED | {"distill/num_checkable@after": 5}, "more checkable"),
        ("bank", {"num_test": 4, "seconds": 1.0}, "num_train = None is not between 1 and"),
        ("bank", TOLD | {"num_train": 0}, "num_train = 0 is not between 1 and"),
        ("bank", TOLD | {"num_train": MAX_EXAMPLES + 1}, "num_train"),
        ("bank", TOLD | {"num_test": 0.5}, "num_test"),
        ("bank", {**PREPARED, "distill/omission_rate@after": 2.0}, "not between 0 and 1"),
        ("bank", {**PREPARED, "secret": 1}, "allow-list"),
    ],
)
def test_a_bad_introduction_is_refused(client: Any, metrics: dict[str, float], says: str):
    with pytest.raises(Rejected, match=says):
        check_prepared(prepared(client, metrics), "m", 100)


@pytest.mark.parametrize("key", ["distill/num_fallback/Tom_has_fever", "distill/num_prompt/Tom_has_fever"])
def test_no_text_leaves_in_the_name_of_a_count(key: str):
    with pytest.raises(Rejected, match="allow-list"):
        check_prepared(prepared("bank", {**PREPARED, key: 1}), "m", 100)


def test_the_rewritings_of_a_rewriter_that_was_registered_later_are_counted(monkeypatch: pytest.MonkeyPatch):
    mine = PREPARED | {"distill/num_prompt/brief+c": 3, "distill-test/num_prompt/given": 1}
    with pytest.raises(Rejected, match="allow-list"):
        check_prepared(prepared("bank", mine), "m", 100)
    monkeypatch.setitem(PROMPTS, "brief+c", Rewriter("asks for few words", "ours"))
    assert check_prepared(prepared("bank", mine), "m", 100) == ("bank", mine)
    with pytest.raises(Rejected, match="allow-list"):
        check_metrics(MetricRecord({"distill/num_prompt/brief+c": 3, "seconds": 1.0}), "train")


def test_without_a_global_model_only_personalised_scores_pass_and_there_may_be_none():
    def checked(scores: dict[str, float]) -> dict[str, float]:
        return check_scores(reply(RecordDict({"metrics": MetricRecord(scores)})), 6, 7, False, 100)

    nothing = {"round": 7, "seconds": 1.0}
    mine = nothing | MINE
    assert checked(mine) == mine
    assert checked(nothing) == nothing  # of a client that was never drawn
    with pytest.raises(Rejected, match="there is no global model"):
        checked(SCORES | MINE)
    with pytest.raises(Rejected, match="the personalised model was scored on 5 examples"):
        checked({key: 5 if "num_examples" in key else value for key, value in mine.items()})


def test_twenty_thousand_invented_domains_make_no_page():
    """They made one of 36 MB. One example each, with all that must come with a score."""
    names = [key.partition("@")[0].rpartition("/")[2] for key in SCORES if "@" in key]
    for num, is_good in ((100, True), (101, False), (20_000, False)):
        found: dict[str, float] = {"round": 7, "seconds": 1.0}
        for name in names:
            value = SCORES[f"eval/finance/{name}@global"]
            value = 1 if name in ("num_examples", "num_scored") else value
            found |= {f"eval/invented{n}/{name}@global": value for n in range(num)}
        message = reply(RecordDict({"metrics": MetricRecord(found)}))
        if is_good:
            assert check_scores(message, num, 7, True, 100) == found
        else:
            with pytest.raises(Rejected, match=rf"names {num} domains, above server\.max_domains = 100"):
                check_scores(message, num, 7, True, 100)


def test_domains_invented_for_counts_by_label_are_counted_too():
    invented = {f"distill/by-label/d{n}/num_examples-0": 1 for n in range(101)}
    with pytest.raises(Rejected, match=r"names 101 domains, above server\.max_domains = 100"):
        check_prepared(prepared("bank", PREPARED | invented), "m", 100)
