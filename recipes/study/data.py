"""The study's data: a pool of training rows with their rewritings, and fixed test rows, of each domain.

    python recipes/study/data.py DATA OUT [--even] [domain ...]

DATA holds <domain>/train.jsonl and <domain>/test.jsonl. OUT gets, for each verify mode, a folder that
`data.root` takes, OUT/<mode>/<domain>/..., whose training rows have a column `distilled`, so that one pool of
rewritings serves all seeds and methods. Rows longer than LONGEST tokens are left out. Test rows are drawn
from the odd lines; the even ones, which --even takes, are reserved for a confirmation.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

from fedsdr.config import Distill, Settings
from fedsdr.data.conversation import encode
from fedsdr.data.files import Row, file_rows
from fedsdr.data.readers import Record, fill_choices, to_records
from fedsdr.distill.rewrite import fall_back_where_cut, rewrite
from fedsdr.federation.model_cache import model_of
from fedsdr.recipe import load_settings
from fedsdr.seeds import seed_for

LONGEST = 256
NUM_POOL, NUM_TEST = 160, 100
MODES = ("answer", "off")


def main(data: Path, out: Path, *words: str) -> None:
    """Draw, rewrite and write."""
    first = int("--even" in words)
    domains = [word for word in words if word != "--even"]
    settings = load_settings(None, {"model.max_length": LONGEST, "run.threads": 1})
    for domain in domains or [path.name for path in sorted(data.iterdir())]:
        train = drawn(file_rows(data / domain / "train.jsonl"), domain, NUM_POOL, settings)
        test = drawn(file_rows(data / domain / "test.jsonl")[first::2], domain, NUM_TEST, settings)
        for mode in MODES:  # what `answer` asked for first, `off` takes from the cache
            _write(out / mode / domain, settings, mode, train, test)


def drawn(rows: list[Row], domain: str, most: int, settings: Settings) -> list[tuple[Row, Record]]:
    """Draw from the rows that fit, the same whatever the seed of a run."""
    tokenizer = model_of(settings).base.tokenizer

    def fits(record: Record) -> bool:
        texts = [text for text in (record.example.response, record.example.distilled) if text]
        return all(len(encode(tokenizer, record.example, text, 10**9).ids) <= LONGEST for text in texts)

    fitting = [(row, record) for row in rows if fits(record := to_records([row], domain)[0])]
    random.Random(seed_for(0, "study", domain)).shuffle(fitting)
    return fitting[:most]


def _write(
    folder: Path,
    settings: Settings,
    mode: str,
    train: list[tuple[Row, Record]],
    test: list[tuple[Row, Record]],
) -> None:
    records = fill_choices([record for _, record in (*train, *test)])  # as a run reads them
    model, examples = model_of(settings), [record.example for record in records[: len(train)]]
    distill = Distill.model_validate({"verify": mode})
    new = rewrite(model, examples, distill, 2 * LONGEST, folder.parent.parent / "cache")
    new = fall_back_where_cut(model.base.tokenizer, examples, new, LONGEST)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**row, "distilled": one.distilled} for ((_, row), _), one in zip(train, new, strict=True)]
    for name, some in (("train", rows), ("test", [row for (_, row), _ in test])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    counts = Counter(one.fallback or f"taken from {one.prompt}" for one in new)
    (folder / "rewritings.json").write_text(json.dumps(dict(sorted(counts.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
