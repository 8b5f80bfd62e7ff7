"""The command line: parse, call, print. The work of each command is elsewhere.

Nothing heavy is imported before a command needs it, so that --help is fast.
"""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedsdr import __version__, progress
from fedsdr.cli_deploy import deploy, node
from fedsdr.cli_guide import init, settings
from fedsdr.cli_measure import analyze, judge_probe, measure, probe
from fedsdr.errors import UserError
from fedsdr.terminal import (
    AsJson,
    Overrides,
    Quiet,
    Recipe,
    Round,
    RunDir,
    RunOrGrid,
    print_estimate,
    print_json,
    print_result,
    print_scores,
    print_sheets,
    read_questions,
    resumable,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated instruction tuning by self-distillation with rectification (FedSD and FedSDR).",
    epilog="Begin with: fedsdr run recipes/demo.toml",
)

app.add_typer(deploy, name="deploy")


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"fedsdr {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command."""
    progress.show()


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    is_dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the recipe and estimate memory and bytes of messages; run nothing, write nothing.",
        ),
    ] = False,
    on: Annotated[
        Path | None,
        typer.Option(help="Run on a deployment: the server's folder, as written by `fedsdr deploy init`."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a federation: rewrite, train, aggregate, evaluate, report."""
    from fedsdr.recipe import load_settings
    from fedsdr.run_folder import RunFolder

    progress.show(quiet)
    chosen = load_settings(recipe, overrides or [])
    if is_dry:
        if on is None:  # a deployment continues the run of its folder
            RunFolder(chosen.run.dir).require_new()
        print_estimate(chosen, as_json)
        return
    if on is not None:
        from fedsdr.deployment.submit import submit
        from fedsdr.run_folder import read_result

        print_result(read_result(submit(on, chosen)), as_json)
        return
    with resumable(chosen.run.dir):
        from fedsdr.federation.run import run as run_settings

        print_result(run_settings(chosen), as_json)


OnOtherMachine = Annotated[
    bool, typer.Option(help="Allow another processor and other versions: the last bits differ from here on.")
]


@app.command()
def resume(
    run_dir: RunDir,
    changes: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    on_other_machine: OnOtherMachine = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Continue a stopped run after its last finished round, with the settings that it began with."""
    progress.show(quiet)
    if changes:
        raise UserError(
            f"{' '.join(changes)}: a run keeps the settings that it began with; start a new one. No rounds"
            " can be added either: learning rates follow from server.num_rounds. A new run can begin from a"
            f" trained model: `fedsdr export {run_dir} NEW --merged`, then model.name=NEW"
        )
    from fedsdr.federation.run import resume as resume_run

    with resumable(run_dir):
        print_result(resume_run(run_dir, on_other_machine), as_json)


@app.command()
def evaluate(
    run_dir: RunDir,
    server_round: Round = None,
    on_other_machine: OnOtherMachine = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a round of a run on the clients' test examples."""
    progress.show(quiet)
    from fedsdr.federation.run import evaluate_round

    base, final = evaluate_round(run_dir, server_round, on_other_machine)
    if as_json:
        print_json({"base": base, "final": final})
    else:
        print_scores(base, final)


@app.command()
def compare(
    grid: Annotated[Path, typer.Argument(help="A TOML grid, such as recipes/compare-demo.toml.")],
    to: Annotated[
        Path | None, typer.Option(help="The grid's folder. Default: runs/<name of the file>.")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Parallel runs, each in its own process; 0: all in this process.",
        ),
    ] = 1,
    on_other_machine: OnOtherMachine = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods or settings over seeds. The same command continues a stopped grid."""
    progress.show(quiet)
    from fedsdr.experiments.compare import compare as compare_grid

    with resumable():
        sheets = compare_grid(grid, to, jobs, on_other_machine)
    print_sheets(sheets, as_json)


@app.command()
def report(
    folder: RunOrGrid,
    as_json: AsJson = False,
) -> None:
    """Write the page of a run or a grid, finished or not, and print its path."""
    from fedsdr.experiments.results import tabulate
    from fedsdr.report.page import write_report
    from fedsdr.run_folder import PLAN, read_settings

    if (folder / PLAN).exists():
        _, path = tabulate(folder)
    else:
        path = write_report(folder, read_settings(folder))
    if as_json:
        print_json({"report": str(path)})
    else:
        print(path)


for command in (measure, analyze, probe, judge_probe, node, settings, init):
    app.command()(command)


@app.command()
def data(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show the data of each client: counts, words, tokens, labels, samples, duplicates."""
    from fedsdr.data.summary import render_summary
    from fedsdr.federation.preflight import describe_data
    from fedsdr.model.meta import hide_torch
    from fedsdr.recipe import load_settings

    settings = load_settings(recipe, overrides or [])
    hide_torch(settings.model)
    summary = describe_data(settings)
    if as_json:
        print_json(summary)
    else:
        print(render_summary(summary))


@app.command()
def methods(
    name: Annotated[
        str,
        typer.Argument(
            help="One table, such as server.aggregation, or one name, such as fedsdr. Default: all."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List methods, aggregations, optimizers and so on, and which of them go together."""
    from fedsdr import compatibility

    if as_json and name:
        raise UserError("methods --json prints all tables: leave the name out")
    if as_json:
        print_json(compatibility.as_json())
    else:
        print(compatibility.explain(name) if name else compatibility.as_text())


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the built-in models. A folder, a .gguf file or a hub id works as well."""
    from fedsdr.model.base import list_models

    rows = list_models()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        place = f"in {row['folder']}" if row["cached"] else "not yet fetched"
        print(f"{row['name']}\n  {row['origin']}; {row['licence']}; {row['size']}; {place}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="model.name, as in a recipe.")] = "smollm2-135m-instruct",
    quiet: Quiet = False,
) -> None:
    """Download and convert a model, so that later runs need no network."""
    progress.show(quiet)
    from fedsdr.config import Model
    from fedsdr.model.base import load_base

    base = load_base(Model(name=name))
    progress.say(f"{name}: ready ({base.origin})")


@app.command()
def chat(
    run_dir: RunDir,
    question: Annotated[
        str | None, typer.Option(help="Ask this one question. Default: read questions from a prompt.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    client: Annotated[str, typer.Option(help="Ask the personalised model of this client instead.")] = "",
    server_round: Round = None,
    as_json: AsJson = False,
) -> None:
    """Ask the base model and a trained one the same questions, side by side.

    The trained one is the run's global model, or a client's with --client. At a client of a deployment,
    RUN_DIR is its own folder of a run, as for `fedsdr export`.
    """
    from fedsdr.federation.export import open_chat

    if as_json and question is None:
        raise UserError("chat --json answers one question: set --question")
    ask = open_chat(run_dir, max_new_tokens, server_round, client)
    for text in [question] if question is not None else read_questions():
        answers = ask(text)
        if as_json:
            print_json({"question": text, **answers})
        else:
            print("\n".join(f"{model}: {answer}" for model, answer in answers.items()))


@app.command()
def export(
    run_dir: RunDir,
    to: Annotated[Path, typer.Argument(help="A new folder.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model with the adapter merged into it.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="For a merged model: float32, bfloat16, float16.")] = "float32",
    push_to_hub: Annotated[
        str, typer.Option(help="Upload the exported folder to this repository on the Hugging Face hub.")
    ] = "",
    client: Annotated[
        str, typer.Option(help="Export the personalised model of this client of a simulation.")
    ] = "",
    scale: Annotated[
        float,
        typer.Option(
            help="Multiply the trained change of the base by this: below 1, the model is nearer to the base."
            " `fedsdr measure RUN --only frontier` shows gain and cost of scales."
        ),
    ] = 1.0,
    gguf_lora: Annotated[
        bool,
        typer.Option(
            "--gguf-lora",
            help="Also adapter.gguf for llama.cpp, by its converter in the folder that LLAMA_CPP names.",
        ),
    ] = False,
    server_round: Round = None,
    as_json: AsJson = False,
) -> None:
    """Write the trained adapter for PEFT and vLLM, or the whole model.

    At a client of a deployment, RUN_DIR is what its node wrote for a run, FOLDER/RUN with the `folder` of its
    node.toml: the client's personalised model is written, and nothing is sent.
    """
    from fedsdr.federation.export import convert_lora, export_round, lora_converter
    from fedsdr.federation.model_card import push

    if dtype not in ("float32", "bfloat16", "float16") or (dtype != "float32" and not merged):
        raise UserError(f"--dtype {dtype}: set float32, bfloat16 or float16, with --merged")
    if not 0 < scale < math.inf:
        raise UserError(f"--scale {scale:g}: set a number above 0, such as 0.5; 1 is the trained model")
    if gguf_lora and merged:
        raise UserError("--gguf-lora converts an adapter: leave out --merged")
    converter = lora_converter() if gguf_lora else None
    base = export_round(run_dir, to, server_round, client, merged, dtype, scale)  # type: ignore[arg-type]
    if converter:
        convert_lora(base, to, converter)
    if push_to_hub:
        push(to, push_to_hub)
    if as_json:
        print_json({"folder": str(to)})
    else:
        print(to)


@app.command()
def clean(
    run_dir: RunDir,
    keep: Annotated[str, typer.Option(help="last, or a number n: every n-th round and the last.")],
    as_json: AsJson = False,
) -> None:
    """Remove rounds of a run that are no longer needed; it can still be resumed, evaluated and exported."""
    from fedsdr.run_folder import RunFolder, list_rounds, read_settings
    from fedsdr.server.checkpoint import remove_rounds
    from fedsdr.storage import locked

    if keep != "last" and not (keep.isdecimal() and int(keep)):
        raise UserError(f"--keep {keep}: set last, or a number of rounds")
    settings, run = read_settings(run_dir), RunFolder(run_dir)
    kept = settings.server.model_copy(update={"keep_rounds": keep})
    if settings.server.mean_of_rounds > 1 and run.last_round() < settings.server.num_rounds:
        raise UserError(
            f"server.mean_of_rounds = {settings.server.mean_of_rounds} reads earlier rounds at the run's end:"
            f" finish it first, by `fedsdr resume {run_dir}`"
        )
    with locked(run_dir, 0):
        before = list_rounds(run.server)
        remove_rounds(run, run.last_round(), kept)
    removed = sorted(set(before) - set(list_rounds(run.server)))
    if as_json:
        print_json({"removed": removed})
    else:
        print(f"removed {len(removed)} of {len(before)} rounds")


def main(argv: list[str] | None = None) -> None:
    """Run the command line. An error that the user can fix is one message, with exit code 2."""
    try:
        app(argv)
    except (UserError, OSError) as error:  # OSError: the system's message names the full disk, or the folder
        sys.exit(_fail(str(error)))


def _fail(message: str) -> int:
    print(f"fedsdr: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
