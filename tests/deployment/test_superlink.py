"""The server's folder, and the environment of Flower's programs."""

from pathlib import Path

import pytest

from fedsdr.deployment.init import init
from fedsdr.deployment.superlink import environment, require_server
from fedsdr.errors import UserError


def test_the_folder_above_the_servers_is_told_from_the_servers(tmp_path: Path):
    init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    with pytest.raises(UserError, match=r"did you mean .*all/server"):
        require_server(tmp_path / "all")


def test_the_proxy_of_a_site_is_not_asked_for_this_machine_and_its_other_exceptions_hold(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("no_proxy", ".intern")
    monkeypatch.delenv("NO_PROXY", raising=False)
    own = environment()
    assert own["NO_PROXY"] == own["no_proxy"] == "localhost,127.0.0.1,.intern"
