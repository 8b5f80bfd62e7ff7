"""The report of `fedsdr run --on` about a stopped run."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedsdr.config import Settings
from fedsdr.deployment import submit as module
from fedsdr.deployment.init import init
from fedsdr.deployment.submit import submit, take_submission
from fedsdr.errors import UserError
from fedsdr.recipe import check_settings
from fedsdr.storage import SECRET, write_file, write_json


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """Folder of a server with one registered client."""
    folder, *_ = init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    write_json(folder / "nodes/bank.json", {"key": "a", "node-id": 7})
    return folder


SETTINGS = check_settings({"federation": {"num_clients": 1}, "run": {"dir": "runs/x"}}, "test")


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("", None),
        ("\nround 2: 1 of 3 clients were connected", "did not finish: round 2: 1 of 3"),
        ("an older one", "for the reason above.*start.sh"),
    ],
)
def test_a_submission_tells_why_its_run_stopped(
    server: Path, monkeypatch: pytest.MonkeyPatch, left: str, told: str | None
):
    """Flower's log has it in the middle of a traceback."""
    run = server.resolve() / "runs/x"

    def flwr(*args: Any, **kwargs: Any) -> None:
        run.mkdir(parents=True)
        (name,) = (path.stem for path in server.glob("submissions/*"))
        (run / ".ended").write_text(left if told and not left.startswith("\n") else f"{name}{left}")

    monkeypatch.setattr(module.subprocess, "run", flwr)
    if told is None:
        assert submit(server, SETTINGS) == run
    else:
        with pytest.raises(UserError, match=told):
            submit(server, SETTINGS)


def test_a_run_without_a_number_of_clients_is_told_that_of_this_server(server: Path):
    """It was three, whatever the number of keys."""
    settings = check_settings({"run": {"dir": "runs/x"}}, "test")
    for waiting, num in (("bank", 1), ("hospital", 2)):
        (server / f"keys/{waiting}.pub").touch()
        with pytest.raises(UserError, match=f"add federation.num_clients={num} to the settings"):
            submit(server, settings)


@pytest.mark.parametrize("key", ["columns", "where", "label_names", "choices_after"])
def test_how_the_clients_files_are_read_is_not_the_servers_choice(server: Path, key: str):
    """It was accepted, and ignored without a word."""
    values = {
        "columns": {"response": "b"},
        "where": {"a": "b"},
        "label_names": ["no", "yes"],
        "choices_after": "Answer:",
    }
    settings = check_settings({"federation": {"num_clients": 1}, "data": {key: values[key]}}, "test")
    named = settings.model_copy(update={"run": SETTINGS.run})
    with pytest.raises(UserError, match=f"data.{key}: leave out, since each client's own files"):
        submit(server, named)


def test_what_flower_gives_to_every_client_names_a_submission_and_no_path_or_setting(
    server: Path, monkeypatch: pytest.MonkeyPatch
):
    """The settings are taken once, from a file that the operator's account alone can read."""
    given, taken = dict[str, Any](), list[Settings]()

    def flwr(command: list[str], **how: Any) -> None:
        config = Path(command[command.index("--run-config") + 1])
        given.update(tomllib.loads(config.read_text()))
        (path,) = server.glob("submissions/*")
        assert given == {"submission": path.stem}
        assert (path.stat().st_mode | config.stat().st_mode) & 0o077 == 0
        if not taken:
            taken.append(take_submission(server, path.stem))
            with pytest.raises(UserError, match="no submission"):
                take_submission(server, path.stem)

    monkeypatch.setattr(module.subprocess, "run", flwr)
    for _ in range(2):
        with pytest.raises(UserError, match="did not finish"):
            submit(server, SETTINGS)
        assert not list(server.glob("submissions/*"))  # also where the SuperLink was not reached
    (settings,) = taken
    assert settings.run.dir == str(server.resolve() / "runs/x")


@pytest.mark.parametrize("name", ["", "../submissions/{}", "0" * 32])
def test_no_other_file_is_a_submission(server: Path, name: str):
    (server / "submissions").mkdir()
    path = server / "submissions" / f"{'1' * 32}.json"
    write_file(path, SETTINGS.model_dump_json(), SECRET)
    with pytest.raises(UserError, match="no submission"):
        take_submission(server, name.format(path.stem))
    path.chmod(0o644)
    with pytest.raises(UserError, match="others can read it"):
        take_submission(server, path.stem)
