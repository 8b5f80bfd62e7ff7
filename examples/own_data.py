"""Federated fine-tuning on rows of your own: python examples/own_data.py."""

from pathlib import Path

import fedsdr
from fedsdr import progress

HERE = Path(__file__).parent


def rows(shop: str, opens: int) -> list[dict[str, str]]:
    """Questions to a shop and their answers; any dicts with instruction and output work."""
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
    return [
        {"instruction": f"When does the {shop} open on {day}?", "output": f"On {day} at {opens} o'clock."}
        for day in days
    ]


data = {
    # Client id -> training rows and test rows. Rows alone will do too: a tenth of them is held out then.
    "bakery": (rows("bakery", 6), [{"instruction": "When does the bakery open?", "output": "At 6 o'clock."}]),
    "florist": (
        rows("florist", 9),
        [{"instruction": "When does the florist open?", "output": "At 9 o'clock."}],
    ),
}

progress.show()  # without it nothing is printed
result = fedsdr.run({"recipe": HERE / "small.toml", "run.dir": "runs/own-data"}, data=data)
for client, scores in result.final["global"].items():
    print(f"{client}: held-out loss {result.base['global'][client]['loss']:.2f} -> {scores['loss']:.2f}")
print(f"adapter for PEFT: {result.adapter}; page: {result.report}")
