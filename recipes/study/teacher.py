"""Data whose rewritings come from a stronger model: five clients by topic, from one file of pairs.

    python recipes/study/teacher.py PAIRS OUT

PAIRS has lines with `instruction`, `input`, `output` and `distilled`. OUT/answer gets what `data.py` writes
for the five domains: a client for each cluster of instructions, with a pool of training rows and fixed test
rows. Rows longer than LONGEST tokens, with either response, are left out.
"""

import json
import sys
from pathlib import Path

from cell import NUM_TEST

from data import LONGEST, NUM_POOL, drawn
from fedsdr.analysis.alignment import cluster
from fedsdr.data.files import file_rows
from fedsdr.recipe import load_settings

NUM_CLIENTS = 5


def main(pairs: Path, out: Path) -> None:
    """Cluster, draw and write."""
    settings = load_settings(None, {"model.max_length": LONGEST, "run.threads": 1})
    rows = file_rows(pairs)
    names = cluster([row["instruction"] for _, row in rows], NUM_CLIENTS, 0)
    for name in sorted(set(names)):
        own = [row for row, of in zip(rows, names, strict=True) if of == name]
        some = [row for (_, row), _ in drawn(own, name, NUM_POOL + NUM_TEST, settings)]
        folder = out / "answer" / name
        folder.mkdir(parents=True, exist_ok=True)
        for part, chosen in (("test", some[:NUM_TEST]), ("train", some[NUM_TEST:])):
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
        print(f"{name}: {len(own)} rows, {len(some)} drawn")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
