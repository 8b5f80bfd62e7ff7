"""A second cost for finished cells: KL to the base on passages of text, in place of its answers to prompts.

    python recipes/beyond/text_cost.py CELLS PASSAGES OUT ARM ...

CELLS has ARM/seed-SEED of `cell.py`; PASSAGES is wikitext.jsonl of the retention data (docs/data.md).
OUT gets the records again, with the divergences of 60 passages of 96 tokens, for `confirm.py OUT ARM`.
Rehearsal is trained on answers to prompts, so this cost is further from what it keeps.
"""

import json
import sys
from pathlib import Path

from fedsdr.analysis.cost import Scaled, divergences
from fedsdr.data.conversation import Conversation
from fedsdr.data.files import file_rows
from fedsdr.experiments.measured_run import MeasuredRun, Options
from fedsdr.model.base import Base
from fedsdr.run_folder import RunFolder, read_settings
from fedsdr.server.checkpoint import load_round
from fedsdr.storage import read_json, write_file

LENGTH = 96
"""Tokens of a passage; its first token is not scored."""


def main(cells: Path, file: Path, out: Path, *arms: str) -> None:
    """Write the records that are missing."""
    for path in sorted(path for arm in arms for path in cells.glob(f"{arm}/seed-*/record.json")):
        record = read_json(path)
        new = out / f"{record['arm']}-seed-{record['seed']}.json"
        if new.exists():
            continue
        folder = path.parent / "run"
        settings = read_settings(folder)
        model = MeasuredRun(folder, settings, Options()).model
        texts = passages(model.base, file)
        record["models"] = [one for one in record["models"] if one["model"] != "personalised"]
        own = [one for one in record["models"] if one["model"] == "global"]
        rounds = {
            n: load_round(RunFolder(folder), n, settings.adapter.rank) for n in {r["round"] for r in own}
        }
        models = [
            Scaled({"shared": shared}, residual, one["scale"])
            for one in own
            for shared, residual in [rounds[one["round"]]]
        ]
        for one, kls in zip(own, divergences(model, texts, models, 32), strict=True):
            one["kl"] = [round(kl, 6) for kl in kls]
        record["cost"] = f"KL to the base on {len(texts)} passages of {file.name}"
        write_file(new, json.dumps(record, separators=(",", ":")) + "\n")


def passages(base: Base, file: Path) -> list[Conversation]:
    """The beginnings of the passages."""
    found = (base.tokenizer(row["text"])["input_ids"][:LENGTH] for _, row in file_rows(file))
    return [Conversation(tuple(ids), 1) for ids in found if len(ids) == LENGTH]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
