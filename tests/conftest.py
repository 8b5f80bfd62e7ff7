"""Which tests are which, and fixtures that every test may use: a tiny random model, settings that fit it."""

import os

# Set before anything imports these libraries, which read them once.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity

from fedsdr import progress
from fedsdr.config import Model, Settings
from fedsdr.model.base import Base, built_in_folder, load_base
from fedsdr.model.remote import Judge
from fedsdr.model.tiny import build_tiny
from fedsdr.recipe import load_settings

HERE = Path(__file__).parent
MARKED = {
    "run": [
        "experiments/test_compare.py",
        "experiments/test_measure.py",
        "experiments/test_pairs.py",
        "experiments/test_probe.py",
        "faults",
        "federation/test_aggregations.py",
        "federation/test_callbacks.py",
        "federation/test_dry_run.py",
        "federation/test_methods.py",
        "federation/test_python.py",
        "federation/test_run.py",
        "invariants",
        "test_check_gpu.py",
        "test_examples.py",
        "test_plugins.py",
        "test_peers.py",
        "test_recipes.py",
    ],
    "deployment": [
        "deployment/test_closed_server.py",
        "deployment/test_flower_simulation.py",
        "deployment/test_loopback.py",
        "deployment/test_plain_flower.py",
        "deployment/test_secure_sum.py",
        "deployment/test_supernode.py",
        "deployment/test_worker.py",
        "federation/test_simulation_engine.py",
    ],
    "browser": ["report/test_browser.py"],
}
"""Files and folders of tests that take long, by their mark in pyproject.toml. All other tests are units."""
UNITS = "not run and not deployment and not browser and not real_model"


def pytest_configure(config: pytest.Config) -> None:
    """`pytest` alone runs the units; `pytest tests`, or any path or -m, runs all that it names."""
    if config.args_source is config.ArgsSource.TESTPATHS and not config.option.markexpr:
        config.option.markexpr = UNITS


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, places in MARKED.items():
            if any(item.path.is_relative_to(HERE / place) for place in places):
                item.add_marker(mark)


SMOLLM2 = built_in_folder("smollm2-135m-instruct")  # in the user's cache, before `own_cache` hides it

SMALL = {
    "model.dtype": "float32",
    "model.max_length": 384,
    "lora.rank": 4,
    "distill.max_new_tokens": 8,
    "eval.max_new_tokens": 8,
    "client.local_steps": 2,
    "client.batch_size": 2,
    "data.num_train": 6,
    "data.num_test": 2,
    "run.threads": 1,
}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache, but through `real_model`."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSDR_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def shown() -> None:
    """Messages are on standard error, also after a test with --quiet."""
    progress.show()


@pytest.fixture
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only for a process that has a task."""
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny random model."""
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Return settings for a run of seconds: ``tiny_settings(**{"lora.rank": 2, "method": "fedit"})``.

    Every call has a run folder of its own, unless run.dir is given.
    """

    def settings(**overrides: Any) -> Settings:
        values = {"model.name": tiny_folder, "run.dir": tmp_path_factory.mktemp("run"), **SMALL, **overrides}
        # JSON's text, numbers, booleans and lists are TOML's.
        return load_settings(
            None, [f"{key}={json.dumps(value, default=str)}" for key, value in values.items()]
        )

    return settings


@pytest.fixture(scope="session")
def tiny_base(tiny_settings: Callable[..., Settings]) -> Base:
    """The tiny model, loaded. All tests share it: do not change it."""
    return load_base(tiny_settings().model)


@pytest.fixture(scope="session")
def real_model(own_cache: Path) -> Model:
    """Settings of SmolLM2-135M-Instruct, or a skip where it is not in the user's cache."""
    if not SMOLLM2.is_dir():
        pytest.skip("SmolLM2 is not in the cache; `make model` fetches it")
    settings = Model(name="smollm2-135m-instruct")
    link = built_in_folder(settings.name)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(SMOLLM2)
    return settings


SERVER = HERE.parent / "benchmarks/llama_server.py"


@pytest.fixture
def llama_server() -> Callable[..., AbstractContextManager[str]]:
    """Return `llama_server(gguf)`: the address of llama.cpp's server, or a skip where there is none."""
    if not (python := os.environ.get("FEDSDR_SERVER_PYTHON")):
        pytest.skip("FEDSDR_SERVER_PYTHON is not set; `make test-server` does it")

    @contextmanager
    def serve(*words: str) -> Iterator[str]:
        command = [python, str(SERVER), *words]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield process.stdout.readline().strip()  # it ends when its input does

    return serve


@pytest.fixture
def llama_cpp(llama_server: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """Base address of llama.cpp's server with SmolLM2, or a skip where there is none."""
    with llama_server(os.environ["FEDSDR_SERVER_GGUF"]) as address:
        yield f"{address}/v1"


Rule = Callable[[str], str]
"""From a prompt to what the judge says."""


@pytest.fixture
def judge_by() -> Iterator[Callable[[Rule], tuple[Judge, list[str]]]]:
    """Return `judge_by(rule)`: a judge that answers a prompt by that rule, and the prompts it was asked."""
    started: list[ThreadingHTTPServer] = []

    def start(rule: Rule) -> tuple[Judge, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (turn,) = body["messages"]
                asked.append(turn["content"])
                choice = {"finish_reason": "stop", "message": {"content": rule(turn["content"])}}
                reply = {"choices": [choice], "usage": {"completion_tokens": 1}}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return Judge(f"http://127.0.0.1:{server.server_port}/v1", "rule", num_requests=4), asked

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
