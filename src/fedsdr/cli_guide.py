"""`fedsdr settings` and `fedsdr init`: guidance for new users."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsdr.errors import UserError
from fedsdr.terminal import AsJson, complete_key, print_json

HINTS = {
    "is missing; expected text under": "--columns instruction=...,response=...",
    "data.skip_bad_rows = true": "--skip-bad-rows",
}
"""Words of an error in the data -> the option of `fedsdr init` that helps."""


def settings(
    key: Annotated[
        str,
        typer.Argument(
            help="A setting or a section, such as client.mu or client. Default: all.",
            autocompletion=complete_key,
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Explain settings: type, default, meaning, and which choices use them."""
    from dataclasses import asdict

    from fedsdr.catalogue import all_rows, find_rows

    rows = find_rows(key) if key else all_rows()
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    for row in rows:
        print(f"{row.key} = {row.default}")
        if key:
            print(f"  {row.kind}\n  {row.text}")
            if row.used:
                print(f"  used with {row.used}")
    if not key:
        print("`fedsdr settings SECTION` or `fedsdr settings KEY` says what they mean")


def init(
    to: Annotated[Path, typer.Argument(help="The recipe to write, such as mine.toml.", metavar="RECIPE")],
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with <domain>/train.jsonl, files of one domain each, separated by commas, or"
            " built-in. Default: ask."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A built-in name, a folder, a .gguf file or a hub id. Default: ask.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="See `fedsdr methods`. Default: ask.")] = None,
    columns: Annotated[
        str,
        typer.Option(help="Columns of your files: instruction=question,response=reply; also label, answer."),
    ] = "",
    client_column: Annotated[
        str, typer.Option(help="The column that says which client holds a row. Default: one client per file.")
    ] = "",
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, and count them.")
    ] = False,
) -> None:
    """Write a recipe for your data and model, and check that both can be read."""
    import tomli_w

    from fedsdr.config import Model, Settings
    from fedsdr.federation.preflight import describe_data
    from fedsdr.recipe import check_settings, load_settings
    from fedsdr.storage import write_file

    if to.exists():
        raise UserError(f"{to} exists already; name a file that does not")
    if data is None and not sys.stdin.isatty():
        raise UserError("there is no terminal to ask on: give --data, a folder, files, or built-in")
    data = _ask(data, "--data", "Your data (folder or files)", "built-in")
    model = _ask(model, "--model", "Base model", Model().name)
    method = _ask(method, "--method", "Method", Settings().method)
    values: dict[str, Any] = {"method": method, "model": {"name": model}}
    if data != "built-in":
        values["data"] = _data(data)
    if columns:
        pairs = [pair.partition("=") for pair in columns.split(",")]
        values.setdefault("data", {})["columns"] = {name.strip(): column.strip() for name, _, column in pairs}
    if client_column:
        values["partition"] = {"kind": "natural", "id_column": client_column}
    if skip_bad_rows:
        values.setdefault("data", {})["skip_bad_rows"] = True
    check_settings(values, source="init")
    head = (
        f"# fedsdr run {to}\n#\n# `fedsdr settings` explains every key; what is not here has its default.\n\n"
    )
    text = head + tomli_w.dumps(values)
    try:
        summary = describe_data(load_settings(None, values | {"run.dir": "runs/unused"}))
    except UserError as error:
        hints = (f"\nfedsdr init takes {option}" for words, option in HINTS.items() if words in str(error))
        raise UserError(f"{error}{''.join(hints)}") from None
    write_file(to, text)
    num = len(summary["clients"])
    for notice in summary["notices"]:
        print(notice)
    print(f"{to}: {num} client{'s' * (num != 1)}\nnext:\n  fedsdr data {to}\n  fedsdr run {to} --dry-run")
    print(f"  fedsdr run {to}")


def _ask(given: str | None, option: str, question: str, default: str) -> str:
    """The given value, or the answer; the default, which is printed, if there is no terminal to ask."""
    if given is not None:
        return given
    if not sys.stdin.isatty():
        print(f"{option} is not given: {default} is taken")
        return default
    return str(typer.prompt(f"{question} ({option})", default=default))


def _data(words: str) -> dict[str, Any]:
    """The section [data] for a folder of domains, or for files.

    Raises:
        UserError: A path does not exist.
    """
    paths = [Path(word.strip()) for word in words.split(",")]
    if missing := [path for path in paths if not path.exists()]:
        listed = ", ".join(map(str, missing))
        raise UserError(f"--data: {listed} does not exist; name a folder, files, or built-in")
    if len(paths) == 1 and paths[0].is_dir():
        return {"root": str(paths[0])}
    names = [path.stem for path in paths]
    if len({*names}) < len(names):  # bank/train.jsonl, clinic/train.jsonl
        names = [path.resolve().parent.name for path in paths]
    return {
        "sources": [{"domain": name, "train": str(path)} for name, path in zip(names, paths, strict=True)]
    }
