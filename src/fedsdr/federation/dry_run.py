"""`fedsdr run --dry-run`: check a recipe and estimate its cost. Nothing is trained or written.

No weights are loaded: shapes come from the model's configuration (`model.meta`). Unavailable parts (a data
set, a configuration or a tokenizer on the hub) are listed, and the estimate continues with what is known.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedsdr.config import Model, Settings
from fedsdr.data.conversation import Conversation, encode_all
from fedsdr.data.lengths import fit
from fedsdr.data.partition import ClientData, partition
from fedsdr.data.sources import Domain, load_domains
from fedsdr.data.summary import check_consistent, notices, program_notices
from fedsdr.errors import Unreachable
from fedsdr.federation.disk import disk
from fedsdr.federation.estimate import ClientTexts, Part, memory, messages, sizes_of
from fedsdr.federation.gradient_checkpointing import resolve_for
from fedsdr.federation.preflight import check_alone, check_budget, check_counts, check_rewritten
from fedsdr.loggers import open_loggers
from fedsdr.methods import METHODS
from fedsdr.model.meta import load_skeleton
from fedsdr.report.events import data_size
from fedsdr.report.sheets import Sheet

CAPTIONS = {
    "memory": "Memory of the training machine, approximate",
    "messages": "Bytes of the adapter in messages, exact; Flower adds less than 2 kB to each",
    "disk": "Bytes of adapters on disk; the total on one machine; in a deployment each machine has its part",
}


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run."""

    known: tuple[str, ...]
    """Results of the checks."""
    unknown: tuple[str, ...]
    """What could not be checked or loaded, and why, or which assumption replaces it."""
    parts: tuple[Part, ...]

    def __getitem__(self, name: str) -> float:
        """Bytes of the line with this name, such as "up" or "peak"."""
        return next(part.num_bytes for part in self.parts if part.name == name)


def dry_run(settings: Settings) -> Estimate:
    """Check settings, data and the model's configuration, and estimate memory and bytes of a run.

    Raises:
        UserError: For every error of the run itself that shows without the weights; apart from its folder and
            the disk, which may be another machine's.
    """
    check_alone(settings)
    open_loggers(settings)  # only those that are installed
    settings = settings.model_copy(update={"model": resolve_for(settings)})
    known: list[str] = []
    unknown: list[str] = []
    parts: list[Part] = []
    domains = _read_data(settings, known, unknown)
    skeleton, tokenizer = _read_model(settings.model, known, unknown)
    data = _divide(settings, domains, tokenizer, known) if domains else None
    if skeleton is not None:
        sizes = sizes_of(skeleton, settings.adapter)
        clients = _in_tokens(settings, data, tokenizer, unknown)
        if clients:
            known += (left := _to_rewrite(settings, data, clients))
            parts = memory(settings, sizes, clients, torch.cuda.is_available(), rewrites=bool(left))
            parts += messages(settings, sizes, len(clients))
            parts += disk(settings, sizes.shared, len(clients))
    return Estimate(tuple(known), tuple(unknown), tuple(parts))


def sheets(estimate: Estimate) -> list[Sheet]:
    """Tables of an estimate, one per section."""
    sections = dict.fromkeys(part.section for part in estimate.parts)
    return [
        Sheet(
            CAPTIONS[section],
            "lrl",
            (section, "estimate", "counted"),
            tuple((p.name, data_size(p.num_bytes), p.how) for p in estimate.parts if p.section == section),
            (),
            num_summary=1,
        )
        for section in sections
    ]


def _read_data(settings: Settings, known: list[str], unknown: list[str]) -> dict[str, Domain] | None:
    """All domains; None if some are unavailable. The others are checked."""
    data, id_column = settings.data, settings.partition.id_column
    domains: dict[str, Domain] = {}
    if data.root or not data.sources:
        domains = load_domains(data, id_column)
    else:
        for name in data.domains or sorted(source.domain for source in data.sources):
            try:
                domains |= load_domains(data.model_copy(update={"domains": (name,)}), id_column)
            except Unreachable as reason:
                unknown.append(f"domain {name}: its columns could not be checked; {reason}")
    known += [f"domain {name}: {len(domain.train)} training examples" for name, domain in domains.items()]
    check_consistent(domains)
    return None if unknown else domains


def _divide(
    settings: Settings,
    domains: dict[str, Domain],
    tokenizer: PreTrainedTokenizerBase | None,
    known: list[str],
) -> list[ClientData]:
    """The clients' examples, except those that `model.max_length` excludes."""
    check_rewritten(settings, domains)
    if tokenizer is not None:
        domains = fit(domains, tokenizer, settings.model.max_length, settings.data.skip_bad_rows)
    known += [*notices(domains), *program_notices(domains, settings.runs_programs)]
    clients = partition(domains, settings)
    names = [client.id for client in clients]
    check_counts(settings, names)
    check_budget(settings, names)
    num_train, num_test = sum(len(c.train) for c in clients), sum(len(c.test) for c in clients)
    known.append(f"{len(clients)} clients: {num_train} training and {num_test} test examples")
    return clients


def _read_model(
    model: Model, known: list[str], unknown: list[str]
) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase | None]:
    try:
        skeleton, tokenizer = load_skeleton(model)
    except Unreachable as reason:
        unknown.append(f"memory and bytes; {reason}")
        return None, None
    num = sum(value.numel() for value in skeleton.parameters())
    known.append(f"model: {model.name}, {skeleton.config.model_type}, {num / 1e6:,.1f} M parameters")
    return skeleton, tokenizer


def _to_rewrite(settings: Settings, data: list[ClientData] | None, clients: list[ClientTexts]) -> list[str]:
    """Describe how many tokens will be generated before round 1."""
    parts: list[Literal["train", "test"]] = ["train"] * METHODS[settings.method].needs_rewritings
    parts += ["test"] * settings.eval.rewritings
    lengths = [text.num_response_tokens for c in clients for part in parts for text in getattr(c, part)]
    if data:
        given = [example.distilled for c in data for part in parts for example in getattr(c, part)]
        lengths = [length for length, text in zip(lengths, given, strict=True) if not text]
    distill, num = settings.distill, len(lengths)
    writer = f"{distill.served_name} at {distill.url}" if distill.url else "this model"
    upto = "" if distill.only == "all" else "up to "
    return [
        f"rewriting by {writer}: {upto}{num:,} responses of {sum(lengths):,} tokens; about as many tokens to"
        f" write for each prompt that is tried, {num * distill.max_new_tokens:,} at most"
    ] * bool(lengths)


def _in_tokens(
    settings: Settings,
    data: list[ClientData] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    unknown: list[str],
) -> list[ClientTexts]:
    """The clients' conversations; if unknown, the longest allowed, half of it response."""
    longest = settings.model.max_length
    if data is not None and tokenizer is not None:
        return [
            ClientTexts(*(encode_all(tokenizer, some, longest) for some in (c.train, c.test))) for c in data
        ]
    text = Conversation((0,) * longest, longest // 2)
    unknown.append(f"lengths; assuming {longest} tokens for each conversation, half of them response")
    if data is not None:
        return [ClientTexts([text] * len(c.train), [text] * len(c.test)) for c in data]
    num_domains = len(settings.data.domains or settings.data.sources)
    by_domain = settings.partition.kind == "domain"
    num_clients = settings.partition.num_clients or (num_domains if by_domain else 0)
    if METHODS[settings.method].is_pooled:
        num_clients = 1
    if not num_clients or not settings.data.num_train or not settings.data.num_test:
        unknown.append(
            "how many examples and clients; set data.num_train, data.num_test, partition.num_clients"
        )
        return []
    num_train, num_test = (
        num_domains * n // num_clients for n in (settings.data.num_train, settings.data.num_test)
    )
    return [ClientTexts([text] * num_train, [text] * num_test)] * num_clients
