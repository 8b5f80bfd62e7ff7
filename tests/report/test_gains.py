"""Did it help? Differences to the base with intervals, the sentence at the head, and sample answers."""

import math
import random
import re

import pytest

from fedsdr.report.gains import did_it_help, gain_records, gain_sheet, read_answers, sample_blocks, sign_of
from fedsdr.report.page import write_report
from fedsdr.run_folder import RunFolder
from fedsdr.stats import difference_interval, phi
from fedsdr.storage import rewrite_lines


def row(score: float, num: int, loss: float) -> dict[str, float]:
    return {"score": score, "num_scored": num, "loss": loss}


def scores(by_domain: dict[str, tuple[float, int, float]]) -> dict[str, dict[str, float]]:
    rows = {domain: row(*numbers) for domain, numbers in by_domain.items()}
    parts = list(rows.values())
    mean = {name: sum(part[name] for part in parts) / len(parts) for name in ("score", "loss")}
    return rows | {"mean": mean | {"num_scored": sum(part["num_scored"] for part in parts)}}


def answer(domain: str, prompt: str, right: bool | None, text: str = "x") -> dict:
    return {"domain": domain, "instruction": prompt, "input": "", "output": "truth", "answer": text,
            "right": right}  # fmt: skip


def test_the_sentence_names_the_gain_whether_it_is_significant_the_losses_and_the_fallbacks():
    base = {"global": scores({"math": (0.10, 40, 2.0), "code": (0.10, 40, 2.42)})}
    final = {"global": scores({"math": (0.15, 40, 0.6), "code": (0.05, 40, 0.78)}),
             "personalised": scores({"math": (0.9, 40, 0.5), "code": (0.8, 40, 0.5)})}  # fmt: skip
    events = [{"distill/num_examples@after": 58, "distill/num_fallback/cut_off": 5,
               "distill/num_fallback/not_chosen": 10}]  # fmt: skip
    assert did_it_help(gain_records(base, final, {}), events) == [
        "The global model's share of right answers is equal to the base's (80 answers: not significant"
        " over test examples, of one seed); loss goes from 2.210 to 0.690.",
        "The personalised models' share of right answers is 0.75 higher than the base's (80 answers:"
        " significant over test examples, of one seed); loss goes from 2.210 to 0.500.",
        "5 of 48 rewritings fell back.",
    ]


def test_nothing_is_said_of_a_model_without_a_mean_or_where_nothing_was_evaluated():
    base = {"global": scores({"math": (0.1, 40, 2.0)})}
    part = {"personalised": {"math": row(0.5, 40, 1.0)}}  # a client was never sampled
    records = gain_records(base, part, {})
    assert did_it_help(records, []) == []
    assert gain_sheet(records).rows[0][0] == "math"
    assert did_it_help(gain_records({}, {}, {}), [{"distill/num_fallback/cut_off": 5}]) == []


def test_a_domain_without_ground_truth_has_a_loss_and_no_share():
    base = {"global": {"chat": {"num_scored": 0, "loss": 2.0}, "mean": {"num_scored": 0, "loss": 2.0}}}
    final = {"global": {"chat": {"num_scored": 0, "loss": 1.5}, "mean": {"num_scored": 0, "loss": 1.5}}}
    records = gain_records(base, final, {})
    assert {record["metric"] for record in records} == {"loss"}
    assert gain_sheet(records).rows == (("chat", "-0.500"), ("mean", "-0.500"))
    assert did_it_help(records, []) == ["The global model's loss goes from 2.000 to 1.500."]


def test_answers_to_the_same_prompts_narrow_the_interval():
    before = [answer("math", f"q{number}", number < 20) for number in range(40)]
    after = [answer("math", f"q{number}", number < 28) for number in range(40)]
    base, final = ({"global": scores({"math": (share, 40, 1.0)})} for share in (0.5, 0.7))
    alone = gain_records(base, final, {})[0]
    paired = gain_records(base, final, {"base": before, "global": after})[0]
    assert alone["low"] < 0 < alone["high"]
    assert 0 < paired["low"] < 0.2 < paired["high"] < alone["high"]


def test_losses_of_the_same_examples_give_an_interval_and_others_none():
    """Each example's loss falls by 0.5 a token, give or take 0.1: far narrower than the examples' spread."""
    draw = random.Random(1)
    tokens = [draw.randint(5, 40) for _ in range(60)]
    old = [number * draw.uniform(1, 4) for number in tokens]
    new = [nats - number * draw.uniform(0.4, 0.6) for nats, number in zip(old, tokens, strict=True)]
    before, after = (
        [
            answer("chat", f"q{at}", None) | {"nats": nats, "num_tokens": number}
            for at, (nats, number) in enumerate(zip(side, tokens, strict=True))
        ]
        for side in (old, new)
    )
    base, final = (
        {"global": {name: {"num_scored": 0, "loss": sum(side) / sum(tokens)} for name in ("chat", "mean")}}
        for side in (old, new)
    )
    answers = {"base": before, "global": after}
    of_domain, of_mean = gain_records(base, final, answers)
    assert -0.56 < of_domain["low"] < of_domain["difference"] < of_domain["high"] < -0.44
    assert (of_mean["low"], of_mean["high"]) == pytest.approx((of_domain["low"], of_domain["high"]))
    assert gain_sheet([of_domain]).rows[0][1].startswith("✓ -0.")
    (sentence,) = did_it_help([of_mean], [])
    assert re.search(
        r"loss goes from \d\.\d{3} to \d\.\d{3} \(by -0\.\d{3} \[-0\.\d{3}, -0\.\d{3}\]\)", sentence
    )
    # Some of the clients' answers are elsewhere: those at hand have another mean.
    few = {model: records[:40] for model, records in answers.items()}
    assert {record["low"] for record in gain_records(base, final, few)} == {None}


def test_phi_is_the_correlation_lessened_for_small_numbers():
    pairs = [(True, True)] * 30 + [(True, False)] * 10 + [(False, True)] * 5 + [(False, False)] * 15
    excess = 30 * 15 - 10 * 5
    assert phi(pairs) == pytest.approx((excess - 30) / math.sqrt(40 * 20 * 35 * 25))
    turned = [(one, not other) for one, other in pairs]
    assert phi(turned) == pytest.approx(-excess / math.sqrt(40 * 20 * 35 * 25))
    assert phi([(True, True)] * 5 + [(True, False)]) == 0.0


def test_the_paired_interval_holds_the_true_difference_about_as_often_as_it_says():
    """p = 0.5, q = 0.35, 60 prompts, strongly correlated: q is right only where p is, but for one in ten."""
    draw, held = random.Random(0), 0
    for _ in range(1000):
        firsts = [draw.random() < 0.5 for _ in range(60)]
        pairs = [(one, draw.random() < (0.6 if one else 0.1)) for one in firsts]
        p, q = (sum(side) / 60 for side in zip(*pairs, strict=True))
        low, high = difference_interval(p, 60, q, 60, phi(pairs))
        held += low <= 0.5 - 0.35 <= high
    assert 0.93 <= held / 1000 <= 0.98


def test_signs_of_losses_are_turned():
    assert [sign_of(0.1, 0.2), sign_of(-0.2, -0.1), sign_of(-0.1, 0.2), sign_of(None, None)] == [
        "✓", "✗", "?", "",
    ]  # fmt: skip
    assert [sign_of(0.1, 0.2, True), sign_of(-0.2, -0.1, True)] == ["✗", "✓"]


def test_the_page_shows_answers_of_all_models_next_to_the_truth(make_run):
    folder, settings = make_run()
    run = RunFolder(folder)
    for client in ("math", "code"):
        for number, model in ((0, "global"), (4, "global"), (4, "personalised")):
            texts = [
                answer(client, f"{client} question {i}", i == 0, f"{model}{number} {i}") for i in range(4)
            ]
            rewrite_lines(run.client(client).answers(number, model), texts)
    rewrite_lines(run.client("late").answers(0, "global"), [answer("late", "never sampled", None)])
    answers = read_answers(run, 4)
    assert {model: len(records) for model, records in answers.items()} == dict.fromkeys(
        ("base", "global", "personalised"), 8
    )
    (block,) = sample_blocks(answers)
    assert [(one.domain, one.instruction) for one in block.examples] == [
        (domain, f"{domain} question {i}") for domain in ("code", "math") for i in range(2)
    ]
    assert [(text.of, text.text, text.right) for text in block.examples[0].texts] == [
        ("base", "global0 0", True), ("global", "global4 0", True), ("personalised", "personalised4 0", True),
        ("true response", "truth", None),
    ]  # fmt: skip
    page = write_report(folder, settings).read_text()
    assert "personalised4 1" in page and "personalised4 2" not in page
    assert page.index("share of right answers is") < page.index("Differences to the base model")


def test_gain_at_its_cost_heads_the_page_where_it_was_measured(make_measured):
    folder, settings = make_measured()
    page = write_report(folder, settings).read_text()
    said = "At lambda = 1 the global model gains 0.500 nats of loss at a distance of 0.2000 nats"
    assert page.index(said) < page.index("Differences to the base model")
