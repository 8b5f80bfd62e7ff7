"""The ServerApp that Flower's own engines call, in simulation and in deployment (pyproject.toml names it).

The local engine calls `server_app.serve` directly. What a run's folder needs before and after is in `run`.
"""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsdr.deployment.flower_grid import ResilientGrid
from fedsdr.errors import UserError
from fedsdr.federation.run import run_over
from fedsdr.progress import show
from fedsdr.recipe import requested_settings
from fedsdr.run_folder import RunFolder
from fedsdr.storage import write_file

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Begin, or go on with, the run that the run configuration asks for.

    Raises:
        UserError: As `requested_settings` and `run_over`.
    """
    show()
    settings, token = requested_settings(context.run_config), context.run_config.get("token")
    ended = RunFolder(settings.run.dir).ended
    try:
        run_over(ResilientGrid(grid), settings)
    except UserError as reason:
        if token and ended.parent.exists():
            write_file(ended, f"{token}\n{reason}")
        raise
    if token:
        write_file(ended, str(token))
