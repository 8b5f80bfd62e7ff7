"""Copy the records of finished cells, compactly: python recipes/study/collect.py OUT docs/results/study.

With a cell goes what `retention.sh` measured of it.
"""

import json
import sys
from pathlib import Path

out, to = map(Path, sys.argv[1:])
to.mkdir(parents=True, exist_ok=True)
for path in sorted((out / "cells").glob("*/seed-*/record.json")):
    record = json.loads(path.read_text())
    retention = path.parent / "run/measurements/retention.json"
    if retention.exists():
        record["retention"] = json.loads(retention.read_text())["answers"]
    for model in record["models"]:
        if isinstance(kl := model.get("kl"), dict):  # cells of before 29 November have it by client
            model["kl"] = [value for client in sorted(kl) for value in kl[client]]
    text = json.dumps(record, separators=(",", ":"))
    (to / f"{record['arm']}-seed-{record['seed']}.json").write_text(text + "\n")
