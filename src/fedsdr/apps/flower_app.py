"""The ServerApp that Flower's own engines call, in simulation and in deployment (pyproject.toml names it).

The local engine calls `server_app.serve` directly. What a run's folder needs before and after is in `run`.
"""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsdr.apps.patient_grid import PatientGrid
from fedsdr.apps.run import run_over
from fedsdr.errors import UserError
from fedsdr.recipe import asked_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Begin, or go on with, the run that the run configuration asks for.

    Raises:
        UserError: The settings do not fit Flower's engines, or as `run_over`.
    """
    settings = asked_settings(context.run_config)
    if not settings.federation.num_clients:
        raise UserError(
            "federation.num_clients = 0: Flower's engines need the number of clients to wait for; add"
            " federation.num_clients=3 to the settings"
        )
    if not settings.run.dir:
        raise UserError("run.dir is empty: name the server's folder of this run")
    run_over(PatientGrid(grid), settings)
