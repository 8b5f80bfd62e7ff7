"""The table of docs/reliability.md, from the records of `make test-faults` and `make test-deployment`.

    python benchmarks/reliability.py docs/results/reliability runs/faults.jsonl runs/deployment.jsonl

Copies the records and prints the table. A record that was added to by several runs counts each of its lines.
"""

import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from fedsdr.federation.environment import PACKAGES, git_commit
from fedsdr.storage import read_lines, write_json


def main() -> None:
    to, *sources = map(Path, sys.argv[1:])
    to.mkdir(parents=True, exist_ok=True)
    rows: dict[tuple[str, str], int] = {}
    for source in sources:
        if source.parent != to:
            shutil.copy(source, to / source.name)
        for line in read_lines(source):
            what = f"{line['fault']}, {line['stage']}" if "stage" in line else line["fault"]
            key = what, line["lost"]
            rows[key] = rows.get(key, 0) + line["num"]
    made = {"command": shlex.join(["python", *sys.argv]), "git_commit": git_commit()}
    write_json(to / "environment.json", made | {"versions": {name: version(name) for name in PACKAGES}})
    print("| what was done | times | what was lost |\n|---|---:|---|")
    for (what, lost), num in rows.items():
        print(f"| {what} | {num:,} | {lost} |")


if __name__ == "__main__":
    main()
