"""`fedsdr run --on SERVER`: give a run to the server's SuperLink, and show its log until it ends."""

import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from fedsdr import __version__
from fedsdr.config import Settings
from fedsdr.deployment.keys import registry
from fedsdr.deployment.superlink import CONNECTION, environment, flower_home, require_server
from fedsdr.errors import UserError
from fedsdr.federation.preflight import check_deployed
from fedsdr.progress import say
from fedsdr.recipe import to_toml
from fedsdr.storage import write_file

ENDED = "ended"
"""File in a run's folder: the token of the last submission, and on the next lines why it stopped early."""

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
settings = ""
recipe = ""
overrides = ""
token = ""
"""


def submit(server: Path, settings: Settings) -> Path:
    """Start a run on the deployment whose server folder this is, and show its log until it ends.

    Returns:
        The run's folder.

    Raises:
        UserError: The folder is none that `init` wrote, as `check_deployed`, or the run did not come to its
            end.
    """
    require_server(server)
    check_deployed(settings)
    place = Path(settings.run.dir)
    place = place if place.is_absolute() else (server / place).resolve()
    nodes = registry(server, settings)
    settings = settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"dir": str(place)}),
            "federation": settings.federation.model_copy(update={"nodes": nodes}),
        }
    )
    write_file(server / "app" / "pyproject.toml", APP)
    token = secrets.token_hex(8)
    words = {"settings": settings.model_dump_json(), "token": token}
    home = flower_home(server)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:  # its name is a submission's own
            config.write("".join(f"{key} = {to_toml(value)}\n" for key, value in words.items()))
            config.flush()
            command = [str(Path(sys.executable).with_name("flwr")), "run", "app", CONNECTION, "--stream"]
            command += ["--run-config", config.name]
            own = environment(FLWR_HOME=home)
            # Its log is no result: standard output is for that.
            subprocess.run(command, cwd=server, env=own, stdout=sys.stderr, check=False)
    except KeyboardInterrupt:
        say(f"  the run goes on at the server; to see or stop it: FLWR_HOME={home} flwr list, log or stop")
        raise
    ended = place / ENDED
    whose, _, reason = (ended.read_text() if ended.exists() else "").partition("\n")
    if whose != token:
        raise UserError(
            "the run did not come to its end: it was stopped, or why is said above. Where the SuperLink was"
            f" not reached, start {server / 'start.sh'}; where nothing is wrong, go on by the same command"
        )
    if reason:
        raise UserError(f"the run did not come to its end: {reason}")
    return place
