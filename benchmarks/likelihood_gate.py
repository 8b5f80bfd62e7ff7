"""False alarms and misses of both modes of `verify` on the labels of the verdict tables.

    python benchmarks/likelihood_gate.py benchmarks/results/likelihood_gate.json

The texts come without their prompts, as in the tables: the gate sees only the answer and the choices.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from scipy.stats import binomtest

from fedsdr.config import Lora, Model
from fedsdr.data.checks import lost
from fedsdr.data.examples import Example
from fedsdr.distill.likelihood_check import express_label
from fedsdr.federation.model_cache import load_model

TABLES = Path(__file__).parent.parent / "tests" / "data"
BATCH = 8


def share(wrong: Iterable[bool]) -> dict:
    """Count, share, and Wilson's 95 % interval."""
    wrong = list(wrong)
    test = binomtest(sum(wrong), len(wrong)).proportion_ci(method="wilson")
    return {
        "n": len(wrong),
        "wrong": sum(wrong),
        "share": sum(wrong) / len(wrong),
        "ci_low": test.low,
        "ci_high": test.high,
    }


def main(out: Path) -> None:
    """Score each table's label rows, and write the results."""
    model = load_model(Model(), Lora(), 1)
    record = {}
    for name in ("verdicts", "verdicts_blind"):
        rows = [json.loads(line) for line in (TABLES / f"{name}.jsonl").read_text("utf-8").splitlines()]
        rows = [row for row in rows if row["kind"] in ("label", "option") and row.get("choices")]
        examples = [Example("", "", "d", label=row["label"], choices=tuple(row["choices"])) for row in rows]
        texts = [row["text"] for row in rows]
        kept = [not lost(example, text) for example, text in zip(examples, texts, strict=True)]
        likely = express_label(model, examples, texts, BATCH)
        gates = {"answer": kept, "answer+likelihood": [a and b for a, b in zip(kept, likely, strict=True)]}
        record[name] = {
            gate: {
                "false_alarms": share(
                    not keep for keep, row in zip(keeps, rows, strict=True) if row["right"]
                ),
                "misses": share(keep for keep, row in zip(keeps, rows, strict=True) if not row["right"]),
            }
            for gate, keeps in gates.items()
        }
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
