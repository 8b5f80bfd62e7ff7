"""`fedsdr measure`: what the paper claims, measured on a run and written into its folder.

Each measurement is a file of its own, `measurements/<name>.json`, written as soon as it is made. All need the
data of all clients at one place, so they are for simulations.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from fedsdr import __version__
from fedsdr.apps.analyze import alignment, checkers, mean_difference, paradox
from fedsdr.apps.run import checked_round, read_settings
from fedsdr.apps.site import Site, close_sites, data_of, model_of, open_site
from fedsdr.apps.trained import check_identity, demand_global
from fedsdr.client.wire import Arrays
from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation
from fedsdr.distill.remote import Judge
from fedsdr.errors import UserError
from fedsdr.measure.claims import claim
from fedsdr.measure.judge import win_rate
from fedsdr.measure.paradox import REWRITING, Pair
from fedsdr.model.adapters import Adapters
from fedsdr.model.base import Base
from fedsdr.progress import say
from fedsdr.server.checkpoint import load_round, load_updates
from fedsdr.storage import Event, list_rounds, read_lines, rewrite_lines, write_json
from fedsdr.tables import COMBINATIONS, Adapter

MOST = 48
"""Training examples of a client whose gradients are taken."""
Views = dict[str, dict[str, list[Conversation]]]
"""View -> client -> conversations."""


@dataclass(frozen=True)
class Options:
    """What a run's folder does not tell."""

    nli: str = ""
    """Name or folder of an NLI cross-encoder."""
    judge: str = ""
    """Base address of an OpenAI-compatible server that judges."""
    judge_model: str = ""
    """Name of the model there."""
    against: Path | None = None
    """A run whose global model is judged beside this one's; None: the base model."""
    data: str = ""
    """Folder with the benchmarks' local data, or "hub"; empty: the run's own test examples."""
    tasks: tuple[str, ...] = ()
    """Benchmarks; empty: all that are there."""
    limit: int = 0
    """Examples of each benchmark; 0: all."""


@dataclass(frozen=True)
class Subject:
    """A run that is measured, with what it was made of."""

    folder: Path
    settings: Settings
    options: Options

    @cached_property
    def model(self) -> tuple[Base, Adapters]:
        """The base and its adapters."""
        base, adapters = model_of(self.settings)
        check_identity(self.settings, base.identity)
        adapters.load_residual({})
        return base, adapters

    @cached_property
    def sites(self) -> list[Site]:
        """All clients."""
        num = len(data_of(self.settings)[1])
        return [open_site(self.settings, number, self.folder / "clients") for number in range(num)]

    def rewritten(self) -> list[Site]:
        """All clients, with rewritings of their training responses.

        Raises:
            UserError: The method rewrites nothing.
        """
        if not all("train" in site.rewritings for site in self.sites):
            raise UserError(
                f"method = {self.settings.method} rewrites no training response; measure a run of fedsd or"
                " fedsdr"
            )
        return self.sites

    def training(self) -> Views:
        """Training conversations of all clients in both views."""
        sites = self.rewritten()
        return {view: {site.id: site.views[view] for site in sites} for view in ("raw", "distilled")}

    def tests(self) -> Views:
        """Test conversations of all clients, with true responses and with rewritings."""
        return {
            "raw": {site.id: list(site.tests.raw) for site in self.sites},
            "distilled": {site.id: list(site.tests.distilled) for site in self.sites},
        }

    def shared(self, server_round: int) -> Arrays:
        """The shared adapter of a round."""
        arrays, _ = load_round(self.folder / "server", server_round, self.settings.adapter.rank)
        return arrays


def measure(folder: Path, names: Sequence[str], options: Options) -> dict[str, Event]:
    """Make measurements of a run and write its page anew.

    Args:
        folder: A run's folder, with at least one finished round.
        names: Of `MEASUREMENTS`; none: all that the run has what is needed for.
        options: What the run's folder does not tell.

    Returns:
        Name -> measurement, as written.

    Raises:
        UserError: A name is unknown, a measurement that was asked for by name cannot be made, or none can.
    """
    from fedsdr.report.page import write_report

    if unknown := [name for name in names if name not in MEASUREMENTS]:
        raise UserError(f"measurement {unknown[0]!r} is unknown; known are {', '.join(MEASUREMENTS)}")
    settings = read_settings(folder)
    checked_round(folder, None)
    subject = Subject(folder, settings, options)
    made: dict[str, Event] = {}
    missing: list[str] = []
    try:
        for name in names or MEASUREMENTS:
            start = time.monotonic()
            say(f"measuring {name}")
            try:
                found = MEASUREMENTS[name](subject)
            except UserError as reason:
                if names:
                    raise
                say(f"  not measured: {reason}")
                missing.append(f"{name}: {reason}")
                continue
            made[name] = {
                "measure": name,
                "version": __version__,
                "command": f"fedsdr measure {folder} --only {name}",
                "seconds": time.monotonic() - start,
                **found,
            }
            write_json(folder / "measurements" / f"{name}.json", made[name])
    finally:
        close_sites()
    if not made:
        raise UserError("nothing could be measured. " + "; ".join(missing))
    write_report(folder, settings)
    return made


def _alignment(subject: Subject) -> Event:
    note = "Training responses and what is taught after fall-back."
    return alignment(_texts(subject), subject.settings.run.seed) | {"notes": [note]}


def _texts(subject: Subject) -> dict[str, list[tuple[str, str]]]:
    """Responses and what is taught instead, of every client."""
    return {
        site.id: [
            (example.response, new.distilled)
            for example, new in zip(site.data.train, site.rewritings["train"], strict=True)
        ]
        for site in subject.rewritten()
    }


def _gradients(subject: Subject) -> Event:
    from fedsdr.measure.gradients import gradient_alignment

    base, adapters = subject.model
    views = {
        view: {name: texts[:MOST] for name, texts in by_client.items()}
        for view, by_client in subject.training().items()
    }
    _load(adapters, subject.shared(0))
    settings = subject.settings
    records = gradient_alignment(base, adapters, views, settings.client.batch_size, settings.run.seed)
    note = f"At the shared adapter of round 0; at most {MOST} training examples of each client."
    verdict = claim(
        "Rewriting makes the clients pull the shared adapter one way",
        mean_difference(records, "gradient_corrected"),
        1,
        "Cosine of gradients, freed from noise, distilled minus raw:",
    )
    return {"records": records, "notes": [note], "verdicts": [verdict]}


def _transfer(subject: Subject) -> Event:
    from fedsdr.measure.transfer import loss_transfer

    base, adapters = subject.model
    settings = subject.settings
    client = settings.client.model_copy(update={"budget": "per_stage", "correction": "none"})
    records = loss_transfer(
        base,
        adapters,
        subject.training(),
        subject.tests(),
        client,
        settings.eval.batch_size,
        settings.run.seed,
    )
    work = f"{client.local_steps} steps" if client.local_steps else f"{client.local_epochs} epochs"
    note = (
        f"{work} of {client.batch_size * client.accumulation} examples at a rate of {client.learning_rate:g}."
    )
    return {"records": records, "notes": [note]}


def _map(subject: Subject) -> Event:
    from fedsdr.measure.response_map import response_map

    base, adapters = subject.model
    settings = subject.settings
    records = response_map(base, adapters, subject.training(), settings.eval.batch_size, settings.run.seed)
    return {"records": records, "notes": ["A picture, no evidence: other seeds give others."]}


def _consistency(subject: Subject) -> Event:
    from fedsdr.measure.consistency import update_consistency

    records: list[Event] = []
    for number, updates in _updates(subject):
        before = subject.shared(number - 1)
        records += [{"round": number, **record} for record in update_consistency(before, updates)]
    return {"records": records, "notes": ["Changes of the products B A of the shared adapter in one round."]}


def _survival(subject: Subject) -> Event:
    from fedsdr.measure.consistency import gain_survival

    base, adapters = subject.model
    tests = {name: texts for name, texts in subject.tests()["raw"].items() if texts}
    records: list[Event] = []
    for number, updates in _updates(subject):
        records += [
            {"round": number, **record}
            for record in gain_survival(
                base,
                adapters,
                subject.shared(number - 1),
                {name: new for name, new in updates.items() if name in tests},
                subject.shared(number),
                tests,
                subject.settings.eval.batch_size,
            )
        ]
    return {"records": records, "notes": ["Of base + shared adapter, on the client's own test examples."]}


def _benchmarks(subject: Subject) -> Event:
    from fedsdr.measure.benchmarks import run_benchmarks

    base, adapters = subject.model
    options, settings = subject.options, subject.settings
    demand_global(settings, "benchmarks are of the base and the global model")
    own = [example for site in subject.sites for example in site.tests.examples]
    last = checked_round(subject.folder, None)
    shared, residual = load_round(subject.folder / "server", last, settings.adapter.rank)
    _load(adapters, shared)
    adapters.load_residual({key: torch.from_numpy(value) for key, value in residual.items()})
    models: dict[str, tuple[Adapter, ...]] = {"base": (), "global": ("shared",)}
    records: list[Event] = []
    answers: list[Event] = []
    for model, active in models.items():
        said: list[Event] = []
        found = run_benchmarks(
            base,
            adapters,
            active,
            options.tasks,
            data={"": own, "hub": None}.get(options.data, Path(options.data)),
            limit=options.limit,
            seed=settings.run.seed,
            batch_size=settings.eval.batch_size,
            code_timeout=settings.eval.code_timeout,
            answers=said,
        )
        records += [{"model": model, **record} for record in found]
        answers += [{"model": model, **answer} for answer in said]
    rewrite_lines(subject.folder / "measurements" / "benchmark-answers.jsonl", answers)
    return {"records": records, "notes": [f"After round {last}. Every answer is in benchmark-answers.jsonl."]}


def _updates(subject: Subject) -> list[tuple[int, dict[str, Arrays]]]:
    """What the clients sent in each round.

    Raises:
        UserError: It was not kept, or the clients do not begin from what the server has.
    """
    server = subject.folder / "server"
    combination = COMBINATIONS[subject.settings.server.combination]
    if combination.is_fresh or combination.kept or combination.adds_to_base:
        raise UserError(
            f"server.combination = {subject.settings.server.combination}: clients do not begin a round from"
            " the server's factors alone, so their changes cannot be told from what it keeps"
        )
    kept = [(number, load_updates(server, number)) for number in list_rounds(server) if number]
    found = [(number, updates) for number, updates in kept if len(updates) > 1]
    if not found:
        raise UserError(
            "what the clients sent was not kept; run with server.keep_updates=true and at least two clients"
        )
    return found


def _paradox(subject: Subject) -> Event:
    """Of what the teacher wrote, before fall-back, and of what the models answer."""
    options, texts = subject.options, dict[str, list[Pair]]()
    likeness = None
    if all("train" in site.rewritings for site in subject.sites):
        texts[REWRITING] = [
            (example, new.first)
            for site in subject.sites
            for example, new in zip(site.data.train, site.rewritings["train"], strict=True)
            if new.first is not None
        ]
        likeness = alignment(_texts(subject), subject.settings.run.seed)["records"]
    for model, answers in _answers(subject).items():
        texts[f"{model} answer"] = list(answers.values())
    with_checkers = checkers(options.nli, options.judge, options.judge_model)
    return paradox(texts, with_checkers, likeness) | {
        "notes": ["Rewritings of training responses before fall-back; answers to test prompts."]
    }


def _answers(subject: Subject) -> dict[str, dict[tuple[str, int], Pair]]:
    """Model -> client and place -> test example and what the model answered, as evaluations recorded it."""
    last = subject.settings.server.num_rounds
    names = {"base": (0, "global"), "global": (last, "global"), "personalised": (last, "personalised")}
    found: dict[str, dict[tuple[str, int], Pair]] = {}
    for model, (number, kind) in names.items():
        for site in subject.sites:
            records = read_lines(site.folder / "evaluation" / f"round-{number:04d}-{kind}.jsonl")
            # Records stand by domain, in the order of the examples.
            examples = sorted(site.tests.examples, key=lambda example: example.domain)
            if records:
                said = zip(examples, (record["answer"] for record in records), strict=True)
                found.setdefault(model, {}).update(
                    {(site.id, place): pair for place, pair in enumerate(said)}
                )
    return found


def _win_rate(subject: Subject) -> Event:
    """The global model against the base, and against another run's global model, where one is given."""
    options = subject.options
    if not options.judge:
        raise UserError("win rates need a judge: give --judge ADDRESS and --judge-model NAME")
    checkers("", options.judge, options.judge_model)
    judge = Judge(options.judge, options.judge_model)
    own = _answers(subject)
    if "global" not in own:
        raise UserError("the global model's answers are not on record: the run is not finished, or has none")
    name = subject.folder.resolve().parent.name if options.against else "global"
    others = {"base": own.get("base", {})}
    if options.against:
        other = Subject(options.against, read_settings(options.against), options)
        others[other.folder.resolve().parent.name] = _answers(other).get("global", {})
    records: list[Event] = []
    for against, answers in others.items():
        places = [place for place in own["global"] if place in answers]
        if any(own["global"][place][0] != answers[place][0] for place in places) or not places:
            raise UserError(
                f"--against = {options.against} was tested on other examples than {subject.folder}"
            )
        records += win_rate(
            [own["global"][place][0] for place in places],
            [own["global"][place][1] for place in places],
            [answers[place][1] for place in places],
            judge,
            name,
            against,
        )
    return {"records": records, "notes": [f"Judged by {options.judge_model}."]}


def _load(adapters: Adapters, values: Arrays) -> None:
    adapters.load("shared", {key: torch.from_numpy(value) for key, value in values.items()})


MEASUREMENTS: Mapping[str, Callable[[Subject], Event]] = {
    "alignment": _alignment,
    "gradients": _gradients,
    "transfer": _transfer,
    "map": _map,
    "consistency": _consistency,
    "survival": _survival,
    "paradox": _paradox,
    "benchmarks": _benchmarks,
    "winrate": _win_rate,
}
