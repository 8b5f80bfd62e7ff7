"""Copy the records of finished cells, compactly: python recipes/study/collect.py OUT docs/results/study."""

import json
import sys
from pathlib import Path

out, to = map(Path, sys.argv[1:])
to.mkdir(parents=True, exist_ok=True)
for path in sorted((out / "cells").glob("*/seed-*/record.json")):
    record = json.loads(path.read_text())
    text = json.dumps(record, separators=(",", ":"))
    (to / f"{record['arm']}-seed-{record['seed']}.json").write_text(text + "\n")
