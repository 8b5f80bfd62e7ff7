"""The SuperLink's paths answer no one without a secret of the server's folder, whatever Flower adds to them."""

import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from flwr.supercore.credential_store.file_credential_store import FileCredentialStore
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.superlink.cli.flower_superlink import _parse_superlink_lifespan_config
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from starlette.testclient import TestClient

from fedsdr.deployment.flower_superlink import Lifespan, close
from fedsdr.deployment.init import init
from fedsdr.errors import UserError

LOGIN = {"get-login-details", "get-auth-tokens", "refresh-auth-tokens"}
"""Flower leaves these open: one must have a token before one can send it."""
HEADERS = {"Content-Type": PROTOBUF_MEDIA_TYPE}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuperLinkLifespanConfig:
    """What Flower makes of the arguments in start.sh, but for its files."""
    server, *_ = init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    words = (server / "start.sh").read_text().partition("flower_superlink")[2].replace("\\\n", " ").split()
    words = words[: words.index("--database")]
    monkeypatch.chdir(server)
    monkeypatch.setattr(sys, "argv", ["flower-superlink", *words])
    return _parse_superlink_lifespan_config()


def paths(app: FastAPI, prefix: str) -> list[str]:
    found = [context.route for context in iter_route_contexts(app.routes)]
    return [one.path for one in found if isinstance(one, APIRoute) and one.path.startswith(prefix)]


def test_no_path_of_control_or_runtime_answers_without_a_secret_of_the_servers_folder(
    config: SuperLinkLifespanConfig, tmp_path: Path
):
    store = FileCredentialStore(tmp_path / "credentials.yaml")
    close(config, store)
    assert store.file_path.stat().st_mode & 0o077 == 0
    app = create_app(config, Lifespan)
    client = TestClient(app, headers=HEADERS)
    versions = dict(RuntimeVersionMetadata.from_local_component("flwr-serverapp").as_metadata())
    control, runtime = paths(app, "/v1/control/"), paths(app, "/v1/runtime/")
    assert len(control) > 10 and len(runtime) > 10
    for path in control:
        if path.rpartition("/")[2] not in LOGIN:
            for header in ({}, {"Authorization": "Bearer none"}, {"Authorization": "Basic none"}):
                assert client.post(path, headers=header).status_code == 401, path
    for path in runtime:
        for header in ({}, {"flwr-task-token": "none"}):
            assert client.post(path, headers=versions | header).status_code in (401, 403), path
    (token,) = (store.get(key) for key in store._load_credentials() if key.endswith("access-token"))
    own = {"Authorization": f"Bearer {token.decode()}"}
    assert client.post("/v1/control/list-nodes", headers=own).status_code == 200
    close(config, store)  # started anew: a display of a run goes on
    assert config.authn_plugin.token == token.decode()


def test_a_superlink_without_tls_or_with_flowers_executor_is_not_started(
    config: SuperLinkLifespanConfig, tmp_path: Path
):
    store = FileCredentialStore(tmp_path / "credentials.yaml")
    for change in ({"isolation": "subprocess"}, {"isolation": "process", "certificates": None}):
        vars(config).update(change)
        with pytest.raises(UserError, match=r"start it by the server's start\.sh"):
            close(config, store)
