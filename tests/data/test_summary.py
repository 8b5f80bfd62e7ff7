"""The summary counts what the clients hold, and JSON can hold the summary."""

import json

from fedsdr.config import Settings
from fedsdr.data.examples import Example
from fedsdr.data.partition import partition
from fedsdr.data.readers import Record
from fedsdr.data.sources import Domain
from fedsdr.data.summary import summarize


def test_summary_counts_words_labels_and_duplicates():
    train = [
        Example("What tone?", "up", "fin", context="Sales rose a lot.", label="up", choices=("down", "up")),
        Example("What tone is this?", "down " * 50, "fin", label="down", choices=("down", "up")),
    ]
    test = [Example("what TONE?", "up", "fin", context="sales rose a lot."), Example("New?", "up", "fin")]
    domains = {"fin": Domain([Record(e) for e in train], [Record(e) for e in test], num_left_out=4)}
    summary = summarize(domains, partition(domains, Settings()))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["domains"] == [
        {
            "domain": "fin",
            "num_train": 2,
            "num_test": 2,
            "num_left_out": 4,
            "num_duplicates": 1,
            "duplicates": ["what TONE?"],
        }
    ]
    (client,) = summary["clients"]
    assert (client["client"], client["num_train"], client["num_test"]) == ("fin", 2, 2)
    assert client["domains"] == {"fin": 2}
    assert client["labels"] == {"down": 1, "up": 1}
    assert client["words"] == {"instruction": (2 + 4) / 2, "context": (4 + 0) / 2, "response": (1 + 50) / 2}
    assert client["samples"][0]["context"] == "Sales rose a lot."
    assert all(len(text) <= 60 for sample in client["samples"] for text in sample.values())
