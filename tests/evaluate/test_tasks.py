"""Scores of answers, judged and counted by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from fedsdr.config import Eval, Lora, Settings
from fedsdr.data.conversation import encode, prompt_turns
from fedsdr.data.examples import Example
from fedsdr.evaluate import tasks
from fedsdr.evaluate.tasks import TestSet, answer, choose, evaluate, score_answer, summarise
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base, load_base
from fedsdr.model.generation import Answer
from fedsdr.model.loss import response_loss, token_losses

LABELLED = Example("Label?", "POSITIVE", "finance", label="POSITIVE", choices=("POSITIVE", "NEGATIVE"))
SUM = Example("2 plus 3?", "The answer is 5.", "math", context="Use your fingers.", answer="5")
FACT = Example("Who?", "Ada Lovelace wrote it.", "general", facts=("Ada Lovelace",))
CODE = Example("One?", "def one(): return 1", "code", tests="assert one() == 1")
OPEN = Example("Why?", "Because.", "general")


@pytest.mark.parametrize(
    ("example", "text", "right", "lost"),
    [
        (LABELLED, "It is positive.", True, []),
        (LABELLED, "negative", False, ["label"]),
        (LABELLED, "", False, ["label"]),
        (SUM, "2 + 3 = 5", True, []),
        (SUM, "2 + 3 = 6", False, ["answer"]),
        (FACT, "It was ada  lovelace.", True, []),
        (FACT, "It was Babbage.", False, ["facts"]),
        (CODE, "```python\ndef one():\n    return 1\n```", True, []),
        (CODE, "```python\ndef one():\n    return 2\n```", False, ["tests"]),
        (OPEN, "No idea.", None, []),
    ],
)
def test_an_answer_is_right_if_it_keeps_the_examples_ground_truth(example, text, right, lost):
    record = score_answer(example, Answer(text, True, 3), code_timeout=5)
    assert (record["right"], record["lost"]) == (right, lost)


def test_the_record_of_a_prompt_holds_what_a_reader_needs_to_judge_it_anew():
    record = score_answer(SUM, Answer("6", False, 1), code_timeout=5)
    assert record == {
        "domain": "math",
        "instruction": "2 plus 3?",
        "input": "Use your fingers.",
        "output": "The answer is 5.",
        "label": "",
        "answer": "6",
        "right": False,
        "lost": ["answer"],
        "unsupported": True,
        "finished": False,
        "given": None,
        "chosen": None,
    }


def test_hand_counted_means():
    """Three answers: right, wrong, not to be judged.

    Words 3, 4, 1; one filler ("Sure,") in four words; one of three states what the example does not, and
    one was cut off. The mean is over all three, but the score over the two that could be judged. Of the
    two with choices, one has its label for the likeliest.
    """
    records = [
        score_answer(LABELLED, Answer("It is positive.", True, 4), 5, "NEGATIVE"),
        score_answer(LABELLED, Answer("Sure, it is negative.", True, 5), 5, "POSITIVE"),
        score_answer(OPEN, Answer("So", False, 1), 5),
    ]
    assert summarise(records) == pytest.approx(
        {
            "num_examples": 3,
            "num_scored": 2,
            "score": 1 / 2,
            "choice_score": 1 / 2,
            "num_chosen": 2,
            "unsupported_rate": 1 / 3,
            "words": 8 / 3,
            "filler_rate": 25 / 3,
            "redundancy": 0,
            "cut_off_rate": 1 / 3,
            **dict.fromkeys(("exact_match", "token_f1", "rouge_l"), 0),  # "So" against "Because."
            "num_text": 1,
        }
    )


def test_where_nothing_can_be_judged_there_is_no_score_rather_than_zero():
    metrics = summarise([score_answer(OPEN, Answer("So", True, 1), 5)])
    assert "score" not in metrics
    assert metrics["num_scored"] == 0


def test_answers_come_back_in_the_order_of_the_examples_and_equal_prompts_are_answered_once(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
):
    examples = [Example("word " * (7 * n % 5) + str(n % 6), "x", "general") for n in range(8)]
    asked: list[str] = []

    def echo(base, prompts, sampling, num_rows, route) -> list[Answer]:
        assert (sampling.temperature, num_rows) == (0, 3)
        asked.extend(base.tokenizer.decode(prompt) for prompt in prompts)
        return [Answer(text, True, 1) for text in asked]

    monkeypatch.setattr(tasks, "generate", echo)
    examples += examples[:3]
    found = answer(tiny_base, examples, Eval(batch_size=3))
    assert len(asked) == len(set(asked)) == 8
    for example, given in zip(examples, found, strict=True):
        assert prompt_turns(example)[0]["content"] in given.text


def test_a_model_is_scored_by_domain_with_both_losses_and_a_record_for_each_prompt(
    tiny_settings: Callable[..., Settings],
):
    """The losses stand side by side with their own numbers of tokens."""
    base = load_base(tiny_settings().model)
    model = LoraModel(base, Lora(rank=2))
    examples = [SUM, LABELLED, OPEN, SUM]
    raw = [encode(base.tokenizer, example, example.response, 128) for example in examples]
    distilled = [encode(base.tokenizer, example, "A longer rewriting of it.", 128) for example in examples]
    settings = Eval(max_new_tokens=4, batch_size=2)
    found, records = evaluate(model, (), TestSet(examples, raw, distilled), settings)
    assert list(found) == ["finance", "general", "math"]
    assert [record["domain"] for record in records] == ["finance", "general", "math", "math"]
    assert found["math"]["num_examples"] == 2
    assert found["math"]["loss_tokens"] == raw[0].num_response_tokens + raw[3].num_response_tokens
    assert found["math"]["loss_distilled_tokens"] == 2 * distilled[0].num_response_tokens
    with model.inference(()):
        one_by_one = [sum(token_losses(base, [raw[row]], 1)[0]) for row in (1, 2, 0, 3)]
    assert [record["nats"] for record in records] == pytest.approx(one_by_one)
    # Random weights know nothing: about the logarithm of the vocabulary, within a nat.
    uniform = math.log(base.model.config.vocab_size)
    assert all(abs(metrics["loss"] - uniform) < 1 for metrics in found.values())
    alone, _ = evaluate(model, (), TestSet(examples, raw, ()), settings)
    assert "loss_distilled" not in alone["math"]
    assert alone["math"]["loss"] == found["math"]["loss"]


def test_the_choice_is_the_likeliest_whole_answer(tiny_base: Base):
    """By the loss of each choice as a conversation; an example without choices has none."""
    examples = [
        Example(
            f"News {n}?", "positive", "finance", label="positive", choices=("positive", "negative", "neutral")
        )
        for n in range(5)
    ]
    expected = []
    with torch.inference_mode():
        for example in examples:
            losses = {
                choice: response_loss(tiny_base, [encode(tiny_base.tokenizer, example, choice, 384)])[
                    0
                ].item()
                for choice in example.choices
            }
            expected.append(min(losses, key=losses.__getitem__))
        assert choose(tiny_base, [OPEN, *examples], batch_size=2) == [None, *expected]


def test_spellings_of_one_label_are_one_choice():
    """Went wrong: of "Positive" and "positive" in one domain one was always the wrong choice."""
    example = Example("?", "positive", "finance", label="positive", choices=("Positive", "positive"))
    assert summarise([score_answer(example, Answer("positive", True, 1), 5, "Positive")])["choice_score"] == 1
