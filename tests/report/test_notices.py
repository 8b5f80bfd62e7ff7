"""What a reader must know before the numbers: fall-backs, one class for everything, cut responses."""

from pathlib import Path

import pytest

from fedsdr.model.base import BUILT_IN
from fedsdr.report.events import kept_by_label, kept_sheet
from fedsdr.report.notices import Notice, cut_notices, label_notices, rewriting_notices, run_notices
from fedsdr.report.page import write_report
from fedsdr.storage import append_lines, read_json, write_json

CLASSES = {"finance": ["negative", "neutral", "positive"]}


def prepared(client: str = "a", num: int = 8, **counts: int) -> dict:
    names = {key.replace("__", "/"): value for key, value in counts.items()}
    return {"event": "prepare", "round": 0, "client": client, "num_train": num, "num_test": 2, "seconds": 1.0,
            "distill/num_examples@after": num, **names}  # fmt: skip


def fallbacks(**reasons: int) -> dict[str, int]:
    return {f"distill__num_fallback__{reason}": num for reason, num in reasons.items()}


def test_one_line_says_how_many_rewritings_fell_back_and_why():
    events = [
        prepared("a", 8, **fallbacks(cut_off=2)),
        prepared("b", 40, **fallbacks(lost_label=2, cut_off=1)),
    ]
    (notice,) = rewriting_notices(events, {})
    assert notice == Notice(
        "5 of 48 rewritings fell back to the true response: 3 cut off, 2 lost label", is_warning=False
    )


def test_more_than_half_is_a_warning_of_the_run_and_of_the_client_that_has_it():
    events = [prepared("a", 8, **fallbacks(cut_off=8)), prepared("b", 4)]
    assert [str(notice) for notice in rewriting_notices(events, {})] == [
        "warning: 8 of 12 rewritings fell back to the true response: 8 cut off; raise distill.max_new_tokens",
        "warning: a: 8 of 8 rewritings fell back to the true response, so no rewritten text is taught:"
        " 8 cut off; raise distill.max_new_tokens",
    ]
    everywhere = [prepared("a", 8, **fallbacks(cut_off=8)), prepared("b", 4, **fallbacks(cut_off=4))]
    assert [str(notice) for notice in rewriting_notices(everywhere, {})] == [
        "warning: 12 of 12 rewritings fell back to the true response, so no rewritten text is taught:"
        " 12 cut off; raise distill.max_new_tokens"
    ]
    chosen = [prepared("a", 8, **fallbacks(cut_off=1, not_chosen=6)), prepared("b", 4)]
    assert [str(notice) for notice in rewriting_notices(chosen, {})] == [
        "1 of 6 rewritings fell back to the true response: 1 cut off"
    ]
    most = [prepared("a", 8, **fallbacks(cut_off=2, not_chosen=5))]
    assert [notice.is_warning for notice in rewriting_notices(most, {})] == [True]
    half = [prepared("a", 8, **fallbacks(cut_off=4))]
    assert not any(notice.is_warning for notice in rewriting_notices(half, {}))


def test_nothing_is_said_where_no_rewriting_fell_back_or_none_was_made():
    assert rewriting_notices([prepared()], {}) == []
    assert rewriting_notices([{"event": "prepare", "client": "a", "num_train": 8}], {}) == []


def test_domains_that_no_client_has_are_a_warning_since_nothing_is_rewritten():
    """In a deployment, where the server does not know the domains."""
    none = [prepared("a", 8, **fallbacks(not_chosen=8)), prepared("b", 4, **fallbacks(not_chosen=4))]
    assert [str(notice) for notice in rewriting_notices(none, {})] == [
        "warning: distill.only chooses no training response of any client: nothing is rewritten"
    ]
    assert rewriting_notices([none[0], prepared("b", 4)], {}) == []


def test_a_label_of_which_no_rewriting_is_taught_is_named():
    event = prepared(
        "a", 8, **{"distill/by-label/finance/num_examples-0": 4, "distill/by-label/finance/num_kept-0": 0,
                   "distill/by-label/finance/num_examples-2": 4, "distill/by-label/finance/num_kept-2": 3},
        **fallbacks(unlikely_label=5),
    )  # fmt: skip
    assert kept_by_label(event) == {"finance": {"0": (4, 0), "2": (4, 3)}}
    notices = rewriting_notices([event], CLASSES)
    assert Notice("a: no rewriting of finance's 'negative' is taught", True) in notices
    rows = kept_sheet([{**event, "distill/num_examples@before": 8}], CLASSES).rows
    assert rows == (
        ("a", "finance", "'negative'", "4", "0", "0.00"),
        ("a", "finance", "'positive'", "4", "3", "0.75"),
    )
    assert kept_sheet([prepared("b")], CLASSES).rows == ()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"num_answer-0-2": 3, "num_answer-2-2": 5}, ["finance: every answer is 'positive' (global model)"]),
        ({"num_answer-0-none": 3, "num_answer-2-none": 5}, ["finance: no answer gives a label (global model)"]),
        ({"num_choice-0-1": 3, "num_choice-2-1": 5},
         ["finance: the likeliest choice is always 'neutral' (global model)"]),
        ({"num_answer-0-2": 3, "num_answer-2-2": 5, "num_answer-2-0": 1}, []),
        ({"num_answer-2-2": 5}, []),
    ],
)  # fmt: skip
def test_a_domain_whose_answers_are_one_class_is_named(counts: dict[str, int], said: list[str]):
    """CoLA's score of 0.58 was the share of its majority: every answer was the same. One true label is no sign."""
    final = {"global": {"finance": {"num_examples": 8, **counts}}}
    notices = label_notices({}, final, CLASSES)
    assert [notice.text for notice in notices] == said
    assert all(notice.is_warning for notice in notices)


def test_cut_responses_are_counted_over_clients():
    events = [prepared("a", 8, num_cut_raw=1), prepared("b", 8, num_cut_raw=2)]
    assert [notice.text for notice in cut_notices(events)] == [
        "3 of 16 training responses are cut at model.max_length and do not teach the model where to end"
    ]


def test_warnings_stand_at_the_head_of_the_page_before_the_scores(make_run):
    folder, settings = make_run()
    append_lines(folder / "metrics.jsonl", [prepared("z", 8, **fallbacks(cut_off=8))])
    page = write_report(folder, settings).read_text()
    at = page.index("z: 8 of 8 rewritings fell back to the true response, so no rewritten text is taught")
    assert at < page.index('id="first-head"')
    assert '<li class="warning">' in page[:at][-60:]
    assert Path(folder, "report.html").is_file()


def test_a_model_with_random_weights_is_a_warning(make_run):
    folder, _ = make_run()
    environment = read_json(folder / "environment.json")
    before = run_notices(folder, {}, {})
    environment["model"]["origin"] = BUILT_IN["tiny"]["origin"]
    write_json(folder / "environment.json", environment)
    first, *others = run_notices(folder, {}, {})
    assert "random weights" in first.text and first.is_warning
    assert others == before
