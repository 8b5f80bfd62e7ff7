"""One cell of the study: train an arm with a seed, then score its models by example, without texts.

    python recipes/study/cell.py DATA OUT ARM SEED [key=value ...]

DATA is the output of `data.py`. OUT/ARM/seed-SEED/ receives the run's folder, with the adapters of all rounds
in run/server and the clients' own in run/clients, and record.json. A stopped cell resumes where it stopped.
"""

import sys
import time
from pathlib import Path
from typing import Any

from fedsdr.analysis.cost import LONGEST_ANSWER, drift_prompts
from fedsdr.analysis.frontier import ARM_LAMBDAS, LAMBDAS
from fedsdr.data.conversation import Conversation
from fedsdr.data.readers import read_file
from fedsdr.distill.rehearsal import base_answers
from fedsdr.experiments.frontier import CONTROLS
from fedsdr.experiments.frontier_scores import frontier_scores
from fedsdr.experiments.measured_run import MeasuredRun, Options
from fedsdr.federation.run import resume, run
from fedsdr.model.adapters import LoraModel
from fedsdr.recipe import load_settings
from fedsdr.run_folder import RunFolder, read_settings
from fedsdr.storage import read_json, read_lines, write_json

HERE = Path(__file__).parent
ARMS: dict[str, dict[str, Any]] = {
    "fedit": {"method": "fedit"},
    "fedsd": {"method": "fedsd"},
    "fedsdr": {"method": "fedsdr"},
    "dual-raw": {"method": "dual-raw"},
    "local-only": {"method": "local-only"},
    "centralised": {"method": "centralised", "client.local_steps": 40},
    "fedsd-off": {"method": "fedsd", "distill.verify": "off"},
    "fedsdr-off": {"method": "fedsdr", "distill.verify": "off"},
    "fedsd-then-raw": {"method": "fedsd-then-raw"},
    "fedit-half": {"method": "fedit", "client.local_steps": 4},
    "fedsdr-reset": {"method": "fedsdr-reset"},
    "fedsdr-joint": {"method": "fedsdr-joint"},
    "fedsdr-swapped": {"method": "fedsdr-swapped"},
    "mixed": {"method": "mixed"},
    **{
        f"{method}-{name}": {"method": method, "server.optimizer": optimizer}
        for name, optimizer in (("avgm", "fedavgm"), ("adam", "fedadam"))
        for method in ("fedit", "fedsd")
    },
    **{
        f"{method}-{name}": {"method": method, "client.learning_rate": rate}
        for name, rate in (("slow", 5e-4), ("fast", 2e-3))
        for method in ("fedit", "fedsd", "fedsdr")
    },
}
"""Arm -> settings; from the seventh on they are exploratory."""
CURVES = {*CONTROLS.values()}
"""Arms that are scored at all scales."""
HALF_LAMBDAS = (0.25, 0.5, 1.0, 1.5)
"""Of a control after half of the rounds."""
NUM_TEST = 30
"""Test rows of each domain that are scored."""


def main(data: Path, out: Path, arm: str, seed: int, *more: str) -> None:
    """Train, score, and write the record."""
    folder = out / arm / f"seed-{seed}"
    own = {
        **{"run.seed": seed, "data.seed": seed, "run.dir": folder / "run", "run.cache": out / "cache"},
        "data.root": data / ARMS[arm].get("distill.verify", "answer"),
        **ARMS[arm],
    }
    words = [f"{key}={value}" for key, value in own.items()]
    settings = load_settings(HERE / "study.toml", [*words, *more])
    there = RunFolder(settings.run.dir)
    if not there.is_finished():
        (resume(settings.run.dir) if there.config.exists() else run(settings))
    began = time.monotonic()
    training = [line["seconds"] for line in read_lines(there.log) if "seconds" in line][-1]
    models = score(folder / "run", arm in CURVES, out / "cache" / "base-answers.json")
    write_json(
        folder / "record.json",
        {
            "arm": arm, "seed": seed, "settings": settings.model_dump(mode="json", exclude={"run", "data"}),
            "seconds": {"training": training, "scoring": time.monotonic() - began},
            "models": models,
        },
    )  # fmt: skip


def score(folder: Path, is_control: bool, answers: Path) -> list[dict[str, Any]]:
    """Losses by example and divergences by prompt, of each model, round and scale.

    Args:
        folder: Of the run.
        is_control: Whether other arms are compared with its scaled models.
        answers: File with the base's answers to the cost's prompts, which are the same for all cells.
    """
    settings = read_settings(folder)
    settings = settings.model_copy(update={"eval": settings.eval.model_copy(update={"batch_size": 25})})
    measured, last = MeasuredRun(folder, settings, Options()), settings.server.num_rounds
    scales = {last // 2: HALF_LAMBDAS, last: LAMBDAS} if is_control else {last: ARM_LAMBDAS}
    files = sorted(Path(settings.data.root).glob("*/test.jsonl"))
    tests = {
        (d := file.parent.name): [record.example for record in read_file(file, d)][:NUM_TEST]
        for file in files
    }
    if not answers.exists():
        write_json(answers, _answered(measured.model))
    return frontier_scores(measured, scales, tests, [Conversation(*one) for one in read_json(answers)])


def _answered(model: LoraModel) -> list[tuple[tuple[int, ...], int]]:
    return [
        (one.ids, one.prompt_length) for one in base_answers(model, drift_prompts()[::3], 50, LONGEST_ANSWER)
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
