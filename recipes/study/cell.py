"""One cell of the study: train an arm with a seed, then score its models by example, without texts.

    python recipes/study/cell.py DATA OUT ARM SEED [key=value ...]

DATA is what `data.py` made. OUT/ARM/seed-SEED/ gets the run's folder, with the adapters of all rounds in
run/server and the clients' own in run/clients, and record.json. A stopped cell goes on where it was.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.analysis.cost import Scaled, base_answers, divergences, drift_prompts, example_losses
from fedsdr.client.state import load_state
from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation, encode
from fedsdr.data.examples import Example
from fedsdr.data.readers import read_file
from fedsdr.experiments.measured_run import MeasuredRun, Options
from fedsdr.federation.client_context import data_of
from fedsdr.federation.run import resume, run
from fedsdr.messages.wire import Arrays
from fedsdr.methods import METHODS
from fedsdr.model.adapters import LoraModel
from fedsdr.recipe import load_settings
from fedsdr.rows import Adapter
from fedsdr.run_folder import RunFolder, read_settings
from fedsdr.server.checkpoint import load_round
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
}
CONTROLS = ("fedit", "local-only")
"""Arms whose scaled models the others are held against: the global ones, and the personalised ones."""
ALL_SCALES, HALF_SCALES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5), (0.25, 0.5, 1.0, 1.5)
"""Of the controls, after all rounds and after half of them; lambda."""
ARM_SCALES = ((), (0.5, 1.0))
"""Of the other arms, after half of the rounds and after all."""
NUM_TEST = 30
"""Test rows of each domain that are scored."""
DIGITS = 5
Texts = dict[str, list[Any]]
"""Domain -> conversations."""


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
    models = list(_scored(read_settings(folder / "run"), out / "cache"))
    write_json(
        folder / "record.json",
        {
            "arm": arm, "seed": seed, "settings": settings.model_dump(mode="json", exclude={"run", "data"}),
            "seconds": {"training": training, "scoring": time.monotonic() - began},
            "models": models,
        },
    )  # fmt: skip


def _scored(settings: Settings, cache: Path) -> Iterator[dict[str, Any]]:
    """Losses by example and divergences by prompt, of each model, round and scale."""
    found = MeasuredRun(Path(settings.run.dir), settings, Options())
    model, method, last = found.model, METHODS[settings.method], settings.server.num_rounds
    is_control = settings.method in CONTROLS
    texts = {"test": _tests(settings, model)}
    if is_control:  # its points are chosen on validation examples
        texts["validation"] = _validation(settings, model)
    prompts = [Conversation(*one) for one in _once(cache / "base-answers.json", lambda: _answers(model))]

    def row(name: str, number: int, one: Scaled) -> dict[str, Any]:
        with one.inference(model):
            losses = {
                part: {domain: _short(example_losses(model.base, some, 25)) for domain, some in rows.items()}
                for part, rows in texts.items()
            }
        return {"model": name, "round": number, "scale": one.scale, **losses}

    base = cache / f"base-{settings.method if is_control else 'arm'}-{settings.data.seed}.json"
    yield _once(base, lambda: row("base", 0, Scaled({}, scale=0.0)))
    shared: Arrays = {}
    for number in (last // 2, last) if method.shares else ():
        shared, residual = load_round(RunFolder(settings.run.dir), number, settings.adapter.rank)
        scales = (ALL_SCALES if number == last else HALF_SCALES) if is_control else ARM_SCALES[number == last]
        some = [Scaled({"shared": shared}, residual, scale) for scale in scales]
        for one, kl in zip(some, divergences(model, prompts, some, 25) if some else [], strict=True):
            yield row("global", number, one) | {"kl": _short(kl)}
    if method.has_private:
        clients = [(client.id, load_state(client.folder, last + 1, True).adapter) for client in found.clients]
        for scale in ALL_SCALES if is_control else (1.0,):
            yield _personal(model, clients, shared, scale, texts, prompts, last)


def _personal(
    model: LoraModel,
    clients: Sequence[tuple[str, Any]],
    shared: Arrays,
    scale: float,
    texts: Mapping[str, Texts],
    prompts: Sequence[Conversation],
    last: int,
) -> dict[str, Any]:
    """Score each client's own model on the client's own rows, and on its part of the prompts."""
    row: dict[str, Any] = {"model": "personalised", "round": last, "scale": scale, "kl": {}}
    for place, (client, private) in enumerate(clients):
        adapters: dict[Adapter, Any] = {"private": private}
        if shared:
            adapters["shared"] = shared
        one = Scaled(adapters, {}, scale)
        with one.inference(model):
            for part, rows in texts.items():
                row.setdefault(part, {})[client] = _short(example_losses(model.base, rows[client], 25))
        (kl,) = divergences(model, prompts[place :: len(clients)], [one], 25)
        row["kl"][client] = _short(kl)
    return row


def _once(path: Path, make: Callable[[], Any]) -> Any:
    """What is the same for many cells."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def _answers(model: LoraModel) -> list[tuple[tuple[int, ...], int]]:
    return [(one.ids, one.prompt_length) for one in base_answers(model, drift_prompts()[::3], 50)]


def _encoded(settings: Settings, model: LoraModel, examples: Sequence[Example]) -> list[Conversation]:
    return [encode(model.base.tokenizer, each, each.response, settings.model.max_length) for each in examples]


def _validation(settings: Settings, model: LoraModel) -> Texts:
    """What was kept out of training, by domain; it follows the seed."""
    of = settings.model_copy(update={"eval": settings.eval.model_copy(update={"on": "validation"})})
    held = [example for client in data_of(of)[1] for example in client.test]
    domains = sorted({example.domain for example in held})
    return {d: _encoded(settings, model, [e for e in held if e.domain == d]) for d in domains}


def _tests(settings: Settings, model: LoraModel) -> Texts:
    """The fixed test rows, by domain; clients are named as the domains are."""
    files = sorted(Path(settings.data.root).glob("*/test.jsonl"))
    return {
        (d := file.parent.name): _encoded(settings, model, [r.example for r in read_file(file, d)][:NUM_TEST])
        for file in files
    }


def _short(values: list[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
