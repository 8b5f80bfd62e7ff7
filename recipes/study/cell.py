"""One cell of the study: train an arm with a seed, then score its models by example, without texts.

    python recipes/study/cell.py DATA OUT ARM SEED [key=value ...]

DATA is what `data.py` made. OUT/ARM/seed-SEED/ gets the run's folder, with the adapters of all rounds in
run/server and the clients' own in run/clients, and record.json. A stopped cell goes on where it was.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsdr.analysis.cost import Scaled, base_answers, divergences, drift_prompts, example_losses
from fedsdr.client.state import load_state
from fedsdr.config import Settings
from fedsdr.data.conversation import encode
from fedsdr.data.readers import read_file
from fedsdr.experiments.measured_run import MeasuredRun, Options
from fedsdr.federation.run import resume, run
from fedsdr.methods import METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.recipe import load_settings
from fedsdr.rows import Adapter
from fedsdr.run_folder import RunFolder, read_settings
from fedsdr.server.checkpoint import load_round
from fedsdr.storage import write_json

HERE = Path(__file__).parent
ARMS: dict[str, dict[str, Any]] = {
    "fedit": {"method": "fedit"},
    "fedsd": {"method": "fedsd"},
    "fedsdr": {"method": "fedsdr"},
    "dual-raw": {"method": "dual-raw"},
    "local-only": {"method": "local-only"},
    "centralised": {"method": "centralised", "client.local_steps": 80},
    "fedsd-off": {"method": "fedsd", "distill.verify": "off"},
    "fedsdr-off": {"method": "fedsdr", "distill.verify": "off"},
    "fedsd-then-raw": {"method": "fedsd-then-raw"},
    "fedit-half": {"method": "fedit", "client.local_steps": 8},
}
CONTROLS = ("fedit", "local-only")
"""Arms whose scaled models the others are held against: the global ones, and the personalised ones."""
ALL_SCALES, TWO_SCALES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5), (0.5, 1.0)
NUM_TEST = 50
"""Test rows of each domain that are scored."""
DIGITS = 5
Texts = dict[str, list[Any]]
"""Domain -> conversations."""


def main(data: Path, out: Path, arm: str, seed: int, *more: str) -> None:
    """Train, score, and write the record."""
    began, folder = time.monotonic(), out / arm / f"seed-{seed}"
    own = {
        **{"run.seed": seed, "data.seed": seed, "run.dir": folder / "run", "run.cache": out / "cache"},
        "data.root": data / ARMS[arm].get("distill.verify", "answer"),
        **ARMS[arm],
    }
    words = [f"{key}={value}" for key, value in own.items()]
    settings = load_settings(HERE / "study.toml", [*words, *more])
    if RunFolder(settings.run.dir).config.exists():
        resume(settings.run.dir)
    else:
        run(settings)
    trained = time.monotonic()
    models = list(_scored(read_settings(folder / "run")))
    write_json(
        folder / "record.json",
        {
            "arm": arm, "seed": seed, "settings": settings.model_dump(mode="json", exclude={"run", "data"}),
            "seconds": {"training": trained - began, "scoring": time.monotonic() - trained},
            "models": models,
        },
    )  # fmt: skip


def _scored(settings: Settings) -> Iterator[dict[str, Any]]:
    """Losses by test and validation example, and divergences by prompt, of each round, model and scale."""
    found = MeasuredRun(Path(settings.run.dir), settings, Options())
    model, method, last = found.model, METHODS[settings.method], settings.server.num_rounds
    prompts = base_answers(model, drift_prompts(), 50)
    tests, validation = _tests(settings, model), _validation(found)
    yield {"model": "base", "round": 0, "scale": 0.0, **_losses(model, Scaled({}), tests, validation)}
    rounds = (last // 2, last) if method.shares else (last,)
    scales = ALL_SCALES if settings.method in CONTROLS else TWO_SCALES
    for number in rounds:
        shared, residual = load_round(RunFolder(settings.run.dir), number, settings.adapter.rank)
        if method.shares:
            some = [Scaled({"shared": shared}, residual, scale) for scale in scales]
            for one, kl in zip(some, divergences(model, prompts, some, 50), strict=True):
                yield _named("global", number, one, tests, validation, model, kl)
    # a client's own model is scored on the client's own rows, and on every fifth prompt
    if not method.has_private:
        return
    names = sorted(tests)
    for scale in scales:
        row: dict[str, Any] = {"model": "personalised", "round": last, "scale": scale}
        for number, client in enumerate(found.clients):
            state = load_state(client.folder, last + 1, True).adapter
            adapters: dict[Adapter, Any] = {"private": state} | ({"shared": shared} if method.shares else {})
            one = Scaled(adapters, {}, scale)
            own = {client.id: tests[client.id]}, {client.id: validation[client.id]}
            for key, values in _losses(model, one, *own).items():
                row.setdefault(key, {}).update(values)
            row.setdefault("kl", {})[client.id] = _short(
                divergences(model, prompts[number :: len(names)], [one], 50)[0]
            )
        yield row


def _named(
    name: str, number: int, one: Scaled, tests: Texts, validation: Texts, model: LoraModel, kl: list[float]
) -> dict[str, Any]:
    losses = _losses(model, one, tests, validation)
    return {"model": name, "round": number, "scale": one.scale, **losses, "kl": _short(kl)}


def _losses(model: LoraModel, one: Scaled, tests: Texts, validation: Texts) -> dict[str, Any]:
    """Mean loss per response token of each example, by domain."""
    with one.inference(model):
        return {
            part: {name: _short(example_losses(model.base, some, 25)) for name, some in texts.items()}
            for part, texts in (("test", tests), ("validation", validation))
        }


def _validation(found: MeasuredRun) -> Texts:
    """What was kept out of training, by domain; it follows the seed."""
    texts: Texts = {}
    for client in found.clients:
        for example, conversation in zip(client.tests.examples, client.tests.raw, strict=True):
            texts.setdefault(example.domain, []).append(conversation)
    return texts


def _tests(settings: Settings, model: LoraModel) -> Texts:
    """The fixed test rows of each domain, whose clients are named as the domains are."""
    files = sorted(Path(settings.data.root).glob("*/test.jsonl"))
    return {
        file.parent.name: [
            encode(model.base.tokenizer, r.example, r.example.response, settings.model.max_length)
            for r in read_file(file, file.parent.name)[:NUM_TEST]
        ]
        for file in files
    }


def _short(values: list[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
