"""The study's verdicts follow from its records: on a small copy with known effects; README says what they say."""

import importlib.util
import json
import random
import re
import runpy
from pathlib import Path

import pytest

from fedsdr.experiments.frontier import ScoredRun
from fedsdr.experiments.probe import NEVER_GAINED
from fedsdr.storage import read_lines

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes/study/verdicts.py"
BASE, SCALES = 2.0, (0.25, 0.5, 1.0)
DOMAINS = ("finance", "math")


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("verdicts", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "verdicts", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    monkeypatch.setattr("fedsdr.analysis.frontier.NUM_DRAWS", 200)
    return module


def record(arm: str, seed: int, model: str, gain: float, cost: float) -> dict:
    """A cell whose gain is linear in the root of the cost, as at every scale lambda: G lambda, C lambda^2."""
    rng = random.Random(f"{seed}")  # the same examples are hard for every arm
    noise = {name: [rng.gauss(0, 0.02) for _ in range(5)] for name in DOMAINS}
    noise = {name: [one - sum(some) / 5 for one in some] for name, some in noise.items()}
    own = random.Random(f"{arm} {seed}")
    gain, cost = gain + own.uniform(-0.01, 0.01), cost * own.uniform(0.98, 1.02)

    def losses(scale: float) -> dict:
        part = {name: [BASE - gain * scale + one * scale for one in some] for name, some in noise.items()}
        return {"test": part} | ({"validation": part} if arm in ("fedit", "local-only") else {})

    models = [{"model": "base", "round": 0, "scale": 0.0, **losses(0)}]
    for scale in SCALES:
        place = {"model": model, "round": 4, "scale": scale}
        models.append({**place, **losses(scale), "kl": [cost * scale**2] * 4})
    return {"arm": arm, "seed": seed, "seconds": {"training": 60.0 + seed, "scoring": 1.0}, "models": models}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """fedsd gains 0.4 at a cost where the control gains 0.5 x sqrt(0.09 / 0.25) = 0.3; fedsdr 0.1 there.

    Of ten questions that the base answers, fedit forgets five (one fewer in seed 0), fedsd one, fedsdr four.
    """
    folder = tmp_path / "study"
    folder.mkdir()
    arms = {"fedit": (0.5, 0.25), "fedsd": (0.4, 0.09), "fedsdr": (0.1, 0.09), "centralised": (0.9, 0.5)}
    for seed in range(4):
        found = [record(arm, seed, "global", *numbers) for arm, numbers in arms.items()]
        found.append(record("local-only", seed, "personalised", 0.2, 0.25))
        for one in found:
            if forgotten := {"fedit": 5 - (seed == 0), "fedsd": 1, "fedsdr": 4}.get(one["arm"]):
                tuned = [1] * (10 - forgotten) + [0] * forgotten
                one["retention"] = [{"task": "piqa", "metric": "acc_norm", "base": [1] * 10, "tuned": tuned}]
            (folder / f"{one['arm']}-seed-{seed}.json").write_text(json.dumps(one))
    (tmp_path / "study.md").write_text("# Study\n\nWhat was planned.\n\n## Verdicts\n\nNone yet.\n")
    (tmp_path / "README.md").write_text(
        "# It\n\nA method that changes the model less may only be gentler. Two\nlines.\n\nMore.\n"
    )
    return folder


def test_verdicts_and_effects_are_those_that_were_put_into_the_records(verdicts, records: Path):
    document, readme = records.parent / "study.md", records.parent / "README.md"
    verdicts.main(records, document, readme)
    text = document.read_text()
    assert text.startswith("# Study\n\nWhat was planned.\n\n## Verdicts\n") and "None yet" not in text
    rows = {line.split(".")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    for claim, word, effect in (("1", "supported", 0.1), ("2", "refuted", -0.2), ("3", "refuted", -0.3),
                                ("4a", "not run", None), ("6", "supported", -0.16),
                                ("7", "supported", 0.3), ("8a", "supported", 0.375),
                                ("8b", "undecided", 0.075)):  # fmt: skip
        cells = [cell.strip() for cell in rows[claim].strip("|").split("|")]
        assert cells[1] == f"**{word}**", rows[claim]
        if effect is not None:
            assert float(cells[2].replace("−", "-")) == pytest.approx(effect, abs=0.03)
            assert cells[6] == "4"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (beyond,) = (row for row in cells if row[:5] == ["centralised", "global", "4", "1", "all"])
    assert "not comparable" in beyond
    missing = "Fewer than the eight planned: fedit, fedsd, fedsdr, dual-raw, centralised, local-only."
    assert missing in " ".join(text.split())
    said = " ".join(readme.read_text().split())
    assert said.startswith("# It A method that changes") and said.endswith("More.") and "Two" not in said
    assert re.search(r"FedSD gains 0\.\d+ nats a token more \([^)]*, 4 of 8 seeds, interim\)", said)
    assert "rewritten" not in said
    assert "<svg" in (records / "frontier.svg").read_text()


def test_arms_on_the_mended_pool_have_verdicts_of_their_own(verdicts, records: Path):
    """There fedsd gains 0.2 and fedsdr 0.35; the verdicts of the first pool stay."""
    for seed in range(4):
        for arm, gain in (("fedsd-labels", 0.2), ("fedsdr-labels", 0.35)):
            found = record(arm, seed, "global", gain, 0.09)
            (records / f"{arm}-seed-{seed}.json").write_text(json.dumps(found))
    document, readme = records.parent / "study.md", records.parent / "README.md"
    verdicts.main(records, document, readme)
    rows = [line.split("|") for line in document.read_text().splitlines() if line.startswith("| 3. ")]
    assert [(row[2].strip(), float(row[3])) for row in rows] == [
        ("**refuted**", pytest.approx(-0.3, abs=0.03)),
        ("**supported**", pytest.approx(0.15, abs=0.03)),
    ]
    said = " ".join(readme.read_text().split())
    assert re.search(
        r"taught raw .*, FedSD gains 0\.\d+ nats a token more .*rewritten .*, FedSD gains \S+ nats a token less",
        said,
    )


def test_the_same_records_give_the_same_document(verdicts, records: Path):
    files = records.parent / "study.md", records.parent / "README.md"
    verdicts.main(records, *files)
    first = [path.read_bytes() for path in files]
    verdicts.main(records, *files)
    assert [path.read_bytes() for path in files] == first


def test_a_probes_case_has_the_gains_of_three_paired_seeds(monkeypatch: pytest.MonkeyPatch):
    """fedsd gains 0.4 of cost 0.09, fedit 0.5 of 0.25 and so 0.3 of 0.09; their noise is at most 0.01."""
    monkeypatch.setattr("fedsdr.analysis.frontier.NUM_DRAWS", 20)
    cases = runpy.run_path(str(ROOT / "recipes/beyond/probe_cases.py"))
    arms = {"fedit": (0.5, 0.25), "fedsd": (0.4, 0.09)}
    made = [record(arm, seed, "global", *own) for arm, own in arms.items() for seed in range(3)]
    found = cases["outcomes"]([ScoredRun(one["arm"], one["seed"], one["models"]) for one in made], "fedsd")
    assert found.keys() == set(DOMAINS)
    for outcome in found.values():
        assert outcome["plain"] == pytest.approx([-0.1] * 3, abs=0.03)
        assert outcome["equal_cost"] == pytest.approx([0.1] * 3, abs=0.03)


def test_an_arm_beside_the_confirmed_one_counts_after_all_rounds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedsdr.analysis.frontier.NUM_DRAWS", 200)
    confirm = runpy.run_path(str(ROOT / "recipes/beyond/confirm.py"))
    arms = {"fedit": (0.5, 0.25), "fedit-double": (0.4, 0.09)}
    cells = [record(arm, seed, "global", *numbers) for arm, numbers in arms.items() for seed in (10, 11, 12)]
    for cell in cells[3:]:  # after half of the rounds it lies on the control's frontier
        half = record("half", cell["seed"], "global", 0.3, 0.09)["models"][1:]
        cell["models"][1:1] = [one | {"round": 2} for one in half]
    runs = {(one["arm"], one["seed"]): ScoredRun(one["arm"], one["seed"], one["models"]) for one in cells}
    found = confirm["scored"](runs, "fedit", "fedit-double")
    assert found["round"] == 4
    assert found["difference"] == pytest.approx(0.4 - 0.3, abs=0.02)


def test_readme_says_what_the_verdicts_say(verdicts):
    """The paragraph is made from the claims; those of the document are shown with as many digits."""
    document = (ROOT / "docs/results/study.md").read_text()
    rows = [line for line in document.splitlines() if line.startswith(("| 1. FedSD gives", "| 2. "))]
    claims = []
    for row in rows[-4:]:  # of the first pool, and of the mended one
        _, verdict, effect, interval, p, _, seeds, _ = (cell.strip() for cell in row.strip("|").split("|"))
        low, high = map(float, interval.strip("[]").split(","))
        claims.append({"verdict": verdict.strip("*"), "difference": float(effect), "low": low, "high": high,
                       "p": 0.0 if p.startswith("<") else float(p), "num_seeds": int(seeds)})  # fmt: skip
    assert verdicts.in_short(claims[:2], claims[2:]) in " ".join((ROOT / "README.md").read_text().split())


def test_what_the_probe_says_of_the_trained_cases_is_what_their_record_says():
    cases = read_lines(ROOT / "docs/results/probe/cases.jsonl")
    assert not [case for case in cases if max(*case["plain"], *case["equal_cost"]) > 0]
    for text in (
        NEVER_GAINED,
        *((ROOT / "docs" / name).read_text("utf-8") for name in ("probe.md", "choosing.md")),
    ):
        assert re.search(rf"none of (?:the )?{len(cases)} cases", " ".join(text.split()))
