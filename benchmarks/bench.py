"""Measure fedsdr next to the tools in use today, print one table, and save it with the environment.

    make bench            (or: python benchmarks/bench.py benchmarks/results/NAME)

Each measurement runs in its own process (`measures.py`); compared ones alternate, and the table has their
medians. docs/performance.md explains each line.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

MEASURES = Path(__file__).with_name("measures.py")
PACKAGES = ("torch", "transformers", "peft", "trl", "flwr", "numpy", "ctranslate2")
SHAPES = ((4, 192, 6, 3), (8, 256, 3, 2))
"""Batch, tokens of each example, steps of one client and round, repeats."""
TINY = {
    "model.name": "tiny", "model.dtype": "float32", "model.max_length": 128, "lora.rank": 4,
    "method": "fedit", "client.local_steps": 2, "client.batch_size": 2, "server.num_rounds": 1,
    "eval.rewritings": False, "eval.max_new_tokens": 2, "data.num_test": 4,
}  # fmt: skip
SMALL = {
    "method": "fedit", "data.num_train": 60, "data.num_test": 4, "client.batch_size": 4,
    "client.learning_rate": 5e-4, "eval.rewritings": False, "eval.max_new_tokens": 2,
}  # fmt: skip

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    measure: str
    ours: str
    peer: str
    ratio: str
    goal: str
    met: bool | None
    """None: no goal, shown for information."""


def measure(name: str, **arguments: Any) -> Numbers:
    """Run one measurement in its own process."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(MEASURES), name, json.dumps(arguments)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{name} {arguments} failed:\n{done.stderr[-3000:]}")
    print(f"  {name} {json.dumps(arguments)}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    found: Numbers = json.loads(done.stdout.splitlines()[-1])
    return found


def in_turns(variants: dict[str, Callable[[], Numbers]], repeats: int) -> dict[str, Numbers]:
    """Measure the variants in alternation, several times; return the medians of all numbers."""
    found: dict[str, list[Numbers]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, once in variants.items():
            found[name].append(once())
    return {name: _median(runs) for name, runs in found.items()}


def _median(runs: Sequence[Numbers]) -> Numbers:
    return {
        key: statistics.median(run[key] for run in runs) if isinstance(value, int | float) else value
        for key, value in runs[0].items()
    }


def training(records: Numbers) -> list[Line]:
    lines = []
    for batch, length, steps, repeats in SHAPES:
        shape = {"batch": batch, "length": length, "steps": steps}
        found = in_turns(_variants(shape), repeats)
        what = f"{batch} x {length}"
        records[f"training {what}"] = found
        ours = found["ours"]
        for name, goal in (("TRL float32", 4.0), ("TRL bfloat16", 2.5), ("TRL bfloat16 tuned", None)):
            lines += _against(f"training {what}", ours, name, found[name], goal)
        share = ours["share_of_product_rate"]
        lines.append(
            Line(
                f"training {what}, GFLOP/s against a matrix product's",
                f"{share * ours['product_gflops']:.0f}", f"{ours['product_gflops']:.0f}",
                f"{share:.2f}", ">= 0.5", share >= 0.5,
            )
        )  # fmt: skip
    shape = {"batch": 4, "steps": 12, "domain": "code"}
    variants = {name: once for name, once in _variants(shape).items() if name != "TRL float32"}
    records["training, built-in code"] = found = in_turns(variants, 1)
    for name in ("TRL bfloat16", "TRL bfloat16 tuned"):
        lines += _against("4 examples of built-in code", found["ours"], name, found[name], None)
    return lines


def _variants(shape: Numbers) -> dict[str, Callable[[], Numbers]]:
    return {
        "ours": lambda: measure("train_ours", dtype="bfloat16", **shape),
        "TRL float32": lambda: measure("train_trl", dtype="float32", **shape),
        "TRL bfloat16": lambda: measure("train_trl", dtype="bfloat16", **shape),
        "TRL bfloat16 tuned": lambda: measure("train_trl", dtype="bfloat16", tuned=True, **shape),
    }


def _against(what: str, ours: Numbers, name: str, peer: Numbers, goal: float | None) -> list[Line]:
    """Speed and memory next to a peer; for a tuned one only `train()` counts, and there is no goal."""
    key = "tokens_per_second" if goal else "tokens_per_second_of_train_alone"
    speed, memory = ours["tokens_per_second"] / peer[key], ours["peak_gb"] / peer["peak_gb"]
    return [
        Line(f"{what}, {name}{'' if goal else ', train() alone'}, tokens/s",
             f"{ours['tokens_per_second']:.0f}", f"{peer[key]:.0f}", f"{speed:.1f}",
             f">= {goal}" if goal else "", speed >= goal if goal else None),
        Line(f"{what}, {name}, peak GB", f"{ours['peak_gb']:.2f}", f"{peer['peak_gb']:.2f}", f"{memory:.2f}",
             "<= 0.6" if goal else "", memory <= 0.6 if goal else None),
    ]  # fmt: skip


def compiled(records: Numbers) -> list[Line]:
    """Layers compiled, over as many steps as a client of the demo takes; compile time included."""
    shape = {"dtype": "bfloat16", "batch": 4, "length": 192, "steps": 8}
    eager, other = (measure("train_ours", compiled=flag, **shape) for flag in (False, True))
    records["compiled"] = {"eager": eager, "compiled": other}
    gflop, rate = eager["step_gflop"], eager["product_gflops"]
    # One process of the demo takes 240 steps; the first update here holds the compiling.
    extra = other["first_update_seconds"] - shape["steps"] * other["step_seconds"]
    share = gflop / (other["step_seconds"] + max(0.0, extra) / 240) / rate
    return [
        Line("4 x 192 with layers compiled (fedsdr does not), compiling spread over 240 steps",
             f"{share * rate:.0f}", f"{rate:.0f}", f"{share:.2f}", "(0.6)", None),
        Line("a step compiled against eager, seconds; compiling took", f"{other['step_seconds']:.2f}",
             f"{eager['step_seconds']:.2f}", f"+{extra:.0f} s", "", None),
    ]  # fmt: skip


def agreement(records: Numbers) -> list[Line]:
    """Our path in both types against float32 on transformers' eager attention."""
    found: dict[str, Numbers] = {}
    gradients: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype, attention in (
            ("plain", "float32", "eager"),
            ("float32", "float32", "grouped"),
            ("bfloat16", "bfloat16", "grouped"),
        ):
            path = f"{folder}/{name}.npy"
            found[name] = measure("gradient_and_decrease", dtype=dtype, attention=attention, to=path)
            gradients[name] = np.load(path)
    records["agreement"] = found
    falls = {name: one["loss_before"] - one["loss_after"] for name, one in found.items()}
    lines = []
    for dtype in ("float32", "bfloat16"):
        a, b = gradients[dtype], gradients["plain"]
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        ratio = falls[dtype] / falls["plain"]
        found[dtype]["cosine"] = cosine
        lines += [
            Line(f"gradient in {dtype}, cosine with float32 eager", f"{cosine:.5f}", "", "", ">= 0.99",
                 cosine >= 0.99),
            Line(f"decrease of held-out loss after 24 steps in {dtype}", f"{falls[dtype]:.3f}",
                 f"{falls['plain']:.3f}", f"{ratio:.3f}", "within 5 %", abs(ratio - 1) <= 0.05),
        ]  # fmt: skip
    return lines


def adapters(records: Numbers) -> list[Line]:
    lines = []
    for batch, length, _, _ in SHAPES:
        found = measure("two_adapters", dtype="bfloat16", batch=batch, length=length)
        records[f"two adapters {batch} x {length}"] = found
        ratio = found["ratio"]
        lines.append(
            Line(f"a step with two adapters, {batch} x {length}, seconds", f"{found['two_seconds']:.2f}",
                 f"{found['one_seconds']:.2f}", f"{ratio:.2f}", "<= 1.1", ratio <= 1.1)
        )  # fmt: skip
    return lines


def rewriting(records: Numbers) -> list[Line]:
    ours = {"num": 48, "batch": 48}
    found = in_turns(
        {
            "ours bfloat16": lambda: measure("generate_ours", dtype="bfloat16", **ours),
            "one by one float32": lambda: measure("generate_plain", dtype="float32", num=8, batch=1),
            "one by one bfloat16": lambda: measure("generate_plain", dtype="bfloat16", num=16, batch=1),
            "batches of 32 bfloat16": lambda: measure("generate_plain", dtype="bfloat16", num=48, batch=32),
            "our batches bfloat16": lambda: measure("generate_plain", dtype="bfloat16", tuned=True, **ours),
        },
        2,
    )
    lines = []
    rate = found["ours bfloat16"]["responses_per_second"]
    for name, goal in (
        ("one by one float32", 15.0),
        ("one by one bfloat16", None),
        ("batches of 32 bfloat16", 1.3),
        ("our batches bfloat16", None),
    ):
        peer = found[name]["responses_per_second"]
        met = None if goal is None else rate / peer >= goal
        lines.append(
            Line(f"rewriting, generate {name}, responses/s", f"{rate:.2f}", f"{peer:.2f}",
                 f"{rate / peer:.1f}", f">= {goal}" if goal else "", met)
        )  # fmt: skip
    exact = {"ours": measure("generate_ours", dtype="float32", num=20, batch=20)}
    exact["plain"] = measure("generate_plain", dtype="float32", num=20, batch=1)
    same = _share_equal(exact["ours"], exact["plain"])
    lines.append(Line("greedy answers equal to generate's, float32", f"{same:.2f}", "", "", "1", same == 1))
    half = _share_equal(found["ours bfloat16"], found["batches of 32 bfloat16"])
    lines.append(
        Line("greedy answers equal to batched generate's, bfloat16", f"{half:.2f}", "", "", "", None)
    )
    rates = [
        statistics.mean(found[name]["unsupported"]) for name in ("ours bfloat16", "batches of 32 bfloat16")
    ]
    lines.append(
        Line("unsupported rate of the rewritings, bfloat16", f"{rates[0]:.3f}", f"{rates[1]:.3f}",
             f"{rates[0] - rates[1]:+.3f}", "", None)
    )  # fmt: skip
    shared = measure("choices", dtype="bfloat16", num=48)
    lines.append(
        Line("three labels by likelihood, 48 prompts of 80 tokens, seconds",
             f"{shared['shared_seconds']:.2f}", f"{shared['apart_seconds']:.2f}", f"{shared['ratio']:.1f}",
             "> 1", shared["ratio"] > 1)
    )  # fmt: skip
    records["rewriting"] = {name: _numbers(one) for name, one in {**found, **exact}.items()} | {
        "choices": shared
    }
    records["rewriting"] |= {"equal float32": same, "equal bfloat16": half}
    return lines


def _share_equal(one: Numbers, other: Numbers) -> float:
    return statistics.mean(a == b for a, b in zip(one["texts"], other["texts"], strict=True))


def _numbers(found: Numbers) -> Numbers:
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def simulation(records: Numbers) -> list[Line]:
    found = {
        num: measure("federation", settings=TINY | {"partition.num_clients": num}, per_client=4)
        for num in (5, 50, 1000)
    }
    real = {
        num: measure("federation", settings=SMALL | {"partition.num_clients": num, "partition.kind": "iid",
                     "client.local_steps": 1, "server.num_rounds": 1})
        for num in (5, 50)
    }  # fmt: skip
    demo = measure("federation", settings=SMALL | {"method": "fedsdr", "client.local_steps": 8,
                   "distill.max_new_tokens": 16, "server.num_rounds": 2})  # fmt: skip
    records["simulation"] = {"tiny": found, "SmolLM2": real, "one round of fedsdr": demo}
    few, many = found[5], found[1000]
    memory, seconds = (many[key] / few[key] for key in ("peak_gb", "client_seconds"))
    more = real[50]["peak_gb"] - real[5]["peak_gb"]
    outside = demo["outside_training"]
    return [
        Line("1,000 clients against 5, tiny model, peak GB", f"{many['peak_gb']:.2f}",
             f"{few['peak_gb']:.2f}", f"{memory:.2f}", "<= 1.1", memory <= 1.1),
        Line("1,000 clients against 5, tiny model, ms a client", f"{1e3 * many['client_seconds']:.0f}",
             f"{1e3 * few['client_seconds']:.0f}", f"{seconds:.2f}", "<= 1.15", seconds <= 1.15),
        Line("50 clients against 5, SmolLM2, peak GB", f"{real[50]['peak_gb']:.2f}",
             f"{real[5]['peak_gb']:.2f}", f"+{more:.2f} GB", "<= +0.6", more <= 0.6),
        Line("share of a round outside training, SmolLM2, 8 steps a stage", f"{outside:.3f}", "", "",
             "<= 0.02", outside <= 0.02),
    ]  # fmt: skip


def messages(records: Numbers) -> list[Line]:
    settings = SMALL | {"data.domains": ["math", "medicine"], "client.local_steps": 10,
                        "server.num_rounds": 3, "data.num_test": 16}  # fmt: skip
    found = {
        dtype: measure("federation", settings=settings | {"communication.dtype": dtype})
        for dtype in ("float32", "float16", "int8")
    }
    records["messages"] = found
    lines = []
    fall = {dtype: one["loss_before"] - one["loss_after"] for dtype, one in found.items()}
    for dtype, one in found.items():
        beside = one["message_bytes"] - one["array_bytes"]
        lines.append(
            Line(f"message in {dtype}: kB of the adapter, and further bytes",
                 f"{one['array_bytes'] / 1e3:.0f}", "", f"+{beside}", "<= +2000", beside <= 2000)
        )  # fmt: skip
        if dtype != "float32":
            ratio = fall[dtype] / fall["float32"]
            lines.append(
                Line(f"decrease of the loss, {dtype} against float32 messages", f"{fall[dtype]:.4f}",
                     f"{fall['float32']:.4f}", f"{ratio:.4f}", "within 2 %", abs(ratio - 1) <= 0.02)
            )  # fmt: skip
    return lines


def starting(records: Numbers) -> list[Line]:
    from fedsdr.federation.run import run
    from fedsdr.recipe import load_settings

    recipe = MEASURES.parents[1] / "recipes" / "demo.toml"
    with tempfile.TemporaryDirectory() as cache:
        # The first run fills the cache; its training is cut to one step.
        chosen = [
            f"run.dir={cache}/first",
            f"run.cache={cache}",
            "client.local_steps=2",
            "server.num_rounds=1",
        ]
        run(load_settings(recipe, chosen))
        seconds = statistics.median(measure("first_step", folder=cache)["seconds"] for _ in range(3))
    records["starting"] = {"seconds": seconds}
    return [
        Line("second run, seconds to its first training step", f"{seconds:.1f}", "", "", "< 10", seconds < 10)
    ]


def environment() -> Numbers:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=MEASURES.parent)
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if find_spec(name)},
        "git_commit": commit.stdout.strip() or None,
        "date": time.strftime("%Y-%m-%d"),
    }


def as_markdown(lines: Sequence[Line]) -> str:
    rows = [
        ("measure", "ours", "peer", "ratio", "goal", "met"),
        ("---", "---:", "---:", "---:", "---:", "---"),
    ]
    words = {True: "yes", False: "**no**", None: ""}
    rows += [(line.measure, line.ours, line.peer, line.ratio, line.goal, words[line.met]) for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("to", type=Path, help="where to write NAME.json and NAME.md")
    options = parser.parse_args()
    start = time.monotonic()
    records: Numbers = {"environment": environment()}
    lines = [
        *training(records),
        *adapters(records),
        *agreement(records),
        *rewriting(records),
        *messages(records),
        *simulation(records),
        *starting(records),
        *compiled(records),
    ]
    records |= {"lines": [asdict(line) for line in lines], "minutes": (time.monotonic() - start) / 60}
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n")
    options.to.with_suffix(".md").write_text(as_markdown(lines))
    print(as_markdown(lines))
    print(f"{records['minutes']:.0f} minutes; written to {options.to}.json and .md")


if __name__ == "__main__":
    main()
