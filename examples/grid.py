"""Methods compared over seeds, with tests and a page: python examples/grid.py."""

from pathlib import Path

import fedsdr

HERE = Path(__file__).parent
GRID = f"""
recipe = "{HERE / "small.toml"}"
baseline = "fedit"
seeds = [0, 1]

[vary]
method = ["fedit", "fedsdr"]

[set]
data.domains = ["finance", "math"]
data.num_train = 6
data.num_test = 2
run.threads = 1
"""

if __name__ == "__main__":  # the runs are processes of their own, which import this file
    Path("runs").mkdir(exist_ok=True)
    Path("runs/grid.toml").write_text(GRID)
    fedsdr.compare("runs/grid.toml", "runs/grid", jobs=2)  # given again, it continues a stopped grid
    print(Path("runs/grid/comparison.md").read_text())
