"""Measure what people wait for, in this tree and in another checkout of fedsdr, in turns.

    git worktree add ../before ed488ca
    python benchmarks/against.py ../before benchmarks/results/against            (about 20 minutes)
    python benchmarks/against.py ../before benchmarks/results/against --parts start,shared

Parts, in their order, with minutes on two idle cores; nothing else should run:

- shared (2): products of a decoding and a training step, alone and next to as many busy processes as cores;
- start (3): a second run to its first training step;
- cell (8): a run of `CELL` from its start to its page, with its rewriting and its evaluation;
- grid (4, one turn): four such runs by `--jobs 2`;
- demo (5, once): recipes/demo.toml, this tree alone.

Every process is one tree's, by its own sources and recipes and the same Python. Each figure is the median of
the turns. A row is written to NAME.json and NAME.md as soon as it is known, and takes the place of an earlier
row of its name, so parts can be measured one at a time. A ratio says how many times this tree is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import environment

HERE = Path(__file__).parents[1]
CORES = os.cpu_count() or 1
CELL = {
    "data.num_train": "24", "data.num_test": "8", "server.num_rounds": "2", "client.local_steps": "4",
    "client.batch_size": "2", "eval.max_new_tokens": "64",
}  # fmt: skip
"""Replace settings of recipes/demo.toml: a cell of recipes/compare-demo.toml on half of its data."""
BRIEF = {"data.num_train": "6", "data.num_test": "2", "server.num_rounds": "1", "client.local_steps": "2"}
"""Of a run whose cache a second run begins with."""
LOOP = """
import fedsdr, sys, time, torch
torch.set_num_threads({cores})
for rows in (48, 1024):
    x, w = torch.randn(rows, 576), torch.randn(576, 1536)
    for _ in range(20):
        x @ w
    start, done = time.monotonic(), 0
    while time.monotonic() - start < 3:
        x @ w
        done += 1
    print((time.monotonic() - start) / done)
"""
"""Prints the seconds of a product of a decoding step, and of a training step."""
FIRST_STEP = """
import os
import fedsdr.progress as progress
track = progress.track
def stop_at_steps(items, *words, **options):
    if "steps" in words:
        os._exit(0)
    return track(items, *words, **options)
progress.track = stop_at_steps
from fedsdr.cli import main
main()
"""
"""Ends where the first step begins; the run itself imports all that it uses, when it does so."""
Measured = dict[str, float]


@dataclass
class Record:
    """The known rows, and the file they are written to."""

    to: Path
    rows: dict[str, dict[str, object]] = field(default_factory=dict)

    def add(self, name: str, before: float | None, now: float, unit: str, goal: str, met: bool) -> None:
        """Add a row and write all."""
        ratio = before / now if before else None
        self.rows[name] = {"measure": name, "before": before, "now": now, "unit": unit, "ratio": ratio,
                           "goal": goal, "met": met}  # fmt: skip
        self.to.parent.mkdir(parents=True, exist_ok=True)
        self.to.with_suffix(".json").write_text(
            json.dumps({"environment": environment(), "rows": self.rows}, indent=1) + "\n"
        )
        lines = [
            "| measure | before | now | times | goal | met |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
        ]
        for row in self.rows.values():
            numbers = [
                "" if value is None else f"{value:.3g}" for value in (row["before"], row["now"], row["ratio"])
            ]
            words = [
                f"{row['measure']}, {row['unit']}",
                *numbers,
                row["goal"],
                "yes" if row["met"] else "**no**",
            ]
            lines.append(f"| {' | '.join(map(str, words))} |")
        self.to.with_suffix(".md").write_text("\n".join(lines) + "\n")
        print(lines[list(self.rows).index(name) + 2], flush=True)


@dataclass(frozen=True)
class Bench:
    """Two trees, and the measurements of both."""

    trees: Mapping[str, Path]
    more: Mapping[str, str]
    turns: int
    record: Record

    def python(self, tree: str, *words: str) -> tuple[Measured, str]:
        """Run this Python on a tree; return its seconds, peak memory and output."""
        path = self.trees[tree]
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
        env = clean | {"PYTHONPATH": str(path / "src"), "FLWR_TELEMETRY_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            process = subprocess.Popen([sys.executable, *words], cwd=path, env=env, stdout=out, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said.seek(0)
            if process.returncode:
                sys.exit(f"{tree}: {' '.join(words)}\n{said.read().decode()[-3000:]}")
            print(f"  {tree}: {seconds:.1f} s", file=sys.stderr, flush=True)
            cpu = usage.ru_utime + usage.ru_stime
            return {"seconds": seconds, "cpu": cpu, "gb": usage.ru_maxrss * 1024 / 1e9}, out.read().decode()

    def in_turns(self, once: Callable[[str], Measured], turns: int = 0) -> dict[str, Measured]:
        """Medians of each tree's numbers; the trees take turns."""
        found: dict[str, list[Measured]] = {tree: [] for tree in self.trees}
        for _ in range(turns or self.turns):
            for tree, values in found.items():
                values.append(once(tree))
        return {
            tree: {key: statistics.median(one[key] for one in values) for key in values[0]}
            for tree, values in found.items()
        }

    def settings(self, **settings: str) -> list[str]:
        """Settings as words of the command line."""
        return [f"{key}={value}" for key, value in ({**settings, **self.more}).items()]

    def faster(self, name: str, found: Mapping[str, Measured], key: str, least: float) -> None:
        """Add a row of seconds."""
        before, now = (found[tree][key] for tree in ("before", "now"))
        self.record.add(name, before, now, "s", f">= {least}", before / now >= least)


def shared(bench: Bench) -> None:
    """Products alone and next to busy processes."""

    def loop(tree: str) -> Measured:
        found: Measured = {}
        for place, num_busy in (("alone", 0), ("beside", CORES)):
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_busy)]
            try:
                _, out = bench.python(tree, "-c", LOOP.format(cores=CORES))
            finally:
                for process in busy:
                    process.kill()
            for kind, seconds in zip(("decoding", "training"), out.split(), strict=True):
                found[f"{kind} {place}"] = 1e3 * float(seconds)
        return found

    found = bench.in_turns(loop)
    for kind in ("decoding", "training"):
        before, now = (found[tree][f"{kind} alone"] for tree in ("before", "now"))
        bench.record.add(f"product of a {kind} step, alone", before, now, "ms", "<= 1.05 of before",
                         now <= 1.05 * before)  # fmt: skip
        before, now = (found[tree][f"{kind} beside"] for tree in ("before", "now"))
        slower = now / found["now"][f"{kind} alone"]
        name = (
            f"product of a {kind} step next to {CORES} busy processes ({slower:.1f} times as long as alone)"
        )
        bench.record.rows = {
            key: row
            for key, row in bench.record.rows.items()
            if key.partition(" (")[0] != name.partition(" (")[0]
        }
        bench.record.add(name, before, now, "ms", "<= 2.5 times as long", slower <= 2.5)


def start(bench: Bench) -> None:
    """A second run to its first training step."""
    with tempfile.TemporaryDirectory() as aside:

        def first(tree: str) -> Measured:
            run = bench.settings(
                **BRIEF, **{"run.dir": f"{aside}/{tree}", "run.cache": f"{aside}/cache-{tree}"}
            )
            return bench.python(tree, "-m", "fedsdr.cli", "run", "recipes/demo.toml", *run)[0]

        def second(tree: str) -> Measured:
            with tempfile.TemporaryDirectory(dir=aside) as place:
                where = {"run.dir": f"{place}/run", "run.cache": f"{aside}/cache-{tree}"}
                words = ("run", "recipes/demo.toml", *bench.settings(**BRIEF, **where))
                return bench.python(tree, "-c", FIRST_STEP, *words)[0]

        for tree in bench.trees:
            first(tree)
        found = bench.in_turns(second)
    bench.faster("second run, start to first training step", found, "seconds", 1.67)
    bench.faster("the same, processor time", found, "cpu", 1.67)


def cell(bench: Bench) -> None:
    """A run from its start to its page, with its parts as it logs them."""

    def run(tree: str) -> Measured:
        with tempfile.TemporaryDirectory() as aside:
            where = {"run.dir": f"{aside}/run", "run.cache": f"{aside}/cache"}
            words = ("run", "recipes/demo.toml", *bench.settings(**CELL, **where))
            found, _ = bench.python(tree, "-m", "fedsdr.cli", *words)
            log = (Path(aside) / "run/metrics.jsonl").read_text().splitlines()
        for kind in ("prepare", "train", "evaluate"):
            found[kind] = sum(event["seconds"] for event in map(json.loads, log) if event["event"] == kind)
        return found

    found = bench.in_turns(run)
    bench.faster("rewriting, all tries of all clients", found, "prepare", 2.0)
    bench.faster("evaluation", found, "evaluate", 1.5)
    bench.faster("training", found, "train", 0.95)
    bench.faster("a cell, start to page", found, "seconds", 1.6)
    before, now = (found[tree]["gb"] for tree in ("before", "now"))
    bench.record.add("a cell, peak of memory", before, now, "GB", "<= 1.05 of before", now <= 1.05 * before)


def grid(bench: Bench) -> None:
    """Four cells, two at a time."""

    def compare(tree: str) -> Measured:
        with tempfile.TemporaryDirectory() as aside:
            lines = ['recipe = "recipes/demo.toml"', 'baseline = "fedit"', "seeds = [0]", "[vary]",
                     'method = ["fedit", "fedsd", "fedsdr", "dual-raw"]', "[set]"]  # fmt: skip
            lines += [f"{key} = {value}" for key, value in (CELL | dict(bench.more)).items()]
            (Path(aside) / "grid.toml").write_text("\n".join(lines) + "\n")
            words = ("compare", f"{aside}/grid.toml", "--to", f"{aside}/out", "--jobs", "2")
            return bench.python(tree, "-m", "fedsdr.cli", *words)[0]

    bench.faster("four cells by --jobs 2", bench.in_turns(compare, 1), "seconds", 1.8)


def demo(bench: Bench) -> None:
    """The demo, as `make demo` runs it."""
    with tempfile.TemporaryDirectory() as aside:
        words = ("run", "recipes/demo.toml", *bench.settings(**{"run.dir": f"{aside}/run"}))
        found, _ = bench.python("now", "-m", "fedsdr.cli", *words)
    bench.record.add("make demo", None, found["seconds"], "s", "< 360", found["seconds"] < 360)
    bench.record.add("make demo, peak of memory", None, found["gb"], "GB", "< 2", found["gb"] < 2)


PARTS: dict[str, Callable[[Bench], None]] = {
    function.__name__: function for function in (shared, start, cell, grid, demo)
}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("to", type=Path, help="where to write NAME.json and NAME.md")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings of all runs, such as model.name='\"tiny\"'"
    )
    options = parser.parse_args()
    known = options.to.with_suffix(".json")
    record = Record(options.to, json.loads(known.read_text())["rows"] if known.exists() else {})
    more = dict(one.split("=", 1) for one in options.set)
    trees = {"before": options.before.resolve(), "now": HERE}
    bench = Bench(trees, more, options.turns, record)
    for name in options.parts.split(","):
        begun = time.monotonic()
        PARTS[name](bench)
        print(f"{name}: {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
