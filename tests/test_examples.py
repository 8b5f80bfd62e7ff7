"""The scripts and the notebook of examples/ run top to bottom, and say what they are to say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAID = {
    "grid": ["| fedsdr", "seeds"],
    "own_aggregation": ["average: held-out loss", "cautious: held-out loss"],
    "own_data": ["bakery: held-out loss", "florist: held-out loss", "mean: held-out loss"],
    "reading_results": ["round 2: training loss", "base: ", "global: ", "LoRA of rank 4 on down_proj"],
}
"""Script -> what its output holds."""


def run(path: Path, folder: Path) -> str:
    done = subprocess.run([sys.executable, str(path)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_a_script_runs(name: str, tmp_path: Path):
    said = run(EXAMPLES / f"{name}.py", tmp_path)
    for text in SAID[name]:
        assert text in said


def test_the_notebook_runs_top_to_bottom(tmp_path: Path):
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    shutil.copy(EXAMPLES / "small.toml", tmp_path)
    (tmp_path / "notebook.py").write_text(f"{program}\nprint(steps.shape, sorted(both.final))\n")
    # Two clients, two rounds, four steps in each.
    assert run(tmp_path / "notebook.py", tmp_path) == "(16, 6) ['global', 'personalised']\n"
