"""`fedsdr probe`: predict at each client whether rewriting helps, in minutes; nothing is trained or written.

A sample of each client's training examples is rewritten according to the recipe. Test examples are not used.
The rule, and its evaluation on completed trainings, are in `analysis.probe`.
"""

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedsdr.analysis.alignment import LEAST_WORDS, text_alignment
from fedsdr.analysis.gradients import gradient_alignment
from fedsdr.analysis.probe import MOST_WORDS, advice, evaluate_rule, read_cases
from fedsdr.config import Settings
from fedsdr.data.checks import lost, num_words
from fedsdr.data.conversation import Conversation, encode_all
from fedsdr.data.examples import Example
from fedsdr.data.files import file_rows
from fedsdr.distill.rewrite import fall_back_where_cut, rewrite_together
from fedsdr.distill.rewriting import Rewriting
from fedsdr.errors import UserError
from fedsdr.federation.client_context import allowed, data_of
from fedsdr.federation.model_cache import model_of
from fedsdr.model.adapters import LoraModel
from fedsdr.model.loss import mean_losses
from fedsdr.progress import say
from fedsdr.report.sheets import Sheet, grouped, number, signed, signed_interval, with_interval
from fedsdr.seeds import seed_for
from fedsdr.stats import paired, wilson
from fedsdr.storage import Event

NEVER_GAINED = (
    "In none of 32 cases that were trained did rewriting gain on true responses (docs/probe.md), so it is"
    " never advised. What else these numbers predict is not known: compare on validation examples."
)


def probe(settings: Settings, num: int) -> Event:
    """Probe every client of a recipe.

    Args:
        settings: Settings of the planned run; its method does not matter.
        num: Training examples per client, sampled by `run.seed`; a client with fewer uses all.

    Returns:
        "records", one for each client: client, domain, num; passed, suited (shares of the sample); low, high
        of suited; loss_change (nats per token, rewriting minus true response, over the rewritings that pass)
        with its interval; length_ratio of words; js, js_change, gradient, gradient_change (mean over pairs
        with the other clients; changes are rewritten minus raw, None if unavailable); advice. And
        "notes".
    """
    # Pooled methods would put all clients into one.
    # The whole sample is rewritten: examples excluded by `distill.only` would count as failed.
    distill = settings.distill.model_copy(update={"only": "all"})
    settings = settings.model_copy(update={"method": "fedsd", "distill": distill})
    model, clients = model_of(settings), data_of(settings)[1]
    samples: dict[str, list[Example]] = {}
    rewritings: dict[str, list[Rewriting]] = {}
    longest = settings.model.max_length
    with tempfile.TemporaryDirectory() as aside:
        cache = Path(settings.run.cache or aside) / "rewritings"
        for client in clients:
            draw = random.Random(seed_for(settings.run.seed, "probe", client.id))
            train = allowed(settings, client).train
            samples[client.id] = draw.sample(train, min(num, len(train)))
        pairs = [(examples, cache) for examples in samples.values()]
        found = rewrite_together(model, pairs, settings.distill, 2 * longest)
        for name, new in zip(samples, found, strict=True):
            rewritings[name] = fall_back_where_cut(model.base.tokenizer, samples[name], new, longest)
    say("comparing")
    views: dict[str, dict[str, list[Conversation]]] = {"raw": {}, "distilled": {}}
    for name, examples in samples.items():
        texts = [new.distilled for new in rewritings[name]]
        views["raw"][name] = encode_all(model.base.tokenizer, examples, longest)
        views["distilled"][name] = encode_all(model.base.tokenizer, examples, longest, texts)
    notes = [NEVER_GAINED]
    records = [
        _of_client(model, name, samples[name], rewritings[name], views, settings.eval.batch_size)
        for name in samples
    ]
    likeness = _likeness(model, samples, rewritings, views, settings, notes)
    return {"records": [record | likeness[record["client"]] for record in records], "notes": notes}


def _of_client(
    model: LoraModel,
    name: str,
    examples: Sequence[Example],
    new: Sequence[Rewriting],
    views: Mapping[str, Mapping[str, Sequence[Conversation]]],
    batch_size: int,
) -> Event:
    with model.inference(()):
        raw, distilled = (
            np.array(mean_losses(model.base, views[view][name], batch_size)) for view in ("raw", "distilled")
        )
    passed = [place for place, one in enumerate(new) if one.prompt]
    words = [(num_words(new[place].distilled), num_words(examples[place].response)) for place in passed]
    suited = [
        place
        for place, (after, before) in zip(passed, words, strict=True)
        if not lost(examples[place], new[place].distilled)
        and distilled[place] < raw[place]
        and after <= MOST_WORDS * before
    ]
    num = len(examples)
    low, high = wilson(len(suited) / num, num)
    change = paired(distilled[passed].tolist(), raw[passed].tolist()) if passed else None
    return {
        "client": name,
        "domain": ", ".join(sorted({example.domain for example in examples})),
        "num": num,
        "passed": len(passed) / num,
        "suited": len(suited) / num,
        "low": low,
        "high": high,
        "loss_change": float(np.mean(distilled[passed] - raw[passed])) if passed else None,
        "loss_change_low": change.low if change else None,
        "loss_change_high": change.high if change else None,
        "length_ratio": sum(after for after, _ in words) / max(1, sum(b for _, b in words))
        if words
        else None,
        "advice": advice(len(suited), num),
    }


def _likeness(
    model: LoraModel,
    samples: Mapping[str, Sequence[Example]],
    rewritings: Mapping[str, Sequence[Rewriting]],
    views: Mapping[str, Mapping[str, Sequence[Conversation]]],
    settings: Settings,
    notes: list[str],
) -> dict[str, Event]:
    """Similarity of each client to the others, in words and in gradients of the fresh shared adapter."""
    seed = settings.run.seed
    pairs = {
        name: [(e.response, new.distilled) for e, new in zip(some, rewritings[name], strict=True)]
        for name, some in samples.items()
    }
    # Labels have too few words to compare, and would leave the others without a value.
    wordy = {
        name: some
        for name, some in pairs.items()
        if min(sum(map(num_words, texts)) for texts in zip(*some, strict=True)) >= 4 * LEAST_WORDS
    }
    model.initialise("shared", seed_for(seed, "shared"))
    model.load_residual({})
    found: dict[str, Event] = {name: {} for name in samples}
    for key, measure, compare in (
        ("js", "js", lambda: text_alignment(wordy, seed)),
        (
            "gradient",
            "gradient_corrected",
            lambda: gradient_alignment(model, views, settings.client.batch_size, seed),
        ),
    ):
        records: list[Event] = []
        try:
            records = [record for record in compare() if record["measure"] == measure and record["b"]]
        except UserError as reason:
            notes.append(f"{measure} was not measured: {reason}.")
        for name in samples:
            own = grouped((r["view"], r["value"]) for r in records if name in (r["a"], r["b"]))
            for field, view in ((key, "raw"), (f"{key}_change", "difference")):
                values = [value for value in own.get(view, ()) if value is not None]
                found[name][field] = sum(values) / len(values) if values else None
    return found


def probe_sheet(found: Event) -> Sheet:
    """A row for each client."""
    return Sheet(
        "Rewritings of a sample of each client, before training; with 95 % intervals",
        "lrrrrrrrl",
        ("client", "n", "passed", "suited", "loss by token, change", "words, ratio",
         "divergence, change", "gradient cosine, change", "advice"),
        tuple(
            (
                r["client"],
                str(r["num"]),
                number(r["passed"], 2),
                with_interval(r, 2, "suited"),
                _change(r, "loss_change"),
                number(r["length_ratio"], 2),
                signed(r["js_change"], 2),
                signed(r["gradient_change"], 2),
                r["advice"],
            )
            for r in found["records"]
        ),
        tuple(found["records"]),
    )  # fmt: skip


def judge_cases(path: Path) -> Event:
    """Judge the rule, and each quantity, on the cases of a file (`analysis.probe.Case`).

    Raises:
        UserError: A case is malformed, or all outcomes have the same sign.
    """
    return evaluate_rule(read_cases(file_rows(path)))


def cases_sheet(found: Event) -> Sheet:
    """A row for each quantity."""
    records = found["records"]
    return Sheet(
        "How well quantities known before training predict where rewriting pays, with 95 % intervals",
        "lrrrr",
        ("quantity", "cases", "AUC", "AUC minus passed's, 99 %", "right in held-out domains"),
        tuple(
            (
                r["feature"],
                str(r["num"]),
                with_interval(r, 2, "auc"),
                _change(r, "difference"),
                number(r["held_out"], 2),
            )
            for r in records
        ),
        tuple(records),
    )


def _change(record: Event, key: str) -> str:
    interval = signed_interval(record[f"{key}_low"], record[f"{key}_high"], 2)
    return f"{signed(record[key], 2)} {interval}"
