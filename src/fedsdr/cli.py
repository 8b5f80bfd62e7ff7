"""The command line: parse, call, print. Each command's work is elsewhere.

Nothing heavy is imported before a command needs it, so that --help answers at once.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsdr import __version__, progress
from fedsdr.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated instruction tuning by self-distillation with rectification (FedSD and FedSDR).",
    epilog="Begin with: fedsdr run recipes/demo.toml",
)

deploy = typer.Typer(no_args_is_help=True, help="Prepare a federation between organisations, over Flower.")
app.add_typer(deploy, name="deploy")

Recipe = Annotated[Path, typer.Argument(help="A TOML recipe, such as recipes/demo.toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings that win over the recipe, such as method=fedsd run.seed=1.", metavar="[KEY=VALUE]..."
    ),
]
RunDir = Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN_DIR")]
RunOrGrid = Annotated[Path, typer.Argument(help="The folder of a run or of a grid.", metavar="RUN_OR_GRID")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]


NOT_SHOWN = ("domains", "words", "choice_score")
"""Tables of a grid that are in its files and on its page, and too much for a terminal."""


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"fedsdr {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    is_dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the recipe and estimate memory, bytes and time; run nothing, write nothing.",
        ),
    ] = False,
    on: Annotated[
        Path | None,
        typer.Option(help="Run on a deployment: its server's folder, as `fedsdr deploy init` wrote it."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a federation: rewrite, train, aggregate, evaluate, report."""
    from fedsdr.recipe import load_settings

    progress.quiet = quiet
    settings = load_settings(recipe, overrides or [])
    if is_dry:
        _show_estimate(settings, as_json)
        return
    if on is not None:
        from fedsdr.deployment.submit import submit
        from fedsdr.federation.run import read_result

        _show(read_result(submit(on, settings)), as_json)
        return
    from fedsdr.federation.run import run as run_settings

    with _resumable(f"go on by `fedsdr resume {settings.run.dir}`"):
        _show(run_settings(settings), as_json)


@deploy.command("init")
def deploy_init(
    folder: Annotated[Path, typer.Argument(help="A new folder, for a server's and each client's.")],
    clients: Annotated[str, typer.Option(help="Names of the clients, with commas between them.")],
    address: Annotated[
        str, typer.Option(help="Where clients reach the server, host:port.")
    ] = "localhost:8443",
    model: Annotated[str, typer.Option(help="The base model of all.")] = "smollm2-135m-instruct",
) -> None:
    """Write what organisations need to run a federation over Flower: certificates, keys, configurations."""
    from fedsdr.deployment.init import init, is_local

    server, *others = init(folder, _names(clients), address, model)
    proxy = "" if is_local(address) else f", nginx -p {server} -c nginx.conf"
    print(f"{server}: start.sh{proxy}; `fedsdr deploy register {server}`; `fedsdr run RECIPE --on {server}`")
    for place in others:
        if is_local(address):
            print(f"{place}: put the data into data/<domain>/; `fedsdr node {place / 'node.toml'}`")
        else:
            print(f"{place}: send it to that client; put its public key into {server}/keys/{place.name}.pub")


@deploy.command("register")
def deploy_register(
    server: Annotated[Path, typer.Argument(help="The server's folder, as `fedsdr deploy init` wrote it.")],
) -> None:
    """Let the clients take part whose keys lie in SERVER/keys; call it again after a key was put in."""
    from fedsdr.deployment.keys import register

    register(server)


@deploy.command("status")
def deploy_status(
    server: Annotated[Path, typer.Argument(help="The server's folder, as `fedsdr deploy init` wrote it.")],
) -> None:
    """Show which clients are connected."""
    from fedsdr.deployment.keys import status

    for client, told in status(server).items():
        print(f"{client}: {told}")


@deploy.command("renew")
def deploy_renew(
    server: Annotated[Path, typer.Argument(help="The server's folder, as `fedsdr deploy init` wrote it.")],
) -> None:
    """Sign the server's certificate anew, for a year; then start SuperLink and proxy again."""
    from fedsdr.deployment.certificates import renew

    print(f"{server / 'server.crt'}: good until {renew(server):%Y-%m-%d}")


@app.command()
def node(
    file: Annotated[Path, typer.Argument(help="The client's node.toml, as `fedsdr deploy init` writes it.")],
) -> None:
    """Connect this machine's client to its server, and answer until stopped."""
    from fedsdr.deployment.node import run_node

    run_node(file)


@app.command()
def resume(run_dir: RunDir, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Go on with a run that was stopped, after its last finished round."""
    progress.quiet = quiet
    from fedsdr.federation.run import resume as resume_run

    with _resumable(f"go on by `fedsdr resume {run_dir}`"):
        _show(resume_run(run_dir), as_json)


@app.command()
def evaluate(
    run_dir: RunDir,
    server_round: Annotated[
        int | None, typer.Option("--round", help="Which round; the last by default.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a round of a run on the clients' test examples."""
    progress.quiet = quiet
    from fedsdr.federation.run import evaluate_round

    base, final = evaluate_round(run_dir, server_round)
    if as_json:
        _print_json({"base": base, "final": final})
    else:
        _print_scores(base, final)


@app.command()
def compare(
    grid: Annotated[Path, typer.Argument(help="A TOML grid, such as recipes/compare-demo.toml.")],
    to: Annotated[
        Path | None, typer.Option(help="The grid's folder; runs/<name of the file> by default.")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Runs at a time, each a process; 0: in this one, which cannot tell their memory apart.",
        ),
    ] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run methods or settings over seeds, and compare them; a stopped grid goes on."""
    progress.quiet = quiet
    from fedsdr.experiments.compare import compare as compare_grid

    with _resumable("give the same command again to go on"):
        sheets = compare_grid(grid, to, jobs)
    _print_sheets(sheets, as_json)


@app.command()
def report(
    folder: RunOrGrid,
    as_json: AsJson = False,
) -> None:
    """Write the page of a run or a grid, finished or not, and say where it is."""
    from fedsdr.experiments.results import PLAN, tabulate
    from fedsdr.federation.run import read_settings
    from fedsdr.report.page import write_report

    if (folder / PLAN).exists():
        _, path = tabulate(folder)
    else:
        path = write_report(folder, read_settings(folder))
    if as_json:
        _print_json({"report": str(path)})
    else:
        print(path)


@app.command()
def measure(
    folder: RunOrGrid,
    only: Annotated[
        str,
        typer.Option(
            help="Of alignment, gradients, transfer, map, consistency, survival, paradox, benchmarks, winrate"
            " (with commas between them); all that can be made without it."
        ),
    ] = "",
    nli: Annotated[
        str,
        typer.Option(help="An NLI cross-encoder, by hub name or folder, that checks entailment (paradox)."),
    ] = "",
    judge: Annotated[
        str, typer.Option(help="Base address of an OpenAI-compatible server that judges (winrate, paradox).")
    ] = "",
    judge_model: Annotated[str, typer.Option(help="Name of the model there.")] = "",
    against: Annotated[
        Path | None,
        typer.Option(help="Another run, whose global model is judged beside this one's (winrate)."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="Questions of the benchmarks: a folder laid out as docs/data.md says, or hub; the run's own"
            " test examples without it."
        ),
    ] = "",
    tasks: Annotated[str, typer.Option(help="Names of benchmarks, with commas between them.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Examples of each benchmark; 0: all.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the paper claims, on a run or on every cell of a grid; the page shows it."""
    progress.quiet = quiet
    from fedsdr.experiments.measure import PLAN, measure_grid
    from fedsdr.experiments.measure import measure as measure_run
    from fedsdr.experiments.measured_run import Options

    options = Options(nli, judge, judge_model, against, data, _names(tasks), limit)
    if (folder / PLAN).exists():
        _print_sheets(measure_grid(folder, _names(only), options), as_json)
    elif as_json:
        _print_json(measure_run(folder, _names(only), options))
    else:
        _print_measurements(measure_run(folder, _names(only), options))
        print(f"\nreport:  {folder / 'report.html'}")


@app.command()
def analyze(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl, .json or .csv file with instruction, input, output, distilled and, if there are,"
            " domain and label, answer or facts.",
            metavar="PAIRS",
        ),
    ],
    clusters: Annotated[
        int,
        typer.Option(
            min=0, help="Where no domains are named: this many clusters of instructions in their place."
        ),
    ] = 0,
    nli: Annotated[str, typer.Option(help="An NLI cross-encoder, by hub name or folder.")] = "",
    judge: Annotated[str, typer.Option(help="Base address of an OpenAI-compatible server that judges.")] = "",
    judge_model: Annotated[str, typer.Option(help="Name of the model there.")] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure rewritings in a file of pairs, without a run: alignment of domains, rewrite paradox."""
    progress.quiet = quiet
    from fedsdr.experiments.pairs import analyze as analyze_pairs

    made = analyze_pairs(pairs, clusters, nli, judge, judge_model)
    if as_json:
        _print_json(made)
    else:
        _print_measurements(made)


@app.command()
def data(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what each client would hold: counts, words, tokens, labels, samples, duplicates."""
    from fedsdr.data.summary import render_summary
    from fedsdr.federation.preflight import describe_data
    from fedsdr.recipe import load_settings

    summary = describe_data(load_settings(recipe, overrides or []))
    if as_json:
        _print_json(summary)
    else:
        print(render_summary(summary))


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List methods, corrections, aggregations, robust aggregators, server optimizers, prompts."""
    from fedsdr import methods as tables

    shown: dict[str, Any] = {
        "method": tables.METHODS,
        "client.drift_correction": tables.DRIFT_CORRECTIONS,
        "server.aggregation": tables.AGGREGATIONS,
        "server.robust": tables.ROBUST_AGGREGATORS,
        "server.optimizer": tables.OPTIMIZERS,
        "distill.prompts": tables.PROMPTS,
    }
    rows = {
        key: {name: {"summary": row.summary, "paper": row.paper} for name, row in table.items()}
        for key, table in shown.items()
    }
    pairs = {
        "server.aggregation": {n: tables.allowed_with(row) for n, row in tables.AGGREGATIONS.items()},
        "client.drift_correction": {
            n: tables.allowed_beside(row) for n, row in tables.DRIFT_CORRECTIONS.items()
        },
    }
    ranks = {name: row.ranks for name, row in tables.AGGREGATIONS.items()}
    if as_json:
        _print_json({**rows, "pairs": pairs, "ranks": ranks})
        return
    width = max(len(name) for table in rows.values() for name in table) + 2
    for key, table in rows.items():
        print(f"{key} =")
        for name, row in table.items():
            print(f"  {name:<{width}}{row['summary']}\n  {'':{width}}{row['paper']}")
    print("Every method goes with every correction, aggregation, robust aggregator and optimizer, but for:")
    for setting, by_name in pairs.items():
        for name, allowed in by_name.items():
            for key, names in allowed.items():
                every = max((others[key] for others in by_name.values()), key=len)
                barred = [other for other in every if other not in names]
                if barred:
                    few = len(barred) < len(names)
                    some = f"all but {' and '.join(barred)}" if few else " or ".join(names)
                    print(f"  {setting} = {name}: {key} = {some}")
    able = [name for name, kind in ranks.items() if kind != "one"]
    print(f"  lora.client_ranks: server.aggregation = {' or '.join(able)}")
    print("  methods that send nothing: no drift correction, aggregation, robust aggregator or optimizer")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the built-in models; a folder, a .gguf file or a hub id will do as well."""
    from fedsdr.model.base import list_models

    rows = list_models()
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        place = f"in {row['folder']}" if row["cached"] else "not yet fetched"
        print(f"{row['name']}\n  {row['origin']}; {row['licence']}; {row['size']}; {place}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="model.name, as in a recipe.")] = "smollm2-135m-instruct",
    quiet: Quiet = False,
) -> None:
    """Fetch and convert a model now, so that later runs need no network."""
    progress.quiet = quiet
    from fedsdr.config import Model
    from fedsdr.model.base import load_base

    base = load_base(Model(name=name))
    progress.say(f"{name}: ready ({base.origin})")


@app.command()
def chat(
    run_dir: RunDir,
    question: Annotated[
        str | None, typer.Option(help="Ask this once and end; without it, ask at a prompt.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Ask the base model and the global model of a run the same questions, side by side."""
    from fedsdr.federation.export import open_chat

    if as_json and question is None:
        raise UserError("chat --json answers one question: give it by --question")
    ask = open_chat(run_dir, max_new_tokens)
    for text in [question] if question is not None else _questions():
        answers = ask(text)
        if as_json:
            _print_json({"question": text, **answers})
        else:
            print("\n".join(f"{model}: {answer}" for model, answer in answers.items()))


@app.command()
def export(
    run_dir: RunDir,
    to: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model with the adapter folded in (float32).")
    ] = False,
    client: Annotated[
        str, typer.Option(help="The personalised model of this client (simulation only).")
    ] = "",
    server_round: Annotated[
        int | None, typer.Option("--round", help="Which round; the last by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the trained adapter for PEFT and vLLM, or the whole model."""
    from fedsdr.federation.export import export_round

    export_round(run_dir, to, server_round, client, merged)
    if as_json:
        _print_json({"folder": str(to)})
    else:
        print(to)


def _show(result: Any, as_json: bool) -> None:
    """Print a run's scores and where its files are."""
    if as_json:
        places = {"folder": result.folder, "adapter": result.adapter, "report": result.report}
        _print_json({"base": result.base, "final": result.final, **{k: str(v) for k, v in places.items()}})
        return
    _print_scores(result.base, result.final)
    no_global = f"none is global; `fedsdr export {result.folder} NEW --client NAME` writes a client's"
    print(f"adapter: {result.adapter if 'global' in result.final else no_global}\nreport:  {result.report}")


def _show_estimate(settings: Any, as_json: bool) -> None:
    """Print what a run would take, and what of it could not be known."""
    from dataclasses import asdict

    from fedsdr.federation.dry_run import dry_run, sheets
    from fedsdr.report.sheets import render_text

    estimate = dry_run(settings)
    if as_json:
        _print_json(asdict(estimate))
        return
    for line in estimate.known:
        print(line)
    for line in estimate.unknown:
        print(f"not known: {line}")
    for sheet in sheets(estimate):
        print(f"\n{render_text(sheet)}")


@contextmanager
def _resumable(how: str) -> Iterator[None]:
    """On Ctrl-C say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nfedsdr: stopped; {how}", file=sys.stderr)
        raise typer.Exit(130) from None


def _print_scores(base: Any, final: Any) -> None:
    """Print exact scores and held-out losses, one row for each domain."""
    from fedsdr.report.sheets import loss_sheet, render_text, score_sheet

    for sheet in (score_sheet(base, final), loss_sheet(base, final)):
        print(f"\n{render_text(sheet)}\n")


def _print_sheets(sheets: Any, as_json: bool) -> None:
    """Print the tables of a grid."""
    from fedsdr.experiments.results import as_json as sheets_as_json
    from fedsdr.report.sheets import render_text

    if as_json:
        _print_json(sheets_as_json(sheets))
        return
    shown = (sheet for name, sheet in sheets.items() if name.rpartition("-")[2] not in NOT_SHOWN)
    print("\n\n".join(render_text(sheet) for sheet in shown))


def _print_measurements(made: Any) -> None:
    """Print the tables and verdicts of measurements."""
    from fedsdr.report.measurements import measurement_sheets
    from fedsdr.report.sheets import render_text

    for sheet in measurement_sheets(made):
        print(f"\n{render_text(sheet)}")
    for measurement in made.values():
        for verdict in measurement.get("verdicts", ()):
            print(f"\n{verdict['verdict']}: {verdict['claim']}\n  {verdict['text']}")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").split())
    if text and not names:
        raise UserError(f"{text!r} names nothing: give names with commas between them")
    return names


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _questions() -> Any:
    """What the user types, until an empty line or the end of input."""
    while True:
        try:
            text = input("? ").strip()
        except EOFError:
            return
        if not text:
            return
        yield text


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exit code 2 and one message for what the user can mend."""
    try:
        app(argv)
    except UserError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:  # a full disk, a folder without permission: the system's words say which
        sys.exit(_fail(str(error)))


def _fail(message: str) -> int:
    print(f"fedsdr: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
