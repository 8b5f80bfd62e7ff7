"""Arms beyond the paper at equal cost with the study's control.

    python recipes/beyond/table.py CELLS [CELLS ...]

CELLS are folders with ARM/seed-SEED/record.json: the study's, which hold the control, and the development's.
"""

import sys
from pathlib import Path

from fedsdr.experiments.frontier import ScoredRun, by_domain, domain_sheet, frontier, frontier_sheet
from fedsdr.report.sheets import render_text
from fedsdr.storage import read_json

paths = [path for folder in sys.argv[1:] for path in sorted(Path(folder).glob("*/seed-*/record.json"))]
records = [record for path in paths if (record := read_json(path))["seed"] <= 2]
runs = [ScoredRun(record["arm"], record["seed"], record["models"]) for record in records]
controls = {"global": "fedit"}
for sheet in (
    frontier_sheet(frontier(runs, controls, ("finance",))),
    domain_sheet(by_domain(runs, controls)),
):
    print(render_text(sheet, markdown=True), end="\n\n")
