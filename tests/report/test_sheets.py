import csv
import io
from types import SimpleNamespace

import pytest

from fedsdr.evaluate.scores import table_of_round
from fedsdr.report.events import cost_sheet, dropped_sheet, fallback_sheet, rewriting_records, train_records
from fedsdr.report.sheets import (
    Sheet,
    answer_sheet,
    label_sheet,
    loss_sheet,
    render_text,
    score_sheet,
    text_sheet,
    to_csv,
)
from fedsdr.stats import wilson

METRICS = {"num_examples": 100, "unsupported_rate": 0.0, "words": 1.0, "filler_rate": 0.0, "redundancy": 0.0,
           "cut_off_rate": 0.0}  # fmt: skip
DOMAINS = ["code", "finance", "math"]


def test_a_domain_without_ground_truth_has_no_score_and_counts_no_answers(made_up: SimpleNamespace) -> None:
    sheet = score_sheet(
        made_up.table(DOMAINS, {"global": 0.0}), made_up.table(DOMAINS, {"global": 1.0, "personalised": 1.0})
    )
    assert sheet.rows[0] == ("code", "-", "-", "-", "0")
    low, high = wilson(0.25, 60)
    assert sheet.rows[1][1] == f"0.25 [{low:.2f}, {high:.2f}]"
    assert [row[0] for row in sheet.rows] == [*DOMAINS, "mean"]
    assert sheet.rows[-1][-1] == "100"  # 60 of finance, 40 of math
    assert score_sheet(made_up.table(["code"], {"global": 0.0}), {}).rows == ()


def test_a_method_with_one_adapter_has_no_personalised_column(made_up: SimpleNamespace) -> None:
    base, final = made_up.table(DOMAINS, {"global": 0.0}), made_up.table(DOMAINS, {"global": 1.0})
    assert {row[3] for row in score_sheet(base, final).rows} == {"-"}
    assert {row[4] for row in loss_sheet(base, final).rows} == {"-"}


def test_a_page_has_room_for_the_first_of_thousands_of_clients_and_for_the_sum() -> None:
    names = [f"client-{number:04}" for number in range(3000)]
    sheet = cost_sheet([{"event": "prepare", "round": 0, "client": name, "seconds": 2.0} for name in names])
    assert len(sheet.rows) == 3001
    assert [row[0] for row in sheet.shown] == [*names[:500], "all clients"]
    assert sheet.shown[-1][2] == "6,000"
    few = cost_sheet([{"event": "prepare", "round": 0, "client": name, "seconds": 2.0} for name in names[:9]])
    assert few.shown == few.rows
    rows = tuple((str(number),) for number in range(501))
    assert Sheet("498 clients and 3 sums", "r", ("n",), rows, (), num_summary=3).shown == rows


def test_an_unfinished_run_shows_the_base_model_alone(made_up: SimpleNamespace) -> None:
    sheet = score_sheet(made_up.table(DOMAINS, {"global": 0.0}), {})
    assert sheet.rows[1][1] != "-"
    assert sheet.rows[1][2:4] == ("-", "-")


def test_a_score_that_is_the_share_of_the_majority_stands_beside_what_says_so() -> None:
    """60 of 100 are "no", and "no" is all the model says: right in 60, balanced (1 + 0) / 2, F1 (0.75 + 0) / 2."""
    counts = {"num_answer-0-0": 60, "num_answer-1-0": 40, "num_choice-0-0": 30, "num_choice-0-1": 30,
              "num_choice-1-1": 40, "label_set": 7}  # fmt: skip
    cola = {**METRICS, "num_scored": 100, "score": 0.6, "num_chosen": 100, "choice_score": 0.7, **counts}
    free = {**METRICS, "num_scored": 0, "num_text": 5, "exact_match": 0.2, "token_f1": 0.5, "rouge_l": 0.4}
    events = [{"event": "evaluate"} | {f"eval/{domain}/{name}@global": value for name, value in row.items()}
              for domain, row in (("cola", cola), ("summaries", free))]  # fmt: skip
    final = table_of_round(events, 200)
    assert label_sheet(final, {}).rows == (
        ("cola", "base", "0.60", "0.60", "0.50", "0.38", "0.00", "0.70", "0.75"),
    )
    assert text_sheet(final, {}).rows[0] == ("summaries", "base", "0.20", "0.50", "0.40")
    assert not label_sheet({}, {}).rows


def test_losses_stand_side_by_side_for_true_responses_and_rewritings(made_up: SimpleNamespace) -> None:
    base, final = (
        made_up.table(["math"], {"global": 0.0}),
        made_up.table(["math"], {"global": 1.0, "personalised": 0.5}),
    )
    rows = loss_sheet(base, final).rows
    # 1.17 falls by a third of itself at progress 1, by a sixth at one half; rewritings have 0.8 of it.
    assert rows[0] == ("math", "true responses", "1.170", "0.780", "0.975")
    assert rows[1] == ("math", "rewritings", "0.936", "0.624", "0.780")


def test_text_is_aligned_and_markdown_has_as_many_cells_in_each_row(made_up: SimpleNamespace) -> None:
    sheet = score_sheet(made_up.table(DOMAINS, {"global": 0.0}), made_up.table(DOMAINS, {"global": 1.0}))
    _, _, *lines = render_text(sheet).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    _, _, *lines = render_text(sheet, markdown=True).splitlines()
    assert {line.count("|") for line in lines} == {len(sheet.heads) + 1}
    assert len(lines) == 2 + len(sheet.rows)


def test_a_narrow_column_has_a_delimiter_that_markdown_reads() -> None:
    """It was ":" for n, one digit wide, so the table was shown as its source."""
    sheet = Sheet("Counts", "lr", ("d", "n"), (("a", "4"),), ())
    assert render_text(sheet, markdown=True).splitlines()[3] == "| --- | --: |"


def test_a_bar_in_a_reason_does_not_break_a_markdown_row() -> None:
    sheet = dropped_sheet([{"event": "dropped", "round": 1, "client": "math", "reason": "a|b"}])
    assert "a\\|b" in render_text(sheet, markdown=True)


def test_paradox_of_all_clients_weighs_omission_by_checkable_examples(made_up: SimpleNamespace) -> None:
    events = [made_up.prepare("code"), made_up.prepare("finance", 1), made_up.prepare("math", 2)]
    events[2]["distill/num_checkable@before"] = 10
    records = {(record["client"], record["text"]): record for record in rewriting_records(events)}
    assert records["code", "rewriting"]["omission_rate"] is None  # nothing there can be checked
    assert records["code", "true response"]["filler_rate"] == 0.25
    # Omitted: 0.4 of 40 in finance, 0.5 of 10 in math. Unsupported: half of 0.3, 0.4 and 0.5, of 40 each.
    pooled = records["all clients", "rewriting"]
    assert pooled["omission_rate"] == pytest.approx((0.4 * 40 + 0.5 * 10) / 50)
    assert pooled["unsupported_rate"] == pytest.approx((0.15 + 0.2 + 0.25) / 3)
    assert pooled["length_ratio"] == 60 / 40


def test_a_length_ratio_is_of_the_examples_that_were_rewritten(made_up: SimpleNamespace) -> None:
    """Ten of the 40 responses of each were rewritten: code's 48 words as 47. No one-word label was."""
    events = [made_up.prepare("code"), made_up.prepare("finance")]
    for event, true, new, num in zip(events, (48.0, 1.0), (47.0, 0.0), (10, 0), strict=True):
        event |= {"distill/num_examples@before": num, "distill/words@before": new}
        event |= {"distill/words_true@before": true * (num > 0), "distill/words_true@after": true}
        event |= {"distill/length_ratio@before": 47 / 48}
    records = {(record["client"], record["text"]): record for record in rewriting_records(events)}
    assert records["all clients", "rewriting"]["length_ratio"] == pytest.approx(47 / 48)
    assert records["all clients", "true response"]["length_ratio"] == 1
    assert records["all clients", "as taught"]["length_ratio"] == pytest.approx(60 / 24.5)


def test_fall_back_is_counted_by_reason_and_prompts_by_use(made_up: SimpleNamespace) -> None:
    (row,) = fallback_sheet([made_up.prepare("math")]).rows
    assert row == ("math", "40", "40", "4", "cut off 3, lost answer 1", "reference 30, turn 6")


def test_costs_are_summed_over_rounds_and_stages(made_up: SimpleNamespace) -> None:
    events = [made_up.prepare("math")]
    for number in (1, 2):
        events.append(made_up.train(number, "math", ("private", "shared")))
        events.append({"event": "round", "round": number, "seconds": 20.0, "num_bytes_down": 64_000})
    events.append({"event": "evaluate", "round": 2, "client": "math", "seconds": 7.0})
    sheet = cost_sheet(events)
    # Two rounds of 12.5 s; 8 steps for each adapter and round; 2 stages of 1000 tokens; 64 kB each way.
    row = ("math", "2", "40.0", "25.0", "7.0", "16", "16", "4,000", "128.0 kB", "128.0 kB")
    assert sheet.rows == (row,)


def test_csv_gives_back_the_records(made_up: SimpleNamespace) -> None:
    records = train_records([made_up.train(1, 'a,"b"\nc', ("shared",))])
    (row,) = csv.DictReader(io.StringIO(to_csv(records)))
    assert row["client"] == 'a,"b"\nc'
    assert float(row["loss"]) == records[0]["loss"]
    assert int(row["num_tokens"]) == 1000


def test_what_answers_say_without_support_stands_beside_the_model_that_says_it(
    made_up: SimpleNamespace,
) -> None:
    """If the averaged adapter made more unsupported statements, the method would be refuted."""
    base, final = (made_up.table(["math"], {"global": 0.0}), made_up.table(["math"], {"global": 1.0}))
    assert [row[:3] for row in answer_sheet(base, final).rows[:2]] == [
        ("math", "base", "0.75"),
        ("math", "global", "0.25"),
    ]
    assert {row[1] for row in answer_sheet(base, final).rows} == {"base", "global"}


def test_rewritings_that_all_fell_back_have_no_row_but_a_note(made_up: SimpleNamespace) -> None:
    base, final = (made_up.table(["law", "math"], {"global": progress}) for progress in (0.0, 1.0))
    for table in (base, final):
        table["global"]["law"]["loss_distilled"] = table["global"]["law"]["loss"]
    sheet = loss_sheet(base, final)
    assert [row[:2] for row in sheet.rows] == [
        ("law", "true responses"),
        ("math", "true responses"),
        ("math", "rewritings"),
        ("mean", "true responses"),  # that on rewritings would include the true responses of law
    ]
    assert "No row of rewritings, since all fell back: law;" in sheet.note
