"""What another user of the server's machine can do, who has `ca.crt` as every client has: nothing."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from tests.deployment.conftest import BIN, CLIENTS, Deployment
from tests.deployment.test_loopback import long, wait_until

from fedsdr.config import Settings
from fedsdr.deployment.keys import status
from fedsdr.deployment.superlink import environment, flower_home

THEIRS = """\
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
app = ServerApp()
client = ClientApp()

@app.main()
def main(grid, context):
    Path({path!r}).write_text("it ran as the SuperLink's account")
"""
PROJECT = """\
[project]
name = "theirs"
version = "1.0.0"
description = "code of another user"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "theirs"
[tool.flwr.app.components]
serverapp = "theirs:app"
clientapp = "theirs:client"
[tool.flwr.app.config]
submission = ""
"""


def flwr(home: Path | str, *words: object) -> str:
    """Call Flower's own program and return what it said."""
    command = [str(BIN / "flwr"), *map(str, words)]
    own = environment(FLWR_HOME=str(home))
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=90, check=False)
    return done.stdout + done.stderr


@long
def test_another_user_of_the_servers_machine_runs_no_code_lists_no_nodes_and_removes_none(
    deployment: Callable[..., Deployment], tmp_path: Path
):
    one = deployment()
    one.start_server()
    one.register()
    ids = [str(json.loads(path.read_text())["node-id"]) for path in one.server.glob("nodes/*.json")]
    home, proof = tmp_path / "home", tmp_path / "proof"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "fedsdr"\n[superlink.fedsdr]\naddress = "127.0.0.1:{one.port}"\n'
        f'root-certificates = "{one.folder / CLIENTS[0] / "ca.crt"}"\n'
    )
    (tmp_path / "app").mkdir()
    (tmp_path / "app/theirs.py").write_text(THEIRS.format(path=str(proof)))
    (tmp_path / "app/pyproject.toml").write_text(PROJECT)
    listed = flwr(home, "supernode", "list", "fedsdr", "--format", "json")
    assert len(ids) == len(CLIENTS) and not [one for one in ids if one in listed]
    for node in ids:
        flwr(home, "supernode", "unregister", node, "fedsdr")
    assert status(one.server) == dict.fromkeys(CLIENTS, "registered")
    flwr(home, "run", tmp_path / "app", "fedsdr")
    # Nor does the operator's own account run code that is not installed.
    submitted = flwr(flower_home(one.server), "run", tmp_path / "app", "fedsdr", "--stream")
    assert "no submission" in submitted
    time.sleep(5)
    assert not proof.exists()


@long
def test_no_secret_of_the_server_is_in_the_list_of_processes(
    deployment: Callable[..., Deployment], small: Callable[..., Settings]
):
    """Every user of the machine can read that list. Flower puts the token of a run's program there."""
    one = deployment()
    one.start_server()
    one.register()
    program = one.begin(small(**{"run.dir": "runs/first", "federation.wait": 600.0}))

    def children() -> list[psutil.Process]:
        return psutil.Process(one.programs["server"].pid).children(recursive=True)

    wait_until((one.server / "runs/first/config.toml").exists)
    commands = [" ".join(child.cmdline()) for child in [*children(), psutil.Process(program.pid)]]
    assert len(commands) >= 3
    secrets = ["token", *(path.stem for path in one.server.glob("submissions/*"))]
    assert not [command for command in commands if any(secret in command for secret in secrets)]
    program.kill()


@long
def test_the_configuration_of_a_node_is_not_in_the_list_of_processes(deployment: Callable[..., Deployment]):
    """It names the client's folders. Flower's own command has it as an argument."""
    one = deployment()
    one.start_server()
    one.register()
    one.start_node("math")
    node = psutil.Process(one.programs["math"].pid)
    wait_until(node.children)
    wait_until(lambda: status(one.server)["math"] == "online")
    commands = [" ".join(child.cmdline()) for child in node.children(recursive=True)]
    assert any("fedsdr.deployment.supernode" in command for command in commands)
    for word in ("node-config", "secret", "node.key", str(one.folder / "math")):
        assert not [command for command in commands if word in command]


@long
def test_a_superlink_that_is_stopped_ends_its_run_within_seconds_and_the_run_goes_on_after_a_new_start(
    deployment: Callable[..., Deployment], small: Callable[..., Settings]
):
    """SIGTERM, as from systemd. Flower's own closed its port and waited for the run, which could not end then."""
    one = deployment()
    one.start_all()
    settings = small(**{"run.dir": "runs/first", "server.num_rounds": 4, "federation.wait": 240.0})
    display = one.begin(settings)
    wait_until((one.server / "runs/first/server/round-0001").exists)
    server = one.programs.pop("server")
    children = psutil.Process(server.pid).children(recursive=True)
    assert len(children) == 2  # the executor and the run
    server.terminate()
    server.wait(30)
    _, left = psutil.wait_procs(children, timeout=10)
    assert not left
    display.communicate(timeout=60)
    assert display.returncode == 2
    one.start_server()
    one.run(settings)
    assert (one.server / "runs/first/server/round-0004").exists()
