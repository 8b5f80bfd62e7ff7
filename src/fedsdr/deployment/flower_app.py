"""The ServerApp that Flower's own engines call, in simulation and in deployment (pyproject.toml names it).

The local engine calls `server_app.serve` directly. What a run's folder needs before and after is in `run`.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsdr.deployment.flower_grid import ResilientGrid
from fedsdr.deployment.submit import ENDED
from fedsdr.errors import UserError
from fedsdr.federation.run import run_over
from fedsdr.recipe import asked_settings
from fedsdr.storage import write_file

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Begin, or go on with, the run that the run configuration asks for.

    Raises:
        UserError: As `asked_settings` and `run_over`.
    """
    settings, token = asked_settings(context.run_config), context.run_config.get("token")
    ended = Path(settings.run.dir) / ENDED  # `fedsdr run --on` reads it
    try:
        run_over(ResilientGrid(grid), settings)
    except UserError as reason:
        if token and ended.parent.exists():
            write_file(ended, f"{token}\n{reason}")
        raise
    if token:
        write_file(ended, str(token))
