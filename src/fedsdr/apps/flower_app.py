"""The ServerApp that Flower's own engines call, in simulation and in deployment (pyproject.toml names it).

The local engine calls `server_app.serve` directly. What a run's folder needs before and after is in `run`.
"""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsdr.apps.deployment import ENDED
from fedsdr.apps.patient_grid import PatientGrid
from fedsdr.apps.run import run_over
from fedsdr.recipe import asked_settings
from fedsdr.storage import write_file

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Begin, or go on with, the run that the run configuration asks for.

    Raises:
        UserError: As `asked_settings` and `run_over`.
    """
    result = run_over(PatientGrid(grid), asked_settings(context.run_config))
    if token := context.run_config.get("token"):  # `fedsdr run --on` waits for it
        write_file(result.folder / ENDED, str(token))
