"""Copy the numbers of finished runs into the repository and format them as Markdown.

    python benchmarks/collect.py docs/results/five-domains runs/five-domains/*
    python benchmarks/collect.py docs/results runs/compare-demo

For a grid, this copies its tables, and settings and environment of one run. For a run, it copies settings,
environment, events, pooled scores and measurements. These are numbers only, without any text of the data. The
folder of the data becomes DATA. The tables go to standard output.
"""

import json
import shlex
import shutil
import sys
from pathlib import Path

from fedsdr.recipe import dump_settings
from fedsdr.report.events import paradox_sheet
from fedsdr.report.sheets import render_text
from fedsdr.run_folder import read_settings
from fedsdr.storage import read_json, read_lines, write_json

KEPT = ("metrics.jsonl", "evaluation")


def copy_records(run: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for name in KEPT:
        source = run / name
        shutil.copytree(source, to / name) if source.is_dir() else shutil.copy(source, to / name)
    settings, environment = read_settings(run), read_json(run / "environment.json")
    place = settings.run.model_copy(update={"dir": run.name})
    data = settings.data
    if data.root:
        environment["data"]["origin"] = "DATA"
        environment["command"] = environment["command"].replace(f"data.root={data.root}", "data.root=DATA")
        data = data.model_copy(update={"root": "DATA"})
    settings = settings.model_copy(update={"run": place, "data": data})
    (to / "config.toml").write_text(dump_settings(settings))
    for path in sorted((run / "measurements").glob("*.json")):
        write_json(to / "measurements" / path.name, without_texts(read_json(path)))
    write_json(to / "environment.json", environment)


def without_texts(measurement: dict) -> dict:
    """A measurement without examples to read; of consistency the sums over all layers alone."""
    words = shlex.split(measurement["command"])
    if "--data" in words:
        words[words.index("--data") + 1] = "DATA"
    records = [record for record in measurement["records"] if record.get("layer", "all") == "all"]
    kept = {key: value for key, value in measurement.items() if key != "examples"}
    return kept | {"records": records, "command": shlex.join(words)}


def copy_grid(grid: Path, to: Path) -> None:
    """Copy a grid's tables, with the records of its first run in a folder `cell`."""
    shutil.rmtree(to, ignore_errors=True)
    _, _, place = read_json(grid / "grid.json")["cells"][0]
    copy_records(grid / place, to / "cell")
    for name in ("grid.json", "comparison.json", "comparison.md"):
        shutil.copy(grid / name, to / name)


def tables_of(run: Path) -> dict[str, dict]:
    """Model -> domain -> metrics, of the base model and after the last round."""
    first, *_, last = sorted((run / "evaluation").glob("round-*.json"))
    base, final = (json.loads(path.read_text()) for path in (first, last))
    return {"base": base["global"], **final}


def compare(runs: list[Path], metric: str, digits: int) -> str:
    """One row for each run and model, one column for each domain."""
    shown = {(run.name, model): by_domain for run in runs for model, by_domain in tables_of(run).items()}
    first = next(iter(shown.values()))
    domains = [name for name in first if any(metric in table.get(name, {}) for table in shown.values())]
    lines = [f"| run | model | {' | '.join(domains)} |", "|---|---|" + "---:|" * len(domains)]
    # The base model scores alike in all runs, but where runs with other checks have other rewritings.
    bases: dict[tuple[str, ...], list[str]] = {}
    rows = []
    for (run, model), table in shown.items():
        cells = [f"{table[d][metric]:.{digits}f}" if metric in table[d] else "-" for d in domains]
        if model == "base":
            bases.setdefault(tuple(cells), []).append(run)
        else:
            rows.append((run, model, cells))
    all_bases = [
        (", ".join(names) if len(bases) > 1 else "all", "base", list(c)) for c, names in bases.items()
    ]
    for run, model, cells in all_bases + rows:
        lines.append(f"| {run} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    to, *runs = (Path(word) for word in sys.argv[1:])
    if (runs[0] / "grid.json").exists():
        copy_grid(runs[0], to / runs[0].name)
        print((runs[0] / "comparison.md").read_text())
        return
    for run in runs:
        copy_records(run, to / run.name)
    for metric, title, digits in (
        ("score", "Exact score", 2),
        ("loss", "Held-out loss on true responses", 3),
        ("loss_distilled", "Held-out loss on rewritings", 3),
        ("unsupported_rate", "Unsupported answers, share", 2),
        ("words", "Words per answer", 0),
    ):
        print(f"### {title}\n\n{compare(runs, metric, digits)}\n")
    shown = set()
    for run in runs:
        sheet = paradox_sheet(read_lines(run / "metrics.jsonl"))
        if sheet.rows and sheet.rows not in shown:  # methods share their rewritings
            shown.add(sheet.rows)
            print(f"### Rewritings of {run.name}\n\n{render_text(sheet, markdown=True)}\n")


if __name__ == "__main__":
    main()
