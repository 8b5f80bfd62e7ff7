"""The ServerApp called by Flower's own engines, in simulation and in deployment (named in pyproject.toml).

The local engine calls `server_app.serve` directly. The run's folder is prepared and completed in `run`.
"""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsdr.deployment.flower_grid import ResilientGrid
from fedsdr.deployment.submit import take_submission
from fedsdr.errors import UserError
from fedsdr.federation.run import run_over
from fedsdr.progress import show
from fedsdr.recipe import requested_settings
from fedsdr.run_folder import RunFolder
from fedsdr.storage import write_file

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Start or resume the run given by the run configuration.

    Raises:
        UserError: As for `take_submission`, `requested_settings` and `run_over`.
    """
    show()
    if name := context.run_config.get("submission"):
        serve_submission(grid, str(name))
    else:
        run_over(ResilientGrid(grid), requested_settings(context.run_config))


def serve_submission(grid: Grid, name: str) -> None:
    """Start or resume the run of a submission; write into its folder why it ended.

    Raises:
        UserError: As for `take_submission` and `run_over`.
    """
    server = Path(os.environ["FLWR_HOME"]).parent
    settings = take_submission(server, name)
    ended = RunFolder(settings.run.dir).ended  # `fedsdr run --on` reads it
    try:
        run_over(ResilientGrid(grid), settings)
    except UserError as reason:
        if ended.parent.exists():
            write_file(ended, f"{name}\n{reason}")
        raise
    write_file(ended, name)
