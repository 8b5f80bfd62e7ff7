"""What `fedsdr run --on` tells of a run that stopped."""

from pathlib import Path
from typing import Any

import pytest

from fedsdr.deployment import submit as module
from fedsdr.deployment.init import init
from fedsdr.deployment.submit import submit
from fedsdr.errors import UserError
from fedsdr.recipe import check_settings
from fedsdr.storage import write_json


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("", None),
        ("\nround 2: 1 of 3 clients were connected", "did not come to its end: round 2: 1 of 3"),
        ("an older one", "is said above.*start.sh"),
    ],
)
def test_a_submission_tells_why_its_run_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, told: str | None
):
    """Flower's log has it in the middle of a traceback."""
    server, *_ = init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    write_json(server / "nodes/bank.json", {"key": "a", "node-id": 7})
    settings = check_settings({"federation": {"num_clients": 1}, "run": {"dir": "runs/x"}}, "test")
    run = server.resolve() / "runs/x"

    def flwr(*args: Any, **kwargs: Any) -> None:
        run.mkdir(parents=True)
        (run / "ended").write_text(left if told and not left.startswith("\n") else f"token{left}")

    monkeypatch.setattr(module.secrets, "token_hex", lambda size: "token")
    monkeypatch.setattr(module.subprocess, "run", flwr)
    if told is None:
        assert submit(server, settings) == run
    else:
        with pytest.raises(UserError, match=told):
            submit(server, settings)
