"""What the teacher is shown."""

import pytest

from fedsdr.data.examples import Example
from fedsdr.distill.prompts import rewriting_turns
from fedsdr.methods import PROMPTS

EXAMPLE = Example("Which label?", "It is POSITIVE.", "finance", context="Profit rose.", system="Be brief.")


@pytest.mark.parametrize("name", PROMPTS)
def test_the_teacher_sees_the_true_response_whole_and_is_asked_last(name: str):
    """y~ is sampled given (c, x, y): without y it would be an answer of the teacher's own."""
    turns = rewriting_turns(name, EXAMPLE)
    assert sum(EXAMPLE.response in turn["content"] for turn in turns) == 1
    assert turns[-1]["role"] == "user"


@pytest.mark.parametrize("name", ["reference", "turn"])
def test_prompts_with_a_question_show_system_instruction_and_context(name: str):
    turns = rewriting_turns(name, EXAMPLE)
    assert turns[0] == {"role": "system", "content": EXAMPLE.system}
    assert "Which label?\n\nProfit rose." in turns[1]["content"]


def test_paraphrase_shows_the_answer_alone():
    """Small models copy the question into the rewriting when they see it."""
    rule, text = rewriting_turns("paraphrase", EXAMPLE)
    assert rule["role"] == "system"
    assert text == {"role": "user", "content": EXAMPLE.response}


def test_a_name_that_the_table_lacks_has_no_wording():
    with pytest.raises(KeyError):
        rewriting_turns("refrence", EXAMPLE)
