"""`fedsdr run --on SERVER`: submit a run to the server's SuperLink, and show its log until it ends."""

import json
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from fedsdr import __version__
from fedsdr.config import Settings
from fedsdr.deployment.keys import clients_of, registry
from fedsdr.deployment.superlink import CONNECTION, environment, flower_home, require_server
from fedsdr.errors import UserError
from fedsdr.federation.node_config import OWN_COLUMNS
from fedsdr.federation.preflight import check_deployed
from fedsdr.progress import say
from fedsdr.recipe import check_settings
from fedsdr.run_folder import RunFolder
from fedsdr.storage import SECRET, write_file

APP = f"""\
# What `flwr run` sends: no code, only the names of the apps that server and clients have installed.
[project]
name = "fedsdr-app"
version = "{__version__}"
description = "Federated instruction tuning with fedsdr"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedsdr"

[tool.flwr.app.components]
serverapp = "fedsdr.deployment.flower_app:app"
clientapp = "fedsdr.federation.client_app:app"

[tool.flwr.app.config]
submission = ""
"""


def submit(server: Path, settings: Settings) -> Path:
    """Start a run on the deployment of this server folder, and show its log until it ends.

    Flower sends a run's configuration to every client, so it only names a submission: a file in the server's
    folder that only this account can read.

    Returns:
        The run's folder.

    Raises:
        UserError: `init` did not write the folder, as for `check_deployed`, the settings say how to read the
            clients' data, or the run did not finish.
    """
    require_server(server)
    check_deployed(settings, len(clients_of(server)))
    if unused := [f"data.{key}" for key in OWN_COLUMNS if getattr(settings.data, key)]:
        raise UserError(
            f"{', '.join(unused)}: leave out, since each client's own files decide this in a deployment: they"
            " hold the fields under fedsdr's names (docs/data.md)"
        )
    place = Path(settings.run.dir)
    place = place if place.is_absolute() else (server / place).resolve()
    settings = settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"dir": str(place)}),
            "federation": settings.federation.model_copy(update={"nodes": registry(server, settings)}),
        }
    )
    write_file(server / "app" / "pyproject.toml", APP)
    name = secrets.token_hex(16)
    submission = _submission(server, name)
    write_file(submission, settings.model_dump_json(), SECRET)
    home = flower_home(server)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            config.write(f'submission = "{name}"\n')
            config.flush()
            command = [str(Path(sys.executable).with_name("flwr")), "run", "app", CONNECTION, "--stream"]
            command += ["--run-config", config.name]
            own = environment(FLWR_HOME=home)
            # Standard output is for results, not for the log.
            subprocess.run(command, cwd=server, env=own, stdout=sys.stderr, check=False)
    except KeyboardInterrupt:
        say(f"  the run continues at the server; to view or stop it: FLWR_HOME={home} flwr list, log or stop")
        raise
    submission.unlink(missing_ok=True)  # if no run took it
    ended = RunFolder(place).ended
    whose, _, reason = (ended.read_text() if ended.exists() else "").partition("\n")
    if whose != name:
        raise UserError(
            "the run did not finish: it was stopped, or failed for the reason above. If the SuperLink was not"
            f" reached, start {server / 'start.sh'}; otherwise repeat the command to continue"
        )
    if reason:
        raise UserError(f"the run did not finish: {reason}")
    return place


def take_submission(server: Path, name: str) -> Settings:
    """Settings of a submission, which can be used once.

    Raises:
        UserError: It does not exist, or others can write or read it.
    """
    path = _submission(server, name)
    if not re.fullmatch("[0-9a-f]{32}", name) or not path.is_file():
        raise UserError(
            f"no submission {name!r} in {path.parent}: start a run by `fedsdr run RECIPE --on {server}`"
        )
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path}: others can read it; remove it, and submit again")
    text = path.read_text()
    path.unlink()
    return check_settings(json.loads(text), source=str(path))


def _submission(server: Path, name: str) -> Path:
    return server / "submissions" / f"{name}.json"
