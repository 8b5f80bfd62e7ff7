"""Win rates: a judge model compares the answers of two models to open prompts.

Input: prompts, two answers to each, a `Judge`. Output: records of wins, ties and losses by domain, and of the
judge's reliability: how often its verdict survives swapping the answers, and how often it prefers the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsdr.data.batching import in_batches
from fedsdr.data.conversation import prompt_turns
from fedsdr.data.examples import Example
from fedsdr.model.remote import Judge, ask_server
from fedsdr.progress import within
from fedsdr.seeds import seed_for
from fedsdr.stats import wilson
from fedsdr.storage import Event

WORDS = {"a": "first", "b": "second", "tie": "tie"}
"""Readable verdict, in lower case -> its meaning."""
QUESTION = """Two answers to one request follow. Which one is better: more correct, helpful and to the point?

Request:
{request}

Answer A:
{first}

Answer B:
{second}

Reply with one word and nothing else: A, B or tie."""


def ask_judge(prompts: Sequence[str], judge: Judge) -> list[str]:
    """Ask the judge, `judge.num_requests` prompts at a time.

    Args:
        prompts: One user turn each.
        judge: The judge.

    Returns:
        Its answers in lower case, without surrounding white space and a final full stop.

    Raises:
        UserError: As for `ask_server`.
    """

    def of_batch(some: list[str]) -> Iterator[str]:
        seeds = [seed_for(0, "judge", prompt) for prompt in some]
        for answer in ask_server([[{"role": "user", "content": prompt}] for prompt in some], judge, seeds):
            yield answer.text.strip().removesuffix(".").casefold()

    return in_batches(prompts, [len(prompt) for prompt in prompts], judge.num_requests, of_batch, "questions")


@dataclass(frozen=True)
class _Pair:
    """The judge's verdicts on one prompt, with a's answer first and with b's answer first."""

    domain: str
    first: str | None
    """"first", "second" or "tie", by position; None: unreadable."""
    second: str | None
    is_judged: bool = True

    @property
    def is_readable(self) -> bool:
        return self.first is not None and self.second is not None

    @property
    def agrees(self) -> bool:
        """Whether both orders prefer the same answer, or both are ties."""
        return (self.first, self.second) in (("first", "second"), ("second", "first"), ("tie", "tie"))


def win_rate(
    prompts: Sequence[Example],
    answers_a: Sequence[str],
    answers_b: Sequence[str],
    judge: Judge,
    a: str = "a",
    b: str = "b",
) -> list[Event]:
    """Compare two models' answers, each pair in both orders, since judges favour a position.

    A prompt is a win for a if both orders prefer its answer, a loss if both prefer b's, otherwise a tie.
    Equal answers are a tie without asking. A prompt with a verdict other than "A", "B" or "tie" is unreadable
    and excluded from these counts.

    After: Zheng et al., "Judging LLM-as-a-judge with MT-bench and Chatbot Arena", NeurIPS 2023, section
    3.4: both orders, and a win only if they agree.

    Args:
        prompts: The examples; their true responses are not shown.
        answers_a: One answer for each prompt.
        answers_b: The other model's.
        judge: The judge.
        a: Name of the first model.
        b: Name of the second.

    Returns:
        A record for each domain, and if there are several for "all", pooled over prompts: `num` readable
        prompts; their `wins`, `ties` and `losses` for a; `num_unreadable` others; `rate` = (wins + ties / 2)
        / num; `agreement`, the share of prompts whose two orders gave one verdict, and `first_rate`, the
        share of first positions in verdicts that prefer an answer, both over judged, readable prompts. `low`
        and `high` are Wilson's 95 % interval of the rate, which is conservative: ties vary less than wins and
        losses. None if nothing was counted.

    Raises:
        UserError: As for `ask_server`.
    """
    rows = [row for row in range(len(prompts)) if answers_a[row].strip() != answers_b[row].strip()]
    orders = (answers_a, answers_b), (answers_b, answers_a)
    questions = [_question(prompts[row], one[row], other[row]) for one, other in orders for row in rows]
    with within(f"judging {a} against {b}"):
        said = [WORDS.get(text) for text in ask_judge(questions, judge)]
    pairs = [_Pair(example.domain, "tie", "tie", is_judged=False) for example in prompts]
    for row, first, second in zip(rows, said[: len(rows)], said[len(rows) :], strict=True):
        pairs[row] = _Pair(prompts[row].domain, first, second)
    domains = sorted({example.domain for example in prompts})
    groups = {domain: [pair for pair in pairs if pair.domain == domain] for domain in domains}
    if len(groups) > 1:
        groups["all"] = pairs
    return [{"a": a, "b": b, "domain": domain} | _counts(found) for domain, found in groups.items()]


def _question(example: Example, first: str, second: str) -> str:
    request = "\n\n".join(turn["content"] for turn in prompt_turns(example))
    return QUESTION.format(request=request, first=first, second=second)


def _counts(pairs: Sequence[_Pair]) -> Event:
    readable = [pair for pair in pairs if pair.is_readable]
    num = len(readable)
    wins = sum((pair.first, pair.second) == ("first", "second") for pair in readable)
    losses = sum((pair.first, pair.second) == ("second", "first") for pair in readable)
    ties = num - wins - losses
    rate = (wins + ties / 2) / num if num else None
    low, high = wilson(rate, num) if rate is not None else (None, None)
    judged = [pair for pair in readable if pair.is_judged]
    named = [place for pair in judged for place in (pair.first, pair.second) if place != "tie"]
    return {
        "num": num,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "num_unreadable": len(pairs) - num,
        "rate": rate,
        "low": low,
        "high": high,
        "agreement": sum(pair.agrees for pair in judged) / len(judged) if judged else None,
        "first_rate": named.count("first") / len(named) if named else None,
    }
