"""`make check-gpu` works up to the GPU: all its rows run on a processor with tiny shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCKED = "flwr", "typer", "httpx", "cryptography", "sklearn", "gguf", "tomli_w"
"""Some dependencies that a bare machine lacks."""


def test_all_rows_run_on_a_bare_machine(tmp_path: Path):
    """Without the packages of federation and command line, each row ends with numbers and without an error."""
    blocker = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
    (tmp_path / "sitecustomize.py").write_text(blocker)
    result = tmp_path / "new" / "gpu.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "check_gpu.py", result, "--dry"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row.pop("row"): row for row in json.loads(result.read_text())["rows"]}
    assert {"SmolLM2: loss after 20 steps", "7B, bfloat16", "7B: rewriting"} <= rows.keys()
    assert not any("error" in row for row in rows.values())
    loss = rows["SmolLM2: loss after 20 steps"]
    assert loss["float32_loss"] == loss["cpu_loss"] < loss["cpu_first_loss"]
    for name in rows:
        assert f"| {name} |" in done.stdout
