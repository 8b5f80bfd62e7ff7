"""The sheet of benchmarks: what stands in its cells."""

from fedsdr.report.benchmarks import benchmark_sheet
from fedsdr.report.tables import render_text


def record(task: str, metric: str, model: str, value: float, **more) -> dict:
    return {
        "task": task, "metric": metric, "model": model, "value": value, "num": 40,
        "stderr": 0.0234, "chance": None, "origin": "local", "dataset": "x", **more,
    }  # fmt: skip


def test_models_stand_beside_each_other_and_subjects_in_the_records_only():
    records = [
        record("mmlu", "likelihood", "base", 0.3149, chance=0.25),
        record("mmlu", "likelihood", "base", 0.5, chance=0.25, subject="anatomy", num=2),
        record("gsm8k", "strict", "base", 0.0),
        record("gsm8k", "flexible", "base", 0.05),
        record("mmlu", "likelihood", "global", 0.35, chance=0.25),
        record("gsm8k", "strict", "global", 1.0, stderr=None, num=1),
    ]
    sheet = benchmark_sheet(records)
    assert sheet.rows == (
        ("mmlu", "base", "likelihood", "0.31 ± 0.02", "0.25", "40"),
        ("mmlu", "global", "likelihood", "0.35 ± 0.02", "0.25", "40"),
        ("gsm8k", "base", "strict", "0.00 ± 0.02", "-", "40"),
        ("gsm8k", "global", "strict", "1.00", "-", "1"),
        ("gsm8k", "base", "flexible", "0.05 ± 0.02", "-", "40"),
    )
    assert len(sheet.records) == 6
    assert "mmlu   global  likelihood  0.35 ± 0.02    0.25  40" in render_text(sheet)
