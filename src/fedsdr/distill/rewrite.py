"""Self-distillation: D_raw = {(c, x, y)} becomes D_dist = {(c, x, y~)} at each client.

Done once before round 1, by the base model, in this process or on the client's own server (`remote`). The
rewritings are saved in the client's cache in whole batches, so a stopped run resumes where it stopped, and no
rewriting is generated twice. A rewriting that fails a check falls back to the true response, counted by
reason.

Paper: FedSDR, section 3 (FedSD); checks after SDFT (Yang et al., ACL 2024), stricter with `verify`.
Differs: the paper does not say what happens to empty, cut-off or refusing rewritings.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fedsdr import __version__
from fedsdr.config import Distill
from fedsdr.data.batching import by_length
from fedsdr.data.checks import is_refusal, is_self_referring, lost
from fedsdr.data.conversation import encode_prompt
from fedsdr.data.examples import Example, as_record
from fedsdr.data.lengths import loses_truth
from fedsdr.data.thinking import is_unclosed
from fedsdr.distill.likelihood_check import express_label
from fedsdr.distill.prompts import VERSION, rewriting_turns
from fedsdr.distill.rewriting import Rewriting
from fedsdr.distill.select import likelier, select
from fedsdr.methods import GIVEN
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import Base
from fedsdr.model.chat_template import as_taken
from fedsdr.model.generation import Answer, Sampling, generate
from fedsdr.model.remote import ask_server
from fedsdr.plugins import FUNCTIONS
from fedsdr.progress import here, say, track, within
from fedsdr.rows import Rewriter
from fedsdr.seeds import seed_for
from fedsdr.storage import Event, append_lines, content_hash, locked, read_lines, rewrite_lines

TOGETHER = 8
"""Batches of several clients that are saved together; a killed process loses at most these."""


def rewrite(
    model: LoraModel,
    examples: Sequence[Example],
    distill: Distill,
    longest: int,
    folder: Path,
) -> list[Rewriting]:
    """Rewrite the responses of the examples.

    With checks on, the prompts are tried in order until one passes; otherwise only the first is used. A
    rewriting supplied with the data is checked in the same way, and replaces the model's. Examples not
    selected by `distill.only` keep the true response.

    Args:
        model: The teacher is its base without adapters, which is the global model before round 1. If
            `distill.url` is set, the teacher is the server's model; this model then provides only the
            tokenizer and, with `answer+likelihood`, likelihoods.
        examples: (c, x, y) of one client.
        distill: Prompts, checks and sampling.
        longest: Longest rewriting prompt in tokens; longer ones fall back. One response of thousands of words
            in a batch would need more memory than the rest of the run.
        folder: Cache of the rewritings; runs may share it.

    Returns:
        One `Rewriting` for each example, in the same order.
    """
    (rewritings,) = rewrite_together(model, [(examples, folder)], distill, longest)
    return rewritings


def rewrite_together(
    model: LoraModel, clients: Sequence[tuple[Sequence[Example], Path]], distill: Distill, longest: int
) -> list[list[Rewriting]]:
    """Rewrite the responses of several clients; same rewritings and files as `rewrite` for each client.

    Prompts of different clients share batches if that changes no answer (`Base.has_independent_rows`). The
    few examples left for later tries would otherwise take nearly as long as a full batch at each client.
    """
    tries = [_tries(model, examples, distill, longest) for examples, _ in clients]
    asked: dict[int, tuple[str, list[Example]]] = {}
    rewritings: dict[int, list[Rewriting]] = {}

    def go_on(number: int, answers: list[Answer | None] | None) -> None:
        asked.pop(number, None)
        try:
            asked[number] = tries[number].send(answers)  # type: ignore[arg-type]  # None starts the generator
        except StopIteration as end:
            rewritings[number] = end.value

    for number in range(len(clients)):
        go_on(number, None)
    while asked:  # all clients are at the same prompt
        prompt = next(iter(asked.values()))[0]
        parts = [(examples, clients[number][1]) for number, (_, examples) in asked.items()]
        with within(f"rewriting ({prompt})"):
            answers = _ask(model, parts, prompt, distill, longest)
        for number, answered in zip([*asked], answers, strict=True):
            go_on(number, answered)
    return [rewritings[number] for number in range(len(clients))]


def _tries(
    model: LoraModel, examples: Sequence[Example], distill: Distill, longest: int
) -> Generator[tuple[str, list[Example]], list[Answer | None], list[Rewriting]]:
    """Yield each prompt in order with the examples still to be rewritten, and receive the answers."""
    prompts = distill.prompts[:1] if distill.verify == "off" else distill.prompts
    first: dict[int, str | None] = {}
    taken: dict[int, Rewriting] = {}
    chosen = select(model, examples, distill, longest)
    reasons = dict.fromkeys(set(range(len(examples))).difference(chosen), "not chosen")

    def check(indices: Sequence[int], answers: Sequence[Answer | None], prompt: str) -> list[int]:
        """Accept the answers that pass; return the remaining examples."""
        new = dict(zip(indices, answers, strict=True))
        some = {index: fault(examples[index], answer, distill.verify) for index, answer in new.items()}
        passed = {index: answer.text for index, answer in new.items() if answer and not some[index]}
        if distill.verify == "answer+likelihood":
            express = express_label(
                model, [examples[index] for index in passed], list(passed.values()), distill.batch_size
            )
            some |= {i: "unlikely label" for i, is_so in zip(passed, express, strict=True) if not is_so}
        if distill.only == "likelier":
            passed = {index: text for index, text in passed.items() if not some[index]}
            verdicts = likelier(
                model,
                [examples[index] for index in passed],
                list(passed.values()),
                distill.batch_size,
                longest,
            )
            some |= {i: "not likelier" for i, is_so in zip(passed, verdicts, strict=True) if not is_so}
        for index, answer in new.items():
            text = answer.text if answer else None
            first.setdefault(index, text)
            if text and not some[index]:
                taken[index] = Rewriting(first[index], text, prompt, "")
        reasons.update(some)
        return [index for index in indices if some[index]]

    given = [index for index in chosen if examples[index].distilled]
    check(given, [Answer(examples[index].distilled, True, 0) for index in given], GIVEN)
    waiting = [index for index in chosen if not examples[index].distilled]
    for prompt in prompts if waiting else ():
        answers = yield prompt, [examples[index] for index in waiting]
        if not (waiting := check(waiting, answers, prompt)):
            break
    for index in reasons.keys() - taken.keys():
        taken[index] = Rewriting(first.get(index), examples[index].response, "", reasons[index])
    return [taken[index] for index in range(len(examples))]


def fall_back_where_cut(
    tokenizer: Any, examples: Sequence[Example], rewritings: Sequence[Rewriting], max_length: int
) -> list[Rewriting]:
    """Use the true response if `max_length` cuts off the ground truth of a rewriting.

    The rest of such a rewriting would teach the model to stop before the answer.
    """
    return [
        replace(new, distilled=example.response, prompt="", fallback="cut off")
        if new.prompt and loses_truth(tokenizer, example, new.distilled, max_length)
        else new
        for example, new in zip(examples, rewritings, strict=True)
    ]


def fault(example: Example, answer: Answer | None, verify: str) -> str:
    """Why a rewriting is rejected: one of `FAULTS`, or "" if it passes. None: the prompt is too long."""
    if answer is None:
        return "too long"
    if not answer.text:
        return "empty"
    if is_unclosed(answer.text):
        return "unclosed thinking"
    if not answer.finished:
        return "cut off"
    if is_refusal(answer.text):
        return "refusal"
    if is_self_referring(answer.text, (example.instruction, example.context, example.response)):
        return "self-reference"
    if verify != "off" and (missing := lost(example, answer.text)):
        return f"lost {missing[0]}"
    return ""


def _ask(
    model: LoraModel,
    parts: Sequence[tuple[Sequence[Example], Path]],
    prompt: str,
    distill: Distill,
    longest: int,
) -> list[list[Answer | None]]:
    """Answers to one rewriting prompt for each client, taken from its cache where available."""
    saved = [_Saved(model.base, examples, prompt, distill, longest, folder) for examples, folder in parts]
    with ExitStack() as stack:
        for path in sorted({one.path for one in saved}):  # another run may be writing the same file
            stack.enter_context(locked(path))
        # Two clients with equal data and a shared cache share one file.
        missing = [
            (one, batch) for one in {one.path: one for one in saved}.values() for batch in one.missing()
        ]
        is_shared = missing and len(saved) > 1 and not distill.url and model.base.has_independent_rows
        # The server receives the next batch while it still generates the last answers of the current one.
        size = max(1, len(missing)) if distill.url else TOGETHER if is_shared else 1
        groups = [missing[start : start + size] for start in range(0, len(missing), size)]
        answers = chain.from_iterable(_answers(model, group, prompt, distill) for group in groups)
        stack.enter_context(model.inference(()))
        begun, num_read, num_written = time.monotonic(), 0, 0
        for one, batch in track(missing, "examples", [len(batch) for _, batch in missing]):
            new = list(islice(answers, len(batch)))
            one.append([one.hashes[index] for index in batch], new)
            num_read += sum(len(one.prompts[index]) for index in batch)
            num_written += sum(answer.num_tokens for answer in new)
        if missing and distill.url:
            say(
                f"{here()}: {distill.served_name} read {num_read:,} tokens, as counted by this model, and"
                f" wrote {num_written:,} in {time.monotonic() - begun:.0f} s"
            )
        return [one.answers() for one in saved]


def _answers(
    model: LoraModel, group: Sequence[tuple["_Saved", list[int]]], prompt: str, distill: Distill
) -> Iterator[Answer]:
    """Request the answers to some batches, in order."""
    asked = [(one, index) for one, batch in group for index in batch]
    seeds = [seed_for(distill.seed, "distill", prompt, one.hashes[index]) for one, index in asked]
    if distill.url:
        return ask_server([one.turns[index] for one, index in asked], distill, seeds)
    sampling = Sampling(distill.max_new_tokens, distill.temperature, distill.top_p)
    prompts = [one.prompts[index] for one, index in asked]
    return iter(generate(model.base, prompts, sampling, seeds, distill.batch_size))


class _Saved:
    """One client's saved answers to one rewriting prompt; None if the prompt is too long.

    Batches are planned from the full list. The name of the cache file is a hash of everything that determines
    the answers to the last bit, including the plan: in bfloat16, the batch that contains a prompt can change
    its answer. For a server's answers only the served model name is known, and enters the hash.
    """

    def __init__(
        self,
        base: Base,
        examples: Sequence[Example],
        prompt: str,
        distill: Distill,
        longest: int,
        folder: Path,
    ) -> None:
        sampling = Sampling(distill.max_new_tokens, distill.temperature, distill.top_p)
        self.hashes = [content_hash(as_record(example)) for example in examples]
        engine = ["server", distill.served_name, distill.template_args] if distill.url else base.fingerprint
        self.turns = [as_taken(base.tokenizer, rewriting_turns(prompt, example)) for example in examples]
        wording = self.turns if prompt in FUNCTIONS[Rewriter] else VERSION  # a plugin's prompt has no version
        key = content_hash(
            __version__, base.identity, engine, prompt, wording, asdict(sampling), distill.seed,
            distill.batch_size, longest, self.hashes,
        )  # fmt: skip
        self.path = folder / f"{prompt}-{key}.jsonl"
        self.prompts = [encode_prompt(base.tokenizer, some) for some in self.turns]
        fitting = [index for index, ids in enumerate(self.prompts) if len(ids) <= longest]
        batches = by_length([len(self.prompts[index]) for index in fitting], distill.batch_size)
        self.plan = [[fitting[place] for place in batch] for batch in batches]

    def missing(self) -> list[list[int]]:
        """Batches missing from the file; incomplete batches are removed from it."""
        records: list[Event] = []
        num_whole = 0
        found = iter(read_lines(self.path))
        for batch in self.plan:
            part = list(islice(found, len(batch)))
            if [record["example"] for record in part] != [self.hashes[index] for index in batch]:
                break
            records += part
            num_whole += 1
        if num_whole < len(self.plan) and self.path.exists():
            rewrite_lines(self.path, records)
        return self.plan[num_whole:]

    def append(self, hashes: Sequence[str], answers: Sequence[Answer]) -> None:
        """Save the answers of a batch."""
        pairs = zip(hashes, answers, strict=True)
        append_lines(self.path, [{"example": value, **asdict(answer)} for value, answer in pairs])

    def answers(self) -> list[Answer | None]:
        """All answers, in the order of the examples."""
        by_place = dict(zip(chain.from_iterable(self.plan), read_lines(self.path), strict=True))
        return [
            Answer(record["text"], record["finished"], record["num_tokens"]) if record else None
            for record in map(by_place.get, range(len(self.prompts)))
        ]
