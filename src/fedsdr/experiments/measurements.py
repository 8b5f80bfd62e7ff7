"""Each measurement of a run: from the run to its records, and where it tests a claim its verdict."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from fedsdr.analysis.claims import claim, only
from fedsdr.analysis.consistency import Round, gain_survival, update_consistency
from fedsdr.analysis.gradients import gradient_alignment
from fedsdr.analysis.paradox import REWRITING, Pair
from fedsdr.analysis.response_map import response_map
from fedsdr.analysis.transfer import loss_transfer
from fedsdr.errors import UserError
from fedsdr.evaluate.benchmarks import run_benchmarks
from fedsdr.evaluate.judge import win_rate
from fedsdr.experiments.measured_run import Subject
from fedsdr.experiments.pairs import alignment, checkers, judge_at, mean_difference, paradox
from fedsdr.federation.client_context import data_of
from fedsdr.federation.export import require_global
from fedsdr.messages.wire import Arrays
from fedsdr.methods import AGGREGATIONS, METHODS
from fedsdr.rows import Adapter
from fedsdr.run_folder import ClientFolder, RunFolder, checked_round, list_rounds, read_settings
from fedsdr.server.checkpoint import load_round, load_updates
from fedsdr.storage import Event, read_lines, rewrite_lines

MOST_GRADIENTS, MOST_MAPPED = 32, 60
"""Training examples of a client, drawn by seed, of which gradients are taken, and which are mapped."""


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
    model = subject.model
    views = subject.training(MOST_GRADIENTS)
    model.load("shared", subject.shared(0))
    settings = subject.settings
    records = gradient_alignment(model, views, settings.client.batch_size, settings.run.seed)
    note = f"At the shared adapter of round 0; at most {MOST_GRADIENTS} training examples of each client."
    verdict = claim(
        "Rewriting makes the clients pull the shared adapter one way",
        mean_difference(records, "gradient_corrected"),
        1,
        "Cosine of gradients, freed from noise, distilled minus raw:",
    )
    return {"records": records, "notes": [note], "verdicts": [verdict]}


def _transfer(subject: Subject) -> Event:
    settings = subject.settings
    client = settings.client.model_copy(update={"budget": "per_stage", "drift_correction": "none"})
    records = loss_transfer(
        subject.model,
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
    verdicts = []
    for on in dict.fromkeys(record["on"] for record in records):
        wanted = {"view": "difference", "on": on, "trained_on": "others", "tested_on": "mean"}
        verdicts.append(
            claim(
                f"On {on}, training on another's rewritings leaves a client better off than on raw responses",
                only(records, wanted),
                -1,
                "One training each, whose seed the interval does not cover. Loss, distilled minus raw:",
            )
        )
    return {"records": records, "notes": [note], "verdicts": verdicts}


def _map(subject: Subject) -> Event:
    settings = subject.settings
    records = response_map(
        subject.model, subject.training(MOST_MAPPED), settings.eval.batch_size, settings.run.seed
    )
    return {"records": records, "notes": ["A picture, no evidence: other seeds give others."]}


def _consistency(subject: Subject) -> Event:
    records: list[Event] = []
    for number, updates in _updates(subject):
        before = subject.shared(number - 1)
        records += [{"round": number, **record} for record in update_consistency(before, updates)]
    return {"records": records, "notes": ["Changes of the products B A of the shared adapter in one round."]}


def _survival(subject: Subject) -> Event:
    tests = {name: texts for name, texts in subject.tests()["raw"].items() if texts}
    if not tests:
        raise UserError("gains are measured on test examples, and no client has any")
    rounds = (
        Round(number, subject.shared(number - 1), updates, subject.shared(number))
        for number, updates in _updates(subject)
    )
    records = gain_survival(subject.model, rounds, tests, subject.settings.eval.batch_size)
    return {"records": records, "notes": ["Of base + shared adapter, on the client's own test examples."]}


def _benchmarks(subject: Subject) -> Event:
    model = subject.model
    options, settings = subject.options, subject.settings
    require_global(settings, "benchmarks are of the base and the global model")
    if options.data not in ("", "hub") and not Path(options.data).is_dir():
        raise UserError(
            f"--data = {options.data} is no folder; give one laid out as docs/data.md says, or hub"
        )
    own = [example for site in subject.sites for example in site.tests.examples]
    last = checked_round(subject.folder, None)
    shared, residual = load_round(RunFolder(subject.folder), last, settings.adapter.rank)
    model.load("shared", shared)
    model.load_residual(residual)
    models: dict[str, tuple[Adapter, ...]] = {"base": (), "global": ("shared",)}
    records: list[Event] = []
    answers: list[Event] = []
    for name, active in models.items():
        said: list[Event] = []
        found = run_benchmarks(
            model,
            active,
            options.tasks,
            data={"": own, "hub": None}.get(options.data, Path(options.data)),
            limit=options.limit,
            seed=settings.run.seed,
            batch_size=settings.eval.batch_size,
            code_timeout=settings.eval.code_timeout,
            answers=said,
        )
        records += [{"model": name, **record} for record in found]
        answers += [{"model": name, **answer} for answer in said]
    if not records:
        raise UserError(f"--data = {options.data or 'the run'}: found no question that benchmarks could ask")
    rewrite_lines(RunFolder(subject.folder).benchmark_answers, answers)
    return {"records": records, "notes": ["Every answer is in benchmark-answers.jsonl."]}


def _updates(subject: Subject) -> list[tuple[int, dict[str, Arrays]]]:
    """What the clients sent in each round.

    Raises:
        UserError: It was not kept, or the clients do not begin from what the server has.
    """
    folder = RunFolder(subject.folder)
    aggregation = AGGREGATIONS[subject.settings.server.aggregation]
    settings = subject.settings
    adapts = METHODS[settings.method].on_receive == "adapt"
    if aggregation.is_fresh or aggregation.kept or aggregation.adds_to_base or adapts:
        raise UserError(
            f"method = {settings.method}, server.aggregation = {settings.server.aggregation}: clients do not"
            " begin a round from the server's factors alone, so their changes cannot be told"
        )
    if settings.lora.client_ranks:
        raise UserError("lora.client_ranks: changes of clients of different rank are not comparable")
    if len(data_of(settings)[1]) < 2:
        raise UserError("there is one client, and changes of several are compared")
    kept = [(number, load_updates(folder, number)) for number in list_rounds(folder.server) if number]
    found = [(number, updates) for number, updates in kept if len(updates) > 1]
    if not found:
        raise UserError("what the clients sent was not kept; run with server.keep_updates=true")
    return found


def _paradox(subject: Subject) -> Event:
    """Of what the teacher wrote, before fall-back, and of what the models answer."""
    options, texts = subject.options, dict[str, list[Pair]]()
    likeness = None
    if all("train" in site.rewritings for site in subject.sites):
        written = {
            site.id: [
                (example, new.first)
                for example, new in zip(site.data.train, site.rewritings["train"], strict=True)
                if new.first is not None
            ]
            for site in subject.sites
        }
        texts[REWRITING] = [pair for pairs in written.values() for pair in pairs]
        with suppress(UserError):  # one client, or too few words: the verdict says that it is missing
            pairs = {name: [(e.response, new) for e, new in some] for name, some in written.items()}
            likeness = alignment(pairs, subject.settings.run.seed)["records"]
    for model, answers in _answers(subject).items():
        texts[f"{model} answer"] = list(answers.values())
    if not texts:
        raise UserError("there are neither rewritings of training responses nor answers to test prompts")
    with_checkers = checkers(options.nli, options.judge, options.judge_model)
    found = paradox(texts, with_checkers, likeness)
    found["notes"].append("Rewritings of training responses before fall-back; answers to test prompts.")
    return found


def _answers(subject: Subject) -> dict[str, dict[tuple[str, int], Pair]]:
    """Model -> client and place -> test example and what the model answered, as evaluations recorded it."""
    found: dict[str, dict[tuple[str, int], Pair]] = {}
    num_rounds = subject.settings.server.num_rounds
    for site in subject.sites:
        for model, file in ClientFolder(site.folder).final_answers(num_rounds).items():
            records = read_lines(file)
            # Records stand by domain, in the order of the examples.
            examples = sorted(site.tests.examples, key=lambda example: example.domain)
            if records:
                if len(records) != len(examples) or not all("answer" in record for record in records):
                    raise UserError(
                        f"{file}: expected {len(examples)} answers, as fedsdr"
                        " wrote them; remove evaluation/ in the run's folder and `fedsdr evaluate` it anew"
                    )
                said = zip(examples, (record["answer"] for record in records), strict=True)
                found.setdefault(model, {}).update(
                    {(site.id, place): pair for place, pair in enumerate(said)}
                )
    return found


def _win_rate(subject: Subject) -> Event:
    """The global model against the base, and against another run's global model, where one is given.

    Models are called by their methods; of two runs of one method, by their folders.
    """
    options = subject.options
    if not options.judge:
        raise UserError("win rates need a judge: give --judge ADDRESS and --judge-model NAME")
    judge = judge_at(options.judge, options.judge_model)
    own = _answers(subject)
    if "global" not in own:
        raise UserError("the global model's answers are not on record: the run is not finished, or has none")
    name, others = subject.settings.method, {"base": own.get("base", {})}
    if options.against:
        other = Subject(options.against, read_settings(options.against), options)
        against = other.settings.method
        if against == name:
            name, against = str(subject.folder), str(options.against)
        others[against] = _answers(other).get("global", {})
    records: list[Event] = []
    for against, answers in others.items():
        places = [place for place in own["global"] if place in answers]
        if not places:
            raise UserError(f"the answers of {against}'s model are not on record: its run is not finished")
        if any(own["global"][place][0] != answers[place][0] for place in places):
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
