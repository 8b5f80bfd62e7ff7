"""Conversations of several turns: one example or one for each answer, with what was said before."""

import copy

import pytest

from fedsdr.config import Data, Reading, Source
from fedsdr.data.checks import unsupported
from fedsdr.data.conversation import encode, prompt_turns
from fedsdr.data.examples import Example
from fedsdr.data.readers import to_records
from fedsdr.data.sources import load_domains
from fedsdr.distill.prompts import rewriting_turns
from fedsdr.errors import UserError
from fedsdr.model.base import Base

SAID = ["Where is Oslo?", "In Norway.", "And Rome?", "In Italy.", "And Bern?", "In Switzerland."]
PAIRS = tuple(zip(SAID[::2], SAID[1::2], strict=True))


def sharegpt(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def read(row: dict, **reading: object) -> list[Example]:
    return [record.example for record in to_records([("x:1", row)], "geo", Reading(**reading))]


def test_the_last_answer_is_trained_on_or_all_are():
    row = {"conversations": sharegpt(*SAID), "system": "Be brief.", "facts": ["Switzerland"]}
    last = Example(
        "And Bern?",
        "In Switzerland.",
        "geo",
        system="Be brief.",
        facts=("Switzerland",),
        history=PAIRS[:2],
    )
    assert read(row) == [last]
    # Ground truth is of the last answer; the earlier ones have none.
    assert read(row, train_on="all") == [
        Example(question, answer, "geo", system="Be brief.", history=PAIRS[:n])
        for n, (question, answer) in enumerate(PAIRS[:2])
    ] + [last]


def test_other_spellings_of_a_conversation_are_the_same():
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(SAID)]
    expected = read({"conversations": sharegpt(*SAID)})
    parts = copy.deepcopy(turns)
    parts[0]["content"] = [{"type": "text", "text": "Where is Oslo?"}]
    flat = {"instruction": SAID[-2], "output": SAID[-1], "history": [list(pair) for pair in PAIRS[:2]]}
    for row in (
        {"messages": turns},
        {"messages": parts},
        {"messages": [*turns, {"role": "user", "content": "Thanks!"}]},  # which nobody answered
        {"prompt": turns[:-1], "completion": turns[-1:]},
        {"messages": str(turns).replace("'", '"')},  # a cell of a CSV file
        flat,
    ):
        assert read(row) == expected
    assert read({"dialog": turns}, columns={"messages": "dialog"}) == expected
    system = {"role": "system", "content": "Be brief."}
    assert read({"messages": [system, *turns], "system": "Other."})[0].system == "Be brief."
    turns[3]["weight"] = 0  # OpenAI's mark of an answer that is not trained on
    assert [e.response for e in read({"messages": turns}, train_on="all")] == [SAID[1], SAID[5]]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "tool", "content": "x"}], "calls tools"),
        ([{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}], "calls tools"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{}]}], "calls tools"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "images or sound"),
        ([{"role": "user", "content": "x"}], "found no answer"),
        ([{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}], "starting with user"),
        ([{"role": "user", "content": "x"}] * 2 + [{"role": "assistant", "content": "y"}], "alternating"),
        ([{"role": "narrator", "content": "x"}], "role: found str narrator"),
        ([{"role": "user", "content": 3}, {"role": "assistant", "content": "y"}], "user's turn: found int 3"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}],
            "assistant's turn is empty",
        ),
        ([], "found no answer"),
        ({}, "a list of objects"),
    ],
)
def test_what_is_no_conversation_of_texts_is_refused_with_its_reason(turns: object, said: str):
    with pytest.raises(UserError, match=f"x:1.*{said}"):
        read({"messages": turns})


def test_a_column_called_history_that_holds_a_text_is_none_of_ours():
    row = {"instruction": "x", "output": "y", "history": "Fever for three days."}
    assert read(row) == [Example("x", "y", "geo")]
    with pytest.raises(UserError, match=r"history: found str Fever.*pairs"):
        read(row, columns={"history": "history"})


def test_earlier_turns_stand_in_the_prompt_and_only_the_last_answer_is_taught(tiny_base: Base):
    (example,) = read({"conversations": sharegpt(*SAID)})
    assert [turn["content"] for turn in prompt_turns(example)] == SAID[:-1]
    conversation = encode(tiny_base.tokenizer, example, example.response, 512)
    prompt = tiny_base.tokenizer.decode(conversation.ids[: conversation.prompt_length])
    assert all(text in prompt for text in SAID[:-1])
    taught = tiny_base.tokenizer.decode(conversation.ids[conversation.prompt_length :])
    assert taught.strip() == "In Switzerland.<|im_end|>"


def test_a_rewriting_prompt_shows_what_was_said_before():
    (example,) = read({"conversations": sharegpt(*SAID)})
    for name in ("reference", "turn"):
        turns = rewriting_turns(name, example)
        assert [turn["content"] for turn in turns[:4]] == SAID[:4]
        assert any("In Switzerland." in turn["content"] for turn in turns[4:])


def test_the_turns_of_a_conversation_stay_on_one_side_of_a_held_out_share(tmp_path):
    """A later turn holds the answers of the earlier ones: in training it would give away those of tests."""
    import json

    path = tmp_path / "a.jsonl"
    rows = [{"conversations": sharegpt(f"Where is town {n}?", *SAID[1:])} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(domain="geo", train=str(path), train_on="all", test_share=0.3)
    domain = load_domains(Data(sources=(source,)))["geo"]

    def towns(part: list) -> set[str]:
        return {(r.example.history or ((r.example.instruction, ""),))[0][0] for r in part}

    assert (len(domain.train), len(domain.test)) == (14 * 3, 6 * 3)
    assert not towns(domain.train) & towns(domain.test)


def test_a_number_of_an_earlier_turn_is_supported():
    example = Example("And twice that?", "It is that doubled.", "math", history=(("What is 3 * 7?", "21"),))
    assert not unsupported(example, "Twice 21.")
    assert unsupported(example, "It is 43.")
