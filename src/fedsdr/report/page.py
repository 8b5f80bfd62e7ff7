"""The report of a run: one HTML file without scripts that needs no network, made from the run's folder.

`page.html` is its layout. Text from data is escaped by the template engine. A run that has not finished
is shown as far as it went.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.config import Settings
from fedsdr.measure.scores import Table
from fedsdr.recipe import dump_settings
from fedsdr.report.events import (
    cost_sheet,
    dropped_sheet,
    fallback_sheet,
    paradox_records,
    paradox_sheet,
    train_records,
)
from fedsdr.report.figures import Figure, held_out_figure, paradox_figure, score_figure, training_figure
from fedsdr.report.tables import Sheet, answer_sheet, loss_sheet, score_records, score_sheet, to_csv
from fedsdr.storage import Event, read_lines, write_file
from fedsdr.tables import COMBINATIONS, METHODS, PERSONAL, has_global


def write_report(folder: Path, settings: Settings) -> Path:
    """Write `report.html` into a run's folder from the records that are there.

    Args:
        folder: A run's folder, with at least environment.json.
        settings: The run's settings.

    Returns:
        Path of the page.
    """
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    tables = {
        int(path.stem.removeprefix("round-")): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "evaluation").glob("round-*.json"))
    }
    page = render_page(
        folder.resolve().name, settings, environment, read_lines(folder / "metrics.jsonl"), tables
    )
    path = folder / "report.html"
    write_file(path, page)
    return path


def render_page(
    name: str,
    settings: Settings,
    environment: Mapping[str, Any],
    events: Sequence[Event],
    tables: Mapping[int, Table],
) -> str:
    """Make the page of a run.

    Args:
        name: What the run is called.
        settings: Its settings.
        environment: What environment.json holds.
        events: What metrics.jsonl holds.
        tables: Round -> pooled numbers of its evaluation; round 0 is the base model.
    """
    method = METHODS[settings.method]
    base, after = tables.get(0, {}), max(tables, default=0)
    final = tables[after] if after else {}
    training = train_records(events)
    return render(
        "page.html",
        name=name,
        status=_status(settings, events, after),
        facts=_facts(settings, environment),
        personal=PERSONAL[method.personal] if method.has_personal else "",
        method=settings.method,
        combination=COMBINATIONS[settings.server.combination],
        has_global=has_global(method, COMBINATIONS[settings.server.combination]),
        after=after,
        scores=score_sheet(base, final),
        score_figure=score_figure(score_records(base, final)),
        answers=answer_sheet(base, final),
        loss_figure=training_figure(training, settings),
        held_out=loss_sheet(base, final),
        held_out_figure=held_out_figure(tables),
        paradox=paradox_sheet(events),
        paradox_figure=paradox_figure(paradox_records(events)),
        fallback=fallback_sheet(events),
        costs=cost_sheet(events),
        round_seconds=[event["seconds"] for event in events if event["event"] == "round"],
        dropped=dropped_sheet(events),
        changed=_changed(settings),
        settings=dump_settings(settings),
        environment=list(_flat(environment)),
    )


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
    return engine.get_template(template).render(**values)


def _status(settings: Settings, events: Sequence[Event], after: int) -> str:
    """Empty for a finished run."""
    num_rounds = settings.server.num_rounds
    if after == num_rounds:
        return ""
    done = max((event["round"] for event in events if event["event"] == "round"), default=0)
    missing = "; the last evaluation is missing" if done == num_rounds else ""
    return f"unfinished: {done} of {num_rounds} rounds{missing}"


def _facts(settings: Settings, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, as terms and descriptions."""
    method, model, client, server = METHODS[settings.method], settings.model, settings.client, settings.server
    data, clients = environment["data"], list(environment["data"]["num_train"])
    drawn = (
        f"; {settings.server.clients_per_round} drawn each round" if settings.server.clients_per_round else ""
    )
    named = (
        ", ".join(clients) if len(clients) <= 8 else f"{', '.join(clients[:7])} and {len(clients) - 7} more"
    )
    work = (
        f"{client.local_steps} steps" if client.local_steps else f"{client.local_epochs} passes over the data"
    )
    step = client.batch_size * client.accumulation
    quantised = f", loaded in {model.quantization}" if model.quantization != "none" else ""
    return [
        ("Method", f"{settings.method}: {method.summary} ({method.paper})"),
        ("Model", f"{model.name}, computed in {model.dtype}{quantised}; {environment['model']['origin']}"),
        ("Clients", f"{len(clients)}: {named}{drawn}"),
        (
            "Rounds",
            f"{settings.server.num_rounds}; {work} {client.budget.replace('_', ' ')} at each client,"
            f" {step} examples a step; {server.combination}, {server.reduction}, {server.optimizer}",
        ),
        ("Seed", f"{settings.run.seed} (data {settings.data.seed}, rewriting {settings.distill.seed})"),
        (
            "Data",
            f"{data['origin']}; {sum(data['num_train'].values()):,} training and"
            f" {sum(data['num_test'].values()):,} test examples",
        ),
    ]


def _changed(settings: Settings) -> list[tuple[str, str, str]]:
    """Settings that differ from the defaults: key, value, default."""
    now, usual = (dict(_flat(some.model_dump(mode="json"))) for some in (settings, Settings()))
    return [(key, value, usual.get(key, "")) for key, value in now.items() if value != usual.get(key)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested tables as dotted keys, values as text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data_uri(thing: Sheet | Figure) -> str:
    """Link that downloads the records of a sheet or figure as CSV."""
    return "data:text/csv;base64," + base64.b64encode(to_csv(thing.records).encode()).decode()
