"""What the laws share: small runs, finished once and compared often, and a kill at a chosen instant."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from safetensors.torch import load_file, save_file

import fedsdr
from fedsdr.config import Settings
from fedsdr.federation import client_context
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.federation.model_cache import forget_model

SMALL_RUN = {
    "data.domains": ["finance", "general", "math"],
    "server.num_rounds": 2,
    "distill.temperature": 1.0,
    "distill.max_new_tokens": 16,
    "distill.batch_size": 2,
    "eval.max_new_tokens": 4,
}
SCAFFOLD = {
    "client.drift_correction": "scaffold",
    "client.optimizer": "sgd",
    "client.max_grad_norm": 0,
    "client.learning_rate": 0.1,
}
END_OF_TURN = 2
"""Its token in the tiny model's vocabulary."""


class Killed(BaseException):
    """Stands for kill -9: nothing in the package may catch it."""


@pytest.fixture(scope="session")
def ending_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, made to end its turns earlier: else every rewriting is cut off and none is taken."""
    folder = tmp_path_factory.mktemp("ending") / "model"
    shutil.copytree(tiny_folder, folder)
    state = load_file(folder / "model.safetensors")
    state["model.embed_tokens.weight"][END_OF_TURN] *= 5
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def run_settings(tiny_settings: Callable[..., Settings], ending_folder: Path) -> Callable[..., Settings]:
    """Settings of a run of one second: three clients, two rounds, some rewritings taken."""

    def settings(**overrides: Any) -> Settings:
        return tiny_settings(**{"model.name": ending_folder, **SMALL_RUN, **overrides})

    return settings


@pytest.fixture(scope="session")
def scaffold() -> dict[str, Any]:
    """What a run with control variates sets."""
    return dict(SCAFFOLD)


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[Callable[[], None]]:
    """Every test begins as a new process does; called, it forgets once more."""

    def forget() -> None:
        client_context.close_clients()
        forget_model()

    forget()
    yield forget
    forget()


@pytest.fixture(scope="session")
def finished(run_settings: Callable[..., Settings]) -> Callable[..., Path]:
    """Return the folder of a finished, uninterrupted run with these overrides; each is run once."""
    folders: dict[str, Path] = {}

    def folder(**overrides: Any) -> Path:
        key = json.dumps(overrides, sort_keys=True)
        if key not in folders:
            folders[key] = fedsdr.run(run_settings(**overrides)).folder
        return folders[key]

    return folder


@pytest.fixture(scope="session")
def recorded(
    run_settings: Callable[..., Settings],
) -> Callable[..., tuple[Path, list[tuple[Message, Message]]]]:
    """Run once with these overrides; return the folder and every question with its reply."""
    runs: dict[str, tuple[Path, list[tuple[Message, Message]]]] = {}
    answer = LocalGrid._answer

    def record(**overrides: Any) -> tuple[Path, list[tuple[Message, Message]]]:
        key = json.dumps(overrides, sort_keys=True)
        if key not in runs:
            exchanges: list[tuple[Message, Message]] = []

            def listening(grid: LocalGrid, message: Message) -> Message:
                reply = answer(grid, message)
                exchanges.append((message, reply))
                return reply

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(LocalGrid, "_answer", listening)
                runs[key] = fedsdr.run(run_settings(**overrides)).folder, exchanges
        return runs[key]

    return record


@pytest.fixture(scope="session")
def wire() -> Callable[[Message], bytes]:
    """Return the bytes in which a SuperNode or SuperLink sends a message: its objects, one by one."""

    def deflated(message: Message) -> bytes:
        return b"".join(part.deflate() for part in get_all_nested_objects(message).values())

    return deflated


@pytest.fixture(scope="session")
def results() -> Callable[[Path], dict[str, Any]]:
    """Return a run's results: each file's bytes by its path, and the log's events without their costs.
    Information about the machine and the location of the folder is left out.
    """

    def read(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_dir() or name in ("config.toml", "environment.json", "report.html"):
                continue
            found[name] = path.read_bytes()
            if name == "metrics.jsonl":
                events = map(json.loads, path.read_text().splitlines())
                costs = ("seconds", "peak_memory")
                found[name] = [{k: v for k, v in event.items() if k not in costs} for event in events]
        return found

    return read


@pytest.fixture(scope="session")
def kill_at() -> Callable[..., Any]:
    """Return a context in which the n-th call of a function kills the process."""

    @contextmanager
    def armed(
        place: str,
        call: int,
        instead: Callable[..., Any] | None = None,
        late: bool = False,
        surely: bool = True,
    ) -> Iterator[None]:
        """Kill before the call; `late`: after it; `instead`: after something else was done in its place."""
        original, calls = resolve_name(place), count(1)

        def killing(*args: Any, **kwargs: Any) -> Any:
            if next(calls) < call:
                return original(*args, **kwargs)
            if instead or late:
                (instead or original)(*args, **kwargs)
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, killing)
            try:
                yield
            except Killed:
                return
        assert not surely, f"{place} was not called {call} times"

    return armed
