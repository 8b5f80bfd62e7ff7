"""Copy the records of finished cells, compactly.

    python recipes/study/collect.py OUT docs/results/study [NAME]

With a cell goes what `retention.sh` measured of it; the counts of rewritings go to rewritings.json. NAME is
added to the names of arms and of that file: cells of the same arms on another pool.
"""

import json
import sys
from pathlib import Path

out, to = map(Path, sys.argv[1:3])
name = "".join(f"-{word}" for word in sys.argv[3:])
to.mkdir(parents=True, exist_ok=True)
pools = sorted((out / "data/answer").glob("*/rewritings.json"))
counts = {path.parent.name: json.loads(path.read_text()) for path in pools}
(to / f"rewritings{name}.json").write_text(json.dumps(counts, indent=1) + "\n")
for path in sorted((out / "cells").glob("*/seed-*/record.json")):
    record = json.loads(path.read_text())
    record["arm"] += name
    retention = path.parent / "run/measurements/retention.json"
    if retention.exists():
        record["retention"] = json.loads(retention.read_text())["answers"]
    for model in record["models"]:
        if isinstance(kl := model.get("kl"), dict):  # cells of before 29 November have it by client
            model["kl"] = [value for client in sorted(kl) for value in kl[client]]
    text = json.dumps(record, separators=(",", ":"))
    (to / f"{record['arm']}-seed-{record['seed']}.json").write_text(text + "\n")
