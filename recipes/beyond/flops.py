"""Bytes, optimizer steps and floating-point operations of an arm of docs/results/beyond.md.

    python recipes/beyond/flops.py DATA OUT ARM [key=value ...]

DATA is the output of `data.py`, whose rewritings are made anew to be counted. Two of a cell's four rounds
run, with seed 10 and these settings. It writes OUT/ARM.json, and prints the table of all arms in OUT; fedit
comes first. PyTorch counts the matrix products and attention of all clients (torch.utils.flop_counter).
Before training are rewritings or synthetic conversations, and five test scores.
"""

import sys
import tempfile
from pathlib import Path
from statistics import fmean

from torch.utils.flop_counter import FlopCounterMode

import fedsdr
from fedsdr.callbacks import Callback
from fedsdr.history import Record
from fedsdr.recipe import load_settings
from fedsdr.report.sheets import Sheet, number, render_text
from fedsdr.run_folder import RunFolder
from fedsdr.storage import Event, read_json, read_lines, rewrite_lines, write_json

RECIPE = Path(__file__).parents[1] / "study/study.toml"
NUM_ROUNDS = 4


class Marks(Callback):
    """Operations counted before training, and after each round."""

    def __init__(self, counter: FlopCounterMode) -> None:
        """Read this counter."""
        self.counter = counter
        self.totals: list[int] = []

    def on_evaluate(self, record: Record) -> None:
        """The base's scores come before the first round; others are not counted."""
        if record["round"] == 0:
            self.totals.append(self.counter.get_total_flops())

    def on_round(self, record: Record) -> None:
        """A round has ended."""
        self.totals.append(self.counter.get_total_flops())


def main(data: Path, out: Path, arm: str, *more: str) -> None:
    """Count, and print the table."""
    with tempfile.TemporaryDirectory() as aside, FlopCounterMode(display=False) as counter:
        own = {
            "data.root": without_rewritings(data, Path(aside)),
            "run.dir": f"{aside}/run",
            "run.cache": f"{aside}/cache",
            "run.seed": 10,
            "data.seed": 10,
            "server.num_rounds": 2,
        }
        marks = Marks(counter)
        fedsdr.run(load_settings(RECIPE, [*(f"{k}={v}" for k, v in own.items()), *more]), callbacks=[marks])
        lines = [line for line in read_lines(RunFolder(f"{aside}/run").log) if line["event"] == "train"]
    before, _, end = marks.totals
    clients = {line["client"] for line in lines}
    steps = sum(value for line in lines for key, value in line.items() if key.endswith("/num_steps"))
    record = {
        "arm": arm,
        "settings": more,
        "flop_before": before / len(clients),
        "flop_round": (end - before) / 2 / len(clients),
        "steps_round": steps / 2 / len(clients),
        "bytes_round": fmean(line["num_bytes_up"] for line in lines),
    }
    write_json(out / f"{arm}.json", record)
    records = [read_json(path) for path in sorted(out.glob("*.json"))]
    print(render_text(sheet(records), markdown=True))


def without_rewritings(data: Path, aside: Path) -> Path:
    """A copy of the data that leaves the column `distilled` out."""
    for path in (data / "answer").glob("*/*.jsonl"):
        rows = [{key: row[key] for key in row if key != "distilled"} for row in read_lines(path)]
        rewrite_lines(aside / "data" / path.parent.name / path.name, rows)
    return aside / "data"


def sheet(records: list[Event]) -> Sheet:
    """A row for each arm: of a client, all rounds."""
    tera = 1e12
    control = next(record for record in records if record["arm"] == "fedit")
    return Sheet(
        "What a client computes and sends in a cell",
        "lrrrrr",
        ("arm", "MB sent", "steps", "TFLOP before training", "TFLOP of training", "both, over fedit's"),
        tuple(
            (
                r["arm"],
                number(NUM_ROUNDS * r["bytes_round"] / 1e6, 1),
                f"{NUM_ROUNDS * r['steps_round']:.0f}",
                number(r["flop_before"] / tera, 1),
                number(NUM_ROUNDS * r["flop_round"] / tera, 1),
                number(total(r) / total(control), 2),
            )
            for r in records
        ),
        tuple(records),
    )


def total(record: Event) -> float:
    """Operations of a client in a cell."""
    return record["flop_before"] + NUM_ROUNDS * record["flop_round"]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
