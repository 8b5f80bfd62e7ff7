"""Make the built-in data from code and tables of facts, all of our own wording.

``python -m tools.demo_data`` writes what the package ships, made with seed 0. Another seed gives other
wordings, numbers and test sets: ``python -m tools.demo_data --seed 1 --to mydata`` writes them as folders
that ``data.root=mydata/domains`` reads.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsdr.data.readers import KEYS, Record
from fedsdr.data.sources import BUILT_IN, FILES
from fedsdr.storage import rewrite_lines
from tools.demo_data.disputed import disputed_data
from tools.demo_data.domains import demo_data


def main() -> None:
    """Write both kinds of built-in data."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_data", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="draws wordings, numbers and what is test")
    parser.add_argument("--to", type=Path, default=BUILT_IN, help="folder; by default that of the package")
    given = parser.parse_args()
    write(given.to, given.seed)


def write(folder: Path, seed: int) -> None:
    """Write ``<folder>/<kind>/<domain>/{train,test}.jsonl``; a kind is a value of `data.built_in`."""
    for kind, domains in (("domains", demo_data(seed)), ("disputed", disputed_data(seed))):
        _write_kind(folder / kind, domains)


def _write_kind(folder: Path, domains: Mapping[str, tuple[list[Record], list[Record]]]) -> None:
    for domain, parts in domains.items():
        for file, records in zip(FILES, parts, strict=True):
            rewrite_lines(folder / domain / file, map(_as_row, records))


def _as_row(record: Record) -> dict[str, Any]:
    fields = {**asdict(record.example), "client": record.client}
    return {keys[0]: fields[field] for field, keys in KEYS.items() if fields.get(field)}
