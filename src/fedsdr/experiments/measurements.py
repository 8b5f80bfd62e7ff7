"""Each measurement of a run: from the run to its records and, if it tests a claim, its verdict."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from fedsdr.analysis.claims import claim, only
from fedsdr.analysis.consistency import Round, gain_survival, update_consistency
from fedsdr.analysis.frontier import ARM_LAMBDAS, LAMBDAS
from fedsdr.analysis.gradients import gradient_alignment
from fedsdr.analysis.paradox import REWRITING, Pair
from fedsdr.analysis.response_map import response_map
from fedsdr.analysis.transfer import loss_transfer
from fedsdr.errors import UserError
from fedsdr.evaluate.benchmarks import run_benchmarks
from fedsdr.evaluate.judge import win_rate
from fedsdr.evaluate.retention import MOST, retention
from fedsdr.experiments.frontier import CONTROLS, cost_and_gain
from fedsdr.experiments.frontier_scores import frontier_scores, one_word
from fedsdr.experiments.measured_run import MeasuredRun
from fedsdr.experiments.pairs import alignment, checkers, judge_at, mean_difference, paradox
from fedsdr.federation.client_context import data_of
from fedsdr.federation.export import require_global
from fedsdr.messages.wire import Arrays
from fedsdr.methods import AGGREGATIONS, METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.rows import Adapter
from fedsdr.run_folder import ClientFolder, RunFolder, checked_round, list_rounds, read_settings
from fedsdr.server.checkpoint import load_round, load_updates
from fedsdr.storage import Event, read_lines, rewrite_lines

MOST_GRADIENTS, MOST_MAPPED = 32, 60
"""Maximum numbers of a client's training examples, sampled by seed, for gradients and for the map."""


def _alignment(run: MeasuredRun) -> Event:
    texts = {
        client.id: [
            (example.response, new.distilled)
            for example, new in zip(client.data.train, client.rewritings["train"], strict=True)
        ]
        for client in run.rewritten()
    }
    note = "Training responses, and training targets after fall-back."
    return alignment(texts, run.settings.run.seed) | {"notes": [note]}


def _gradients(run: MeasuredRun) -> Event:
    model = run.model
    views = run.training(MOST_GRADIENTS)
    model.load("shared", run.shared(0))
    settings = run.settings
    records = gradient_alignment(model, views, settings.client.batch_size, settings.run.seed)
    note = f"At the shared adapter of round 0; at most {MOST_GRADIENTS} training examples of each client."
    verdict = claim(
        "Rewriting aligns the clients' gradients of the shared adapter",
        mean_difference(records, "gradient_corrected"),
        1,
        "Cosine of gradients, corrected for noise, distilled minus raw:",
    )
    return {"records": records, "notes": [note], "verdicts": [verdict]}


def _transfer(run: MeasuredRun) -> Event:
    settings = run.settings
    steps = settings.client.model_copy(update={"budget": "per_stage", "drift_correction": "none"})
    records = loss_transfer(
        run.model, run.training(), run.tests(), steps, settings.eval.batch_size, settings.run.seed
    )
    work = f"{steps.local_steps} steps" if steps.local_steps else f"{steps.local_epochs} epochs"
    note = f"{work} of {steps.batch_size * steps.accumulation} examples at a rate of {steps.learning_rate:g}."
    others = {"view": "difference", "trained_on": "others", "tested_on": "mean"}
    verdicts = [
        claim(
            f"On {on}, training on another's rewritings leaves a client better off than on raw responses",
            only(records, others | {"on": on}),
            -1,
            "One training each; the interval does not cover its seed. Loss, distilled minus raw:",
        )
        for on in dict.fromkeys(record["on"] for record in records)
    ]
    return {"records": records, "notes": [note], "verdicts": verdicts}


def _map(run: MeasuredRun) -> Event:
    settings = run.settings
    records = response_map(run.model, run.training(MOST_MAPPED), settings.eval.batch_size, settings.run.seed)
    return {"records": records, "notes": ["An illustration, not evidence: other seeds give other pictures."]}


def _consistency(run: MeasuredRun) -> Event:
    records = [
        {"round": number, **record}
        for number, updates in _updates(run)
        for record in update_consistency(run.shared(number - 1), updates)
    ]
    return {"records": records, "notes": ["Changes of the products B A of the shared adapter in one round."]}


def _survival(run: MeasuredRun) -> Event:
    tests = {name: texts for name, texts in run.tests()["raw"].items() if texts}
    if not tests:
        raise UserError("gains are measured on test examples, and no client has any")
    server = run.settings.server
    mean_of = server.num_rounds if server.mean_of_rounds > 1 else None
    found = [(number, updates) for number, updates in _updates(run) if number != mean_of]
    if not found:
        raise UserError("server.mean_of_rounds: the only round's shared adapter is a mean over rounds")
    rounds = (Round(number, run.shared(number - 1), updates, run.shared(number)) for number, updates in found)
    records = gain_survival(run.model, rounds, tests, run.settings.eval.batch_size)
    notes = ["Of base + shared adapter, on the client's own test examples."]
    if mean_of:
        notes.append("Without the last round, whose shared adapter is a mean over rounds.")
    return {"records": records, "notes": notes}


def _global_model(run: MeasuredRun, name: str) -> LoraModel:
    """The model with the shared adapter of the last round, for questions from --data."""
    data = run.options.data
    if data not in ("", "hub") and not Path(data).is_dir():
        raise UserError(f"--data = {data} is not a folder; set one in the layout of docs/data.md, or hub")
    require_global(run.settings, f"{name} compares the base and the global model")
    last = checked_round(run.folder, None)
    shared, residual = load_round(RunFolder(run.folder), last, run.settings.adapter.rank)
    model = run.model
    model.load("shared", shared)
    model.load_residual(residual)
    return model


def _retention(run: MeasuredRun) -> Event:
    options = run.options
    model = _global_model(run, "retention")
    if not options.data:
        raise UserError(
            "retention needs questions that no client has: give --data FOLDER, laid out as in docs/data.md,"
            " or --data hub"
        )
    answers: list[Event] = []
    records = retention(
        model,
        ("shared",),
        options.tasks,
        data=None if options.data == "hub" else Path(options.data),
        limit=options.limit or MOST,
        batch_size=run.settings.eval.batch_size,
        answers=answers,
    )
    if not records:
        raise UserError(f"--data = {options.data}: found no file of any task; docs/data.md lists them")
    parts = [f"BBH: {', '.join(r['subjects'])}." for r in records if r["task"] == "bbh"]
    note = f"At most {options.limit or MOST} questions of a task, the same for every run."
    return {"records": records, "notes": [note, *dict.fromkeys(parts)], "answers": answers}


def _benchmarks(run: MeasuredRun) -> Event:
    options, settings = run.options, run.settings
    model = _global_model(run, "benchmarks")
    own = [example for client in run.clients for example in client.tests.examples]
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
            runs_programs=options.run_programs
            or not options.data,  # the run's own examples have no tests without consent
            answers=said,
        )
        records += [{"model": name, **record} for record in found]
        answers += [{"model": name, **answer} for answer in said]
    if not records:
        raise UserError(f"--data = {options.data or 'the run'}: found no question that benchmarks could ask")
    rewrite_lines(RunFolder(run.folder).benchmark_answers, answers)
    return {"records": records, "notes": ["Every answer is in benchmark-answers.jsonl."]}


def _frontier(run: MeasuredRun) -> Event:
    options, settings = run.options, run.settings
    last = settings.server.num_rounds
    scales = options.scales or (LAMBDAS if settings.method in CONTROLS.values() else ARM_LAMBDAS)
    rounds = options.rounds or tuple(dict.fromkeys((max(1, last // 2), last)))
    models = frontier_scores(run, {checked_round(run.folder, number): scales for number in rounds})
    note = (
        "Cost: KL to the base per token of its own answers. Gain: loss on true responses, base minus model."
    )
    return {
        "records": cost_and_gain(models),
        "models": models,
        "one_word": one_word(settings),
        "notes": [note],
    }


def _updates(run: MeasuredRun) -> list[tuple[int, dict[str, Arrays]]]:
    """The clients' updates of each round.

    Raises:
        UserError: They were not saved, or clients do not start from the server's state.
    """
    folder, settings = RunFolder(run.folder), run.settings
    aggregation = AGGREGATIONS[settings.server.aggregation]
    adapts = METHODS[settings.method].on_receive == "adapt"
    if aggregation.is_fresh or aggregation.kept or aggregation.adds_to_base or adapts:
        raise UserError(
            f"method = {settings.method}, server.aggregation = {settings.server.aggregation}: clients do not"
            " begin a round from the server's factors alone, so their changes cannot be determined"
        )
    if settings.lora.client_ranks:
        raise UserError("lora.client_ranks: changes of clients of different rank are not comparable")
    if len(data_of(settings)[1]) < 2:
        raise UserError("there is only one client; comparing changes requires several")
    saved = ((number, load_updates(folder, number)) for number in list_rounds(folder.server) if number)
    found = [(number, updates) for number, updates in saved if len(updates) > 1]
    if not found:
        raise UserError("the clients' updates were not saved; run with server.keep_updates=true")
    return found


def _paradox(run: MeasuredRun) -> Event:
    """The paradox in the teacher's rewritings, before fall-back, and in the models' answers."""
    options, texts, likeness = run.options, dict[str, list[Pair]](), None
    if all("train" in client.rewritings for client in run.clients):
        written = {
            client.id: [
                (example, new.first)
                for example, new in zip(client.data.train, client.rewritings["train"], strict=True)
                if new.first is not None
            ]
            for client in run.clients
        }
        texts[REWRITING] = [pair for pairs in written.values() for pair in pairs]
        with suppress(UserError):  # one client, or too few words: the verdict reports the missing value
            pairs = {name: [(e.response, new) for e, new in some] for name, some in written.items()}
            likeness = alignment(pairs, run.settings.run.seed)["records"]
    for model, answers in _answers(run).items():
        texts[f"{model} answer"] = list(answers.values())
    if not texts:
        raise UserError("there are neither rewritings of training responses nor answers to test prompts")
    found = paradox(texts, checkers(options.nli, options.judge, options.judge_model), likeness)
    found["notes"].append("Rewritings of training responses before fall-back; answers to test prompts.")
    return found


def _answers(run: MeasuredRun) -> dict[str, dict[tuple[str, int], Pair]]:
    """Model -> client and index -> test example and the model's recorded answer."""
    found: dict[str, dict[tuple[str, int], Pair]] = {}
    for client in run.clients:
        # Records are sorted by domain, in the order of the examples.
        examples = sorted(client.tests.examples, key=lambda example: example.domain)
        for model, path in ClientFolder(client.folder).final_answers(run.settings.server.num_rounds).items():
            if not (records := read_lines(path)):
                continue
            if len(records) != len(examples) or not all("answer" in record for record in records):
                raise UserError(
                    f"{path}: expected {len(examples)} answers, as fedsdr wrote them; remove evaluation/ in"
                    " the run's folder and `fedsdr evaluate` it again"
                )
            for place, (example, record) in enumerate(zip(examples, records, strict=True)):
                found.setdefault(model, {})[client.id, place] = (example, record["answer"])
    return found


def _win_rate(run: MeasuredRun) -> Event:
    """The global model against the base, and against another run's global model, if given.

    Models are named after their methods; if two runs have the same method, after their folders.
    """
    options = run.options
    if not options.judge:
        raise UserError("win rates require a judge: set --judge ADDRESS and --judge-model NAME")
    judge = judge_at(options.judge, options.judge_model)
    answers = _answers(run)
    if "global" not in answers:
        raise UserError(
            "the global model has no answers on record: the run is not finished, or has no global model"
        )
    name, own, others = run.settings.method, answers["global"], {"base": answers.get("base", {})}
    if options.against:
        other = MeasuredRun(options.against, read_settings(options.against), options)
        against = other.settings.method
        if against == name:
            name, against = str(run.folder), str(options.against)
        others[against] = _answers(other).get("global", {})
    records: list[Event] = []
    for against, theirs in others.items():
        both = [(pair, theirs[place]) for place, pair in own.items() if place in theirs]
        if not both:
            raise UserError(f"{against}'s model has no answers on record: its run is not finished")
        if any(mine[0] != other[0] for mine, other in both):
            raise UserError(f"--against = {options.against} was tested on other examples than {run.folder}")
        examples, texts = zip(*(mine for mine, _ in both), strict=True)
        records += win_rate(examples, texts, [other[1] for _, other in both], judge, name, against)
    return {"records": records, "notes": [f"Judged by {options.judge_model}."]}


MEASUREMENTS: Mapping[str, Callable[[MeasuredRun], Event]] = {
    "alignment": _alignment,
    "gradients": _gradients,
    "transfer": _transfer,
    "map": _map,
    "consistency": _consistency,
    "survival": _survival,
    "paradox": _paradox,
    "benchmarks": _benchmarks,
    "retention": _retention,
    "frontier": _frontier,
    "winrate": _win_rate,
}
