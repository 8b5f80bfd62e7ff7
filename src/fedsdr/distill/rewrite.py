"""Self-distillation: D_raw = {(c, x, y)} becomes D_dist = {(c, x, y~)} at each client.

Done once before round 1, by the base model, in this process or at the client's own server (`remote`).
What the teacher wrote is saved in the client's cache by whole batches, so a stopped run goes on where it
was, and the same rewriting is never paid for twice. A rewriting that cannot be taught falls back to the
true response, counted by reason.

Paper: FedSDR, section 3 (FedSD); checks after SDFT (Yang et al., ACL 2024), stricter with `verify`.
Differs: the paper does not say what happens to empty, cut-off or refusing rewritings.
"""

from collections.abc import Sequence
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
from fedsdr.model.generation import Answer, Sampling, generate
from fedsdr.model.remote import ask_server
from fedsdr.model.template import as_taken
from fedsdr.progress import track, within
from fedsdr.seeds import seed_for
from fedsdr.storage import Event, append_lines, content_hash, locked, read_lines, rewrite_lines


def rewrite(
    model: LoraModel,
    examples: Sequence[Example],
    distill: Distill,
    longest: int,
    folder: Path,
) -> list[Rewriting]:
    """Rewrite the responses of the examples.

    With checks on, the prompts are tried in order until one passes; without, the first alone. A rewriting
    that comes with the data is checked alike; the model is not asked for another. Of what
    `distill.only` does not choose, the true response stays.

    Args:
        model: The teacher is its base without adapters, as the global model is before round 1. Where
            `distill.url` is set, the server's model is; of this one only the tokenizer is used, and
            with `answer+likelihood` its likelihoods.
        examples: (c, x, y) of one client.
        distill: Prompts, checks and sampling.
        longest: Longest rewriting prompt in tokens; what is longer falls back. One response of
            thousands of words in a batch would ask for more memory than the rest of the run.
        folder: Where rewritings are saved; runs may share it.

    Returns:
        One `Rewriting` for each example, in their order.
    """
    prompts = distill.prompts[:1] if distill.verify == "off" else distill.prompts
    first: dict[int, str | None] = {}
    taken: dict[int, Rewriting] = {}
    chosen = select(model, examples, distill, longest)
    reasons = dict.fromkeys(set(range(len(examples))).difference(chosen), "not chosen")

    def check(indices: Sequence[int], answers: Sequence[Answer | None], prompt: str) -> list[int]:
        """Take what passes; return the rest."""
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
        with within(f"rewriting ({prompt})"):
            answers = _ask(model, [examples[index] for index in waiting], prompt, distill, longest, folder)
        if not (waiting := check(waiting, answers, prompt)):
            break
    for index in reasons.keys() - taken.keys():
        taken[index] = Rewriting(first.get(index), examples[index].response, "", reasons[index])
    return [taken[index] for index in range(len(examples))]


def fall_back_where_cut(
    tokenizer: Any, examples: Sequence[Example], rewritings: Sequence[Rewriting], max_length: int
) -> list[Rewriting]:
    """Take the true response where `max_length` cuts off the ground truth of a rewriting.

    What remains of it would teach to stop before the answer.
    """
    return [
        replace(new, distilled=example.response, prompt="", fallback="cut off")
        if new.prompt and loses_truth(tokenizer, example, new.distilled, max_length)
        else new
        for example, new in zip(examples, rewritings, strict=True)
    ]


def fault(example: Example, answer: Answer | None, verify: str) -> str:
    """Why a rewriting cannot be taught: one of `FAULTS`, or "" if it can. None: too long a prompt."""
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
    if is_self_referring(answer.text):
        return "self-reference"
    if verify != "off" and (missing := lost(example, answer.text)):
        return f"lost {missing[0]}"
    return ""


def _ask(
    model: LoraModel,
    examples: Sequence[Example],
    prompt: str,
    distill: Distill,
    longest: int,
    folder: Path,
) -> list[Answer | None]:
    """Answers to one rewriting prompt, from the cache as far as it goes; None where it is too long.

    The batches are planned from the full list. The cache file's name is a hash of all that
    determines the answers to the last bit, the plan included: in bfloat16 the batch that a prompt
    is in can change its answer. Of a server's answers it holds what is known of it, the served name.
    """
    base = model.base
    sampling = Sampling(distill.max_new_tokens, distill.temperature, distill.top_p)
    hashes = [content_hash(as_record(example)) for example in examples]
    engine = ["server", distill.served_name, distill.template_args] if distill.url else base.fingerprint
    key = content_hash(
        __version__, base.identity, engine, prompt, VERSION, asdict(sampling), distill.seed,
        distill.batch_size, longest, hashes,
    )  # fmt: skip
    path = folder / f"{prompt}-{key}.jsonl"
    turns = [as_taken(base.tokenizer, rewriting_turns(prompt, example)) for example in examples]
    prompts = [encode_prompt(base.tokenizer, some) for some in turns]
    fitting = [index for index, ids in enumerate(prompts) if len(ids) <= longest]
    batches = by_length([len(prompts[index]) for index in fitting], distill.batch_size)
    plan = [[fitting[place] for place in batch] for batch in batches]

    with locked(path):  # another run may be writing the same
        # Whole batches, as far as they are the plan's.
        records: list[Event] = []
        num_whole = 0
        found = iter(read_lines(path))
        for batch in plan:
            part = list(islice(found, len(batch)))
            if [record["example"] for record in part] != [hashes[index] for index in batch]:
                break
            records += part
            num_whole += 1
        if path.exists():
            rewrite_lines(path, records)
        with model.inference(()):
            missing = plan[num_whole:]
            for batch in track(missing, "examples", [len(batch) for batch in missing]):
                seeds = [seed_for(distill.seed, "distill", prompt, hashes[index]) for index in batch]
                if distill.url:
                    answers = ask_server([turns[index] for index in batch], distill, seeds)
                else:
                    answers = generate(base, [prompts[index] for index in batch], sampling, seeds)
                new = [
                    {"example": hashes[index], **asdict(answer)}
                    for index, answer in zip(batch, answers, strict=True)
                ]
                append_lines(path, new)
                records += new
    by_place = dict(zip(chain.from_iterable(plan), records, strict=True))
    return [
        Answer(record["text"], record["finished"], record["num_tokens"]) if record else None
        for record in map(by_place.get, range(len(examples)))
    ]
