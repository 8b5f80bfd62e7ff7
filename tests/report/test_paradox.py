"""Tables of checkers and win rates."""

from fedsdr.data.examples import Example
from fedsdr.measure.paradox import REWRITING, TRUE, check, paradox_records, style_differences
from fedsdr.report.paradox import paradox_checks_sheet, win_rate_sheet

SUM = Example("2 plus 3?", "The answer is 5.", "math", answer="5")
OPEN = Example("Why?", "Because it is so.", "general")


def test_a_row_for_each_domain_text_and_checker():
    pairs = [(SUM, "It is 6."), (SUM, "The answer is 5."), (OPEN, "It is so.")]
    true = [(example, example.response) for example, _ in pairs]
    records = paradox_records(true, TRUE, check(true)) + paradox_records(pairs, REWRITING, check(pairs))
    sheet = paradox_checks_sheet(records + style_differences(pairs, REWRITING))
    rows = {row[:3]: dict(zip(sheet.heads, row, strict=True)) for row in sheet.rows}
    texts = (TRUE, REWRITING, "rewriting minus true response")
    assert list(rows) == [(domain, text, "exact") for domain in ("general", "math", "all") for text in texts]
    assert sheet.num_summary == 3
    # 1 of 2: Wilson's ends are 1/2 -+ 1.96 / (2 sqrt(2 + 3.84)) = 0.09 and 0.91.
    assert rows["math", REWRITING, "exact"]["omits"] == "0.50 [0.09, 0.91]"
    assert rows["general", REWRITING, "exact"]["omits"] == "-"  # nothing to lose
    assert rows["general", REWRITING, "exact"]["words"] == "3.0"  # one example has no interval
    assert rows["all", REWRITING, "exact"]["n"] == "2 / 3"
    # 3 + 4 + 3 words of 4 + 4 + 4.
    assert rows["all", "rewriting minus true response", "exact"]["length ratio"].startswith("-0.17 [")


def test_win_rates_are_shown_with_interval_and_a_dash_where_nothing_was_judged():
    record = {"a": "global", "b": "base", "domain": "math", "num": 4, "wins": 1, "ties": 2, "losses": 1,
              "num_unreadable": 1, "rate": 0.5, "low": 0.15, "high": 0.85, "agreement": 0.75, "first_rate": 0.6}  # fmt: skip
    none = record | dict.fromkeys(("rate", "low", "high", "agreement", "first_rate"))
    sheet = win_rate_sheet([record, none])
    assert sheet.rows[0] == (
        "global", "base", "math", "1", "2", "1", "0.50 [0.15, 0.85]", "0.75", "0.60", "4", "1",
    )  # fmt: skip
    assert sheet.rows[1][6:9] == ("-", "-", "-")
