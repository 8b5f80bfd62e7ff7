"""The report of a run: one HTML file without scripts that needs no network, made from the run's folder.

`page.html` is its layout. Text from data is escaped by the template engine. A run that has not finished
is shown with the rounds that it has.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fedsdr.config import Model, Privacy, Settings
from fedsdr.methods import AGGREGATIONS, METHODS, PERSONAL
from fedsdr.metrics import Scores
from fedsdr.recipe import dump_settings, flat
from fedsdr.report.blocks import Block, Drawing, Examples, Folded, Tab, Table, Text, Titled
from fedsdr.report.events import (
    Classes,
    cost_sheet,
    dropped_sheet,
    fallback_sheet,
    kept_sheet,
    paradox_records,
    paradox_sheet,
    privacy_sheet,
    train_records,
)
from fedsdr.report.figures import Figure, held_out_figure, paradox_figure, score_figure, training_figure
from fedsdr.report.measurements import measurement_tabs, read_measurements, seconds_blocks, verdicts
from fedsdr.report.notices import run_notices
from fedsdr.report.sheets import (
    Sheet,
    answer_sheet,
    label_sheet,
    loss_sheet,
    score_records,
    score_sheet,
    text_sheet,
    to_csv,
)
from fedsdr.rows import has_global
from fedsdr.run_folder import RunFolder
from fedsdr.storage import Event, read_json, read_lines, write_file

MEASURE = "`fedsdr measure RUN`, where RUN is this run's folder"


def write_report(folder: Path, settings: Settings) -> Path:
    """Write `report.html` into a run's folder from the records that are there.

    Args:
        folder: A run's folder, with at least environment.json.
        settings: The run's settings.

    Returns:
        Path of the page.
    """
    run = RunFolder(folder)
    environment = read_json(run.environment)
    tables = run.evaluations()
    events = read_lines(run.log)
    base, after = tables.get(0, {}), max(tables, default=0)
    final = tables[after] if after else {}
    measurements = read_measurements(folder)
    measured = measurement_tabs(measurements)
    classes = environment.get("data", {}).get("classes", {})
    first = {"scores": score_sheet, "labels": label_sheet, "texts": text_sheet}
    sheets = {name: make(base, final) for name, make in first.items()}
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    tabs = [
        Tab("scores", "Scores", "Scores by domain and held-out loss", score_blocks(base, final, tables)),
        Tab("training", "Training", "Training", training_blocks(events, method.logged())),
        Tab("alignment", "Alignment", "Alignment of the clients' data", _or_missing(measured, "alignment")),
        Tab(
            "paradox",
            "Rewrite paradox",
            "Rewrite paradox: what rewriting loses and adds",
            [*rewriting_blocks(events, classes), *_or_missing(measured, "paradox")],
        ),
        Tab("consistency", "Consistency", "Consistency of updates", _or_missing(measured, "consistency")),
        Tab("benchmarks", "Benchmarks", "Benchmarks and win rates", _or_missing(measured, "benchmarks")),
        Tab("costs", "Costs", "Costs", [*cost_blocks(events), *seconds_blocks(measurements)]),
        Tab("settings", "Settings", "Settings and environment", setting_blocks(settings, environment)),
    ]
    page = render(
        "page.html",
        name=folder.resolve().name,
        status=_status(settings.server.num_rounds, events, after),
        facts=[*_facts(settings, environment), *_privacy_facts(settings.privacy, events)],
        notices=run_notices(folder, base, final),
        verdicts=verdicts(measurements),
        no_verdict=f"No claim was tested. To test claims, run {MEASURE}.",
        first=[Table(f"{name}-table", sheet) for name, sheet in sheets.items() if sheet.rows],
        tabs=tabs,
        after=after,
        personal=PERSONAL[method.personal] if method.has_personal else "",
        method=settings.method,
        aggregation=aggregation,
        has_global=has_global(method, aggregation),
    )
    write_file(run.report, page)
    return run.report


def score_blocks(base: Scores, final: Scores, tables: Mapping[int, Scores]) -> list[Block]:
    """Scores as bars, wording of the answers, held-out losses."""
    if not tables:
        return [Text("Nothing was evaluated yet.")]
    scores, losses = score_figure(score_records(base, final)), held_out_figure(tables)
    return [
        *([scores] if scores else []),
        Table("answers-table", answer_sheet(base, final)),
        Titled("Held-out loss"),
        *([losses] if losses else []),
        Table("held-out-table", loss_sheet(base, final)),
    ]


def training_blocks(events: Sequence[Event], adapters: Mapping[str, str]) -> list[Block]:
    """Losses over rounds, as `training_figure`, replies that were dropped, and the privacy spent."""
    losses = training_figure(train_records(events), adapters) or Text("No round was trained yet.")
    tables = {"dropped": dropped_sheet(events), "privacy": privacy_sheet(events)}
    return [losses, *(Table(key, sheet) for key, sheet in tables.items() if sheet.rows)]


def rewriting_blocks(events: Sequence[Event], classes: Classes) -> list[Block]:
    """What the exact checks counted when responses were rewritten."""
    figure = paradox_figure(paradox_records(events))
    if not figure:
        return [Text("No training response was rewritten in this run.")]
    kept = kept_sheet(events, classes)
    return [
        Titled("By exact checks, when responses were rewritten"),
        figure,
        Table("paradox-table", paradox_sheet(events)),
        Table("fallback", fallback_sheet(events)),
        *([Table("kept-table", kept)] if kept.rows else []),
    ]


def cost_blocks(events: Sequence[Event]) -> list[Block]:
    """Work and messages of each client, and the rounds by the server's clock."""
    costs = cost_sheet(events)
    if not costs.rows:
        return [Text("No work was done yet.")]
    if not (seconds := [event["seconds"] for event in events if event["event"] == "round"]):
        return [Table("costs", costs)]
    clock = (
        f"Rounds of training took {sum(seconds):.1f} s by the server's clock, {min(seconds):.1f} to"
        f" {max(seconds):.1f} s each, without evaluation."
    )
    return [Table("costs", costs), Text(clock)]


def setting_blocks(settings: Settings, environment: Mapping[str, Any]) -> list[Block]:
    """Settings that differ from the defaults, all settings, and the environment of the run."""
    now, usual = (dict(_as_text(some.model_dump(mode="json"))) for some in (settings, Settings()))
    changed = [(key, value, usual.get(key, "")) for key, value in now.items() if value != usual.get(key)]
    sheet = Sheet(
        "Settings that differ from the defaults",
        "lll",
        ("key", "value", "default"),
        tuple(changed),
        tuple(dict(zip(("key", "value", "default"), row, strict=True)) for row in changed),
        note="Threads, dtype and attention were fixed when the run began.",
    )
    lines = (f"{key} = {value}" for key, value in _as_text(environment))
    return [
        Table("settings-table", sheet),
        Folded("All settings, as TOML", dump_settings(settings)),
        Folded("Environment: versions, machine, model and data", "\n".join(lines)),
    ]


def _or_missing(measured: Mapping[str, list[Block]], tab: str) -> list[Block]:
    """What was measured, or how to measure it."""
    return measured.get(tab, [Text(f"Not measured yet. To measure it, run {MEASURE}.")])


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    engine = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    engine.filters["csv"] = _data_uri
    engine.filters["code"] = _code
    for block in (Figure, Drawing, Table, Text, Titled, Folded, Examples):
        engine.tests[block.__name__.lower()] = lambda it, kind=block: isinstance(it, kind)
    return engine.get_template(template).render(**values)


def model_fact(model: Model, environment: Mapping[str, Any]) -> tuple[str, str]:
    """Which base model was used."""
    quantised = f", loaded in {model.quantization}" if model.quantization != "none" else ""
    return "Model", f"{model.name}, computed in {model.dtype}{quantised}; {environment['model']['origin']}"


def data_fact(environment: Mapping[str, Any], more: str = "") -> tuple[str, str]:
    """Which data were used, and how many examples."""
    data = environment["data"]
    num_train, num_test = (sum(data[key].values()) for key in ("num_train", "num_test"))
    return "Data", f"{data['origin']}; {num_train:,} training and {num_test:,} test examples{more}"


def _status(num_rounds: int, events: Sequence[Event], after: int) -> str:
    """Empty for a finished run."""
    if after == num_rounds:
        return ""
    done = max((event["round"] for event in events if event["event"] == "round"), default=0)
    missing = "; the last evaluation is missing" if done == num_rounds else ""
    return f"unfinished: {done} of {num_rounds} rounds{missing}"


def _facts(settings: Settings, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, as terms and descriptions."""
    method, client, server = METHODS[settings.method], settings.client, settings.server
    clients = list(environment["data"]["num_train"])
    sampled = f"; {server.clients_per_round} sampled each round" if server.clients_per_round else ""
    shown = clients if len(clients) <= 8 else [*clients[:7], f"and {len(clients) - 7} more"]
    named = ", ".join(shown).replace(", and ", " and ")
    passes = f"{client.local_epochs} passes over the data"
    work = f"{client.local_steps} steps" if client.local_steps else passes
    steps = [name for name in (server.aggregation, server.robust, server.optimizer) if name != "none"]
    return [
        ("Method", f"{settings.method}: {method.summary} ({method.paper})"),
        model_fact(settings.model, environment),
        ("Clients", f"{len(clients)}: {named}{sampled}"),
        (
            "Rounds",
            f"{server.num_rounds}; {work} {client.budget.replace('_', ' ')} at each client,"
            f" {client.batch_size * client.accumulation} examples a step; {', '.join(steps)}",
        ),
        ("Seed", f"{settings.run.seed} (data {settings.data.seed}, rewriting {settings.distill.seed})"),
        data_fact(environment),
    ]


def _privacy_facts(privacy: Privacy, events: Sequence[Event]) -> list[tuple[str, str]]:
    """The privacy spent; nothing without differential privacy."""
    if privacy.kind == "none":
        return []
    epsilons = [event["epsilon"] for event in events if "epsilon" in event]
    spent = (
        f"epsilon {epsilons[-1]:.3g} at delta {privacy.delta:g} so far" if epsilons else "nothing spent yet"
    )
    seeded = "; the noise repeats run.seed and protects nothing" if privacy.source == "seeded" else ""
    return [
        (
            "Privacy",
            f"of the shared adapter, {privacy.kind}, a client being the unit: {spent}; clipped to"
            f" {privacy.clip:g}, noise {privacy.noise:g}{seeded}",
        )
    ]


def _as_text(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Nested tables as dotted keys, values as text."""
    for key, value in flat(values):
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _code(text: str) -> Markup:
    """Show text between two ` as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _data_uri(thing: Sheet | Figure) -> str:
    """Link that downloads the records of a sheet or figure as CSV."""
    return "data:text/csv;base64," + base64.b64encode(to_csv(thing.records).encode()).decode()
