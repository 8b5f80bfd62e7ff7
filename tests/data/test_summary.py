"""The summary counts what the clients hold, and JSON can hold the summary."""

import json
from dataclasses import replace

import pytest

from fedsdr.config import Settings
from fedsdr.data.examples import Example
from fedsdr.data.partition import partition
from fedsdr.data.readers import Record
from fedsdr.data.sources import Domain
from fedsdr.data.summary import (
    MOST_CHOICES,
    check_consistent,
    count_inconsistent,
    notices,
    render_summary,
    summarize,
)
from fedsdr.errors import UserError


def test_summary_counts_words_labels_and_duplicates():
    train = [
        Example("What tone?", "up", "fin", context="Sales rose a lot.", label="up", choices=("down", "up")),
        Example("What tone is this?", "down " * 50, "fin", label="down", choices=("down", "up")),
    ]
    test = [Example("what TONE?", "up", "fin", context="sales rose a lot."), Example("New?", "up", "fin")]
    domains = {
        "fin": Domain(
            [Record(e) for e in train], [Record(e) for e in test], left_out={"response is empty": 4}
        )
    }
    summary = summarize(domains, partition(domains, Settings()))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["domains"] == [
        {
            "domain": "fin",
            "num_train": 2,
            "num_test": 2,
            "left_out": {"response is empty": 4},
            "num_duplicates": 1,
            "duplicates": ["what TONE?"],
            "num_known_responses": 1,
            "num_inconsistent": 0,
            "inconsistent": [],
        }
    ]
    (client,) = summary["clients"]
    assert (client["client"], client["num_train"], client["num_test"]) == ("fin", 2, 2)
    assert client["domains"] == {"fin": 2}
    assert client["labels"] == {"down": 1, "up": 1}
    assert client["words"] == {"instruction": (2 + 4) / 2, "context": (4 + 0) / 2, "response": (1 + 50) / 2}
    assert client["samples"][0]["context"] == "Sales rose a lot."
    assert all(len(text) <= 60 for sample in client["samples"] for text in sample.values())


def test_examples_whose_own_response_loses_its_ground_truth_are_counted_and_the_first_is_named():
    """Checks would refuse even a perfect rewriting of them. Tests are not run: they may be slow."""
    wrong = [
        Example("Tone? " + "x" * 100, "It is bad.", "fin", label="good", choices=("bad", "good")),
        Example("How many?", "The answer is 4.", "fin", answer="5"),
        Example("Where?", "In Norway.", "fin", facts=("Norway", "north")),
    ]
    right = [
        Example("Tone of it?", "It is good.", "fin", label="good", choices=("bad", "good")),
        Example("How many are there?", "2 + 3 = 5", "fin", answer="5"),
        Example("Code?", "no code", "fin", tests="assert False"),
    ]
    assert count_inconsistent(wrong + right) == 3
    assert count_inconsistent(right) == 0
    domains = {
        "fin": Domain([Record(e) for e in right + wrong[:2]], [Record(wrong[2])]),
        "law": Domain([Record(replace(e, domain="law")) for e in right], []),
    }
    summary = summarize(domains, partition(domains, Settings()))
    assert [domain["num_inconsistent"] for domain in summary["domains"]] == [3, 0]
    (line,) = [line for line in render_summary(summary).splitlines() if "loses" in line]
    assert line.startswith("fin: 3 examples")
    assert "Tone? xxx" in line
    assert "x" * 60 not in line


def test_a_domain_that_contradicts_itself_throughout_stops_the_run():
    """Solutions that are taken for final answers too: no rewriting could be faithful to them."""
    wrong = [
        Record(
            Example(f"{n} + 1?", f"It is {n + 1}.", "math", answer=f"{n} + 1 = {n + 1} so"), place=f"m:{n}"
        )
        for n in range(4)
    ]
    right = Record(Example("1 + 1?", "It is 2.", "math", answer="2"))
    free = [Record(Example(f"Why {n}?", "So.", "math")) for n in range(5)]
    with pytest.raises(UserError, match=r"m:0: all 4 examples of domain 'math'.*columns = \{answer = \"\"\}"):
        check_consistent({"math": Domain(wrong[:3], wrong[3:])})
    check_consistent({"math": Domain([*wrong, right], [])})
    check_consistent({"math": Domain(wrong, free)})  # most carry no ground truth
    check_consistent({"math": Domain(free, free), "empty": Domain([right], [])})


def test_a_label_with_more_choices_than_are_meant_is_told():
    def told(num: int) -> list[str]:
        choices = tuple(f"name {n}" for n in range(num))
        return notices(
            {"coref": Domain([Record(Example("Who?", "name 0", "coref", "", "", "name 0", choices))], [])}
        )

    assert told(MOST_CHOICES) == []
    (line,) = told(MOST_CHOICES + 1)
    assert line.startswith("coref: 21 choices for one label")
