"""What model.max_length does to the examples is counted, and never teaches to stop before the answer."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedsdr.data.conversation import encode
from fedsdr.data.examples import Example
from fedsdr.data.lengths import ANSWER_CUT, TOO_LONG, fit, measure, summarize_lengths
from fedsdr.data.readers import Record
from fedsdr.data.sources import Domain
from fedsdr.data.summary import notices
from fedsdr.errors import UserError
from fedsdr.model.base import Base

SHORT = Example("What is 6 * 7?", "The answer is 42.", "math", answer="42")
WORDY = replace(SHORT, response="Because it is so, " * 12 + "the answer is 42.")


def domain(*examples: Example, test: tuple[Example, ...] = (SHORT,)) -> Domain:
    train = [Record(example, place=f"math.jsonl:{n}") for n, example in enumerate(examples, start=1)]
    return Domain(train, [Record(example) for example in test])


def tokens(base: Base, example: Example) -> tuple[int, int]:
    whole = encode(base.tokenizer, example, example.response, 10_000)
    return whole.prompt_length, len(whole.ids)


def test_a_response_that_loses_its_ground_truth_by_the_cut_is_not_taught(tiny_base: Base):
    limit = tokens(tiny_base, WORDY)[1] - 8  # 42 and what ends it are behind
    free = replace(WORDY, answer="")
    early = replace(WORDY, response="The answer is 42. " + "It is so. " * 60)
    code = replace(WORDY, answer="", tests="assert False  # is not run")
    (fitted,) = fit(
        {"math": domain(SHORT, WORDY, free, early, code, test=(WORDY,))}, tiny_base.tokenizer, limit
    ).values()
    assert [record.example for record in fitted.train] == [SHORT, free, early]
    assert fitted.left_out == {ANSWER_CUT: 2}
    assert [record.example for record in fitted.test] == [WORDY]  # is not taught, only asked
    assert fitted.num_cut == 3  # free, early, and the test example
    said = notices({"math": fitted})
    assert said[0] == f"math: 2 rows left out: {ANSWER_CUT}"
    assert said[1].startswith("math: 3 of 4 responses are cut at model.max_length")
    # Data that fit are left as they are.
    whole = domain(SHORT, WORDY)
    assert fit({"math": whole}, tiny_base.tokenizer, 1000) == {"math": whole}
    assert notices({"math": whole}) == []


def test_where_only_the_end_of_turn_is_cut_nothing_is_lost(tiny_base: Base):
    code = replace(SHORT, answer="", tests="assert True")
    prompt, total = tokens(tiny_base, code)
    (fitted,) = fit({"math": domain(code)}, tiny_base.tokenizer, total - 2).values()
    assert (len(fitted.train), fitted.num_cut, fitted.left_out) == (1, 2, {})
    assert prompt < total - 2


def test_too_long_prompts_are_named_by_file_and_line_or_left_out(tiny_base: Base):
    long = replace(SHORT, context="word " * 300)
    limit = tokens(tiny_base, WORDY)[1]
    data = {"math": domain(SHORT, long, WORDY, long, test=(SHORT, long))}
    with pytest.raises(UserError) as error:
        fit(data, tiny_base.tokenizer, limit)
    said = str(error.value)
    assert f"math.jsonl:2, math.jsonl:4, domain math: a prompt of {tokens(tiny_base, long)[0]} tokens" in said
    assert f"model.max_length = {limit}" in said and "data.skip_bad_rows = true" in said
    (fitted,) = fit(data, tiny_base.tokenizer, limit, skips_long=True).values()
    assert [record.example for record in fitted.train] == [SHORT, WORDY]
    assert [record.example for record in fitted.test] == [SHORT]
    assert fitted.left_out == {TOO_LONG: 3}
    with pytest.raises(UserError, match=r"domain 'math' has no example to train on .*1 prompt longer"):
        fit({"math": domain(long)}, tiny_base.tokenizer, limit, skips_long=True)


def test_lengths_are_those_of_the_models_own_tokens(tiny_base: Base):
    lengths, _ = measure(domain(SHORT, WORDY), tiny_base.tokenizer, 100)
    (prompt, short), (_, wordy) = tokens(tiny_base, SHORT), tokens(tiny_base, WORDY)
    assert summarize_lengths(lengths, wordy - 1) == {
        "mean_prompt": prompt,
        "longest_prompt": prompt,
        "mean_response": (short + wordy) / 2 - prompt,
        "longest_response": wordy - prompt,
        "num_too_long": 0,
        "num_cut": 1,
        "num_losing_truth": 1,
    }
    assert summarize_lengths(lengths, prompt)["num_too_long"] == 2


def test_the_command_shows_lengths_and_what_would_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import json

    from fedsdr.cli import main

    rows = [{"instruction": f"{n} * 7?", "output": f"It is {7 * n}.", "answer": 7 * n} for n in range(4)]
    rows[1]["output"] = "Well, " * 300 + rows[1]["output"]
    rows[2]["input"] = "word " * 900
    for part in ("train", "test"):
        path = tmp_path / "math" / f"{part}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["recipes/smoke.toml", f"data.root={tmp_path}", "model.max_length=256", "partition.num_clients=1"]
    with pytest.raises(SystemExit) as done:
        main(["data", *words, "data.num_train=0", "data.num_test=0"])
    assert not done.value.code
    shown = capsys.readouterr().out
    assert (
        "2 responses are cut at model.max_length = 256, 2 of them before their ground truth, and 2" in shown
    )
    assert f"math: 1 rows left out: {ANSWER_CUT}" in shown
    assert "2 training, 3 test examples" in shown
