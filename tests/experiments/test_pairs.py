"""Rewritings in a plain file: known cases, and errors that name file and line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from fedsdr.errors import UserError
from fedsdr.experiments.pairs import _corrected, analyze

WORDS = {"law": "court judge appeal statute verdict clause", "food": "flour butter sugar oven dough yeast"}
Row = dict[str, Any]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[Row]], Path]:
    def write(rows: Sequence[Row]) -> Path:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def rows(rewrite: Callable[[str], str], num: int = 12) -> list[Row]:
    """Responses of two domains without a common word, of six words each, in turned order."""
    found = []
    for domain, words in WORDS.items():
        for place in range(num):
            turned = words.split()[place % 6 :] + words.split()[: place % 6]
            response = " ".join(turned)
            row = {"instruction": f"{domain} {place}?", "input": "", "output": response, "domain": domain}
            found.append(row | {"distilled": rewrite(response)})
    return found


def of(records: Sequence[Row], **where: str) -> Row:
    (found,) = [record for record in records if record.items() >= where.items()]
    return found


def test_identical_rewritings_change_nothing(write):
    made = analyze(write(rows(lambda response: response)), 0, "", "", "")
    gain = of(made["alignment"]["records"], measure="js", view="difference", a="mean")
    assert gain["value"] == gain["low"] == gain["high"] == 0
    assert of(made["alignment"]["records"], measure="js", view="raw", a="mean")["value"] == pytest.approx(1)
    for kind, value in (("length_ratio", 1), ("filler_rate", 0), ("redundancy", 0)):
        assert of(made["paradox"]["records"], of="rewriting", domain="all", kind=kind)["value"] == value
    assert {verdict["verdict"] for one in made.values() for verdict in one["verdicts"]} == {"undecided"}


def test_padding_that_all_domains_share_is_counted_by_hand_and_makes_them_alike(write):
    """Six words become twelve: two fillers, "of course" (two words) and "moreover", and three words more."""
    padded = "Of course moreover in all cases "
    made = analyze(write(rows(lambda response: padded + response)), 0, "", "", "")
    records = made["paradox"]["records"]
    assert of(records, of="rewriting", domain="law", kind="words")["value"] == 12
    assert of(records, of="rewriting", domain="law", kind="length_ratio")["value"] == 2
    assert of(records, of="rewriting", domain="law", kind="filler_rate")["value"] == pytest.approx(200 / 12)
    verdicts = {verdict["claim"]: verdict for one in made.values() for verdict in one["verdicts"]}
    assert verdicts["Rewriting makes the clients' words more alike"]["verdict"] == "supported"


def test_three_changes_in_style_of_few_pairs_are_corrected_by_students_t():
    """Of four pairs, t(3) at 5 % / 3 is 4.86. The normal distribution's ratio would make 3.18 x 1.22 = 3.88."""
    for errors, word in ((4.4, "undecided"), (5.0, "supported")):
        half = stats.t.ppf(0.975, 3)
        assert _corrected({"low": errors - half, "high": errors + half, "num": 4}, 3) == word


@pytest.mark.parametrize("names_choices", [True, False])
def test_a_lost_label_is_counted_and_shown_to_be_read(write, names_choices: bool):
    """Where the rows name no choices, the labels of the domain are the choices."""
    moods = {"choices": ["negative", "neutral", "positive"]} if names_choices else {}
    some = [
        {"instruction": f"Mood {n}?", "output": "positive", "label": "positive", "domain": "a", **moods,
         "distilled": "positive" if n else "negative"} for n in range(8)
    ]  # fmt: skip
    if not names_choices:
        some[7] |= {"output": "negative", "label": "negative", "distilled": "negative"}
    made = analyze(write(some), 0, "", "", "")
    assert "alignment" not in made
    for kind in ("omission", "unsupported"):
        assert of(made["paradox"]["records"], of="rewriting", kind=kind)["value"] == 1 / 8
    worst = made["paradox"]["examples"][0]
    assert (worst["text"], worst["why"]) == ("negative", "lost label, unsupported")


def test_clusters_stand_for_domains_that_a_file_does_not_name(write):
    some = [{k: v for k, v in row.items() if k != "domain"} for row in rows(str.upper)]
    assert "alignment" not in analyze(write(some), 0, "", "", "")
    made = analyze(write(some), 2, "", "", "")
    pairs = [r for r in made["alignment"]["records"] if r["a"] != "mean"]
    assert {(r["a"], r["b"]) for r in pairs} == {("cluster-1", "cluster-2")}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ({"distilled": ""}, "pairs.jsonl:2: distilled = ''; expected the rewriting of the output, a text"),
        ({"distilled": None}, "pairs.jsonl:2: distilled = None"),
        ({"output": 3}, "pairs.jsonl:2"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(write, spoil: Row, told: str):
    some = rows(str.upper)
    some[1] |= spoil
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        analyze(write(some), 0, "", "", "")


def test_what_does_not_go_together_is_refused(write):
    path = write(rows(str.upper))
    with pytest.raises(UserError, match="contains the domains food, law: leave out --clusters"):
        analyze(path, 3, "", "", "")
    with pytest.raises(UserError, match="set both, or neither"):
        analyze(path, 0, "", "http://localhost:1/v1", "")


def test_tests_in_a_file_run_only_with_consent(write, capsys):
    """Six of twelve rewritings fail their tests; without consent there is nothing that could be lost."""
    some = [
        {"instruction": f"Write {n}.", "input": "", "output": f"x = {n}", "domain": "code"}
        | {"tests": f"assert x == {n}", "distilled": f"x = {n if n % 2 else -1}"}
        for n in range(12)
    ]
    found = analyze(write(some), 0, "", "", "")["paradox"]["records"]
    assert not [r for r in found if r["of"] == "rewriting" and r["kind"] == "omission"]
    assert "12 rows have tests, which are programs and do not run" in capsys.readouterr().err
    made = analyze(write(some), 0, "", "", "", runs_programs=True)["paradox"]
    assert made["command"].endswith(" --run-programs")
    assert (
        of(made["records"], of="rewriting", kind="omission", checker="exact", domain="code")["value"] == 0.5
    )
