"""The report of a run: one self-contained HTML file, made from its folder; without scripts once finished.

`page.html` is its layout. The template engine escapes text from data. An unfinished run is shown with its
rounds so far.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from fedsdr.catalogue import all_rows
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.methods import AGGREGATIONS, METHODS, PERSONAL
from fedsdr.metrics import Scores
from fedsdr.progress import say
from fedsdr.recipe import flat
from fedsdr.report.blocks import Block, Drawing, Examples, Folded, Links, Tab, Table, Text, Titled
from fedsdr.report.events import (
    Classes,
    cost_sheet,
    dropped_sheet,
    fallback_sheet,
    kept_sheet,
    paradox_sheet,
    privacy_sheet,
    rewriting_records,
    train_records,
)
from fedsdr.report.facts import cost_facts, privacy_facts, run_facts, status
from fedsdr.report.figures import Figure, held_out_figure, paradox_figure, score_figure, training_figure
from fedsdr.report.frontier import at_which_cost
from fedsdr.report.gains import did_it_help, gain_records, gain_sheet, read_answers, sample_blocks
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

RELOAD = (
    "addEventListener('change', event => sessionStorage[event.target.name] = event.target.id);"
    "for (const id of [sessionStorage.show, sessionStorage.theme])"
    " if (id) document.getElementById(id).checked = true;"
    "setTimeout(() => location.reload(), %d)"
)
"""Reloads the page after some milliseconds; the selected tab and theme are kept."""
REFRESH = 20
"""Seconds after which the page of an unfinished run or grid reloads itself."""
MEASURE = "`fedsdr measure RUN`, where RUN is this run's folder"


class PageWriter:
    """Writes the page of a running run or grid, unless that takes more than a twentieth of the time."""

    def __init__(self, write_page: Callable[[], object]) -> None:
        """The first call of `write` writes immediately."""
        self.write_page = write_page
        self.next = 0.0

    def write(self) -> None:
        """Write the page if it is time. An error is shown only, since it must not end the work."""
        begun = time.monotonic()
        if begun < self.next:
            return
        try:
            self.write_page()
        except (UserError, OSError) as error:
            say(f"  the page is not up to date: {error}")
        self.next = time.monotonic() + 20 * (time.monotonic() - begun)


def write_report(folder: Path, settings: Settings, refresh: int = 0) -> Path:
    """Write `report.html` into a run's folder from its existing records.

    Args:
        folder: A run's folder, with at least environment.json.
        settings: The run's settings.
        refresh: Seconds after which the page reloads itself while the run continues; 0: never.

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
    answers = read_answers(run, after) if after else {}
    gains = gain_records(base, final, answers)
    first = {"gains": gain_sheet(gains), "scores": score_sheet(base, final)}
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    tabs = [
        Tab("scores", "Scores", "Scores by domain and held-out loss", score_blocks(base, final, tables)),
        Tab("answers", "Answers", "Sample answers, side by side", sample_blocks(answers)),
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
        script=reload_script(refresh),
        status=status(settings.server.num_rounds, events, after, refresh),
        facts=[
            *run_facts(settings, environment),
            *privacy_facts(settings.privacy, events),
            *cost_facts(events),
        ],
        notices=run_notices(folder, base, final),
        sentences=[*did_it_help(gains, events), *at_which_cost(measurements, after)],
        verdicts=tested(verdicts(measurements)),
        first=[Table(f"{name}-table", sheet) for name, sheet in first.items() if sheet.rows],
        tabs=tabs,
        after=after,
        personal=PERSONAL[method.personal] if method.has_personal else "",
        method=settings.method,
        aggregation=aggregation,
        has_global=has_global(method, aggregation),
    )
    write_file(run.report, page)
    return run.report


def reload_script(refresh: int) -> str:
    """What loads the page again after so many seconds; "" for 0."""
    return RELOAD % (1000 * refresh) if refresh else ""


def score_blocks(base: Scores, final: Scores, tables: Mapping[int, Scores]) -> list[Block]:
    """Scores as bars, wording of the answers, held-out losses."""
    if not tables:
        return [Text("Nothing was evaluated yet.")]
    scores, losses = score_figure(score_records(base, final)), held_out_figure(tables)
    sheets = {"labels": label_sheet, "texts": text_sheet, "wording": answer_sheet}
    made = {name: make(base, final) for name, make in sheets.items()}
    return [
        *([scores] if scores else []),
        *(Table(f"{name}-table", sheet) for name, sheet in made.items() if sheet.rows),
        Titled("Held-out loss"),
        *([losses] if losses else []),
        Table("held-out-table", loss_sheet(base, final)),
    ]


def training_blocks(events: Sequence[Event], adapters: Mapping[str, str]) -> list[Block]:
    """Losses over rounds, as in `training_figure`, dropped replies, and the privacy spent."""
    losses = training_figure(train_records(events), adapters) or Text("No round was trained yet.")
    tables = {"dropped": dropped_sheet(events), "privacy": privacy_sheet(events)}
    return [losses, *(Table(key, sheet) for key, sheet in tables.items() if sheet.rows)]


def rewriting_blocks(events: Sequence[Event], classes: Classes) -> list[Block]:
    """Counts by the exact checks when responses were rewritten."""
    figure = paradox_figure(rewriting_records(events))
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
    texts = {row.key: row.text for row in all_rows()}

    def listed(key: str) -> tuple[str, str, str, str]:
        meaning = next((texts[name] for name in (key, key.rpartition(".")[0]) if name in texts), "")
        return key, now[key], usual.get(key, ""), meaning

    heads = ("key", "value", "default", "meaning")
    rows = [listed(key) for key in now]
    changed = [row for row in rows if row[1] != row[2]]
    return [
        Table(
            "settings-table",
            _text_sheet(
                "Settings that differ from the defaults",
                heads,
                changed,
                "Threads, dtype and attention were fixed when the run began.",
            ),
        ),
        Folded("all-settings", "All settings", _text_sheet("All settings", heads, rows)),
        Folded(
            "environment",
            "Environment: versions, machine, model and data",
            _text_sheet("Environment", ("what", "value"), list(_as_text(environment))),
        ),
    ]


def _text_sheet(
    caption: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], note: str = ""
) -> Sheet:
    """A sheet of texts, which are also its records."""
    records = tuple(dict(zip(heads, row, strict=True)) for row in rows)
    return Sheet(caption, "l" * len(heads), heads, tuple(rows), records, note=note)


def _or_missing(measured: Mapping[str, list[Block]], tab: str) -> list[Block]:
    """The measured blocks, or how to measure them."""
    return measured.get(tab, [Text(f"Not measured yet. To measure it, run {MEASURE}.")])


def tested(verdicts: Sequence[Event]) -> list[Event]:
    """Verdicts on tested claims, which appear at the head of a page."""
    return [verdict for verdict in verdicts if verdict["verdict"] != "not measured"]


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
    engine.filters["digest"] = _digest
    for block in (Figure, Drawing, Links, Table, Text, Titled, Folded, Examples):
        engine.tests[block.__name__.lower()] = lambda it, kind=block: isinstance(it, kind)
    return engine.get_template(template).render(**values)


def _as_text(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Nested tables as dotted keys, values as text."""
    for key, value in flat(values):
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _code(text: str) -> Markup:
    """Render text between two ` as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _digest(script: str) -> str:
    """Name a script in a content security policy, so that no other script runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _data_uri(thing: Sheet | Figure) -> str:
    """Link that downloads the records of a sheet or figure as CSV."""
    return "data:text/csv;base64," + base64.b64encode(to_csv(thing.records).encode()).decode()
