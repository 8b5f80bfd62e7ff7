"""What a client of a deployment keeps of a broadcast, so that it can export its personalised model itself."""

import shutil

from fedsdr.client.round import Broadcast
from fedsdr.config import Settings
from fedsdr.federation.client_context import ClientContext
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import public_name
from fedsdr.recipe import dump_settings
from fedsdr.run_folder import ClientFolder, list_rounds
from fedsdr.server.checkpoint import save_round
from fedsdr.storage import write_file, write_json


def keep_received(
    settings: Settings, client: ClientContext, model: LoraModel, server_round: int, sent: Broadcast
) -> None:
    """Save the shared adapter after a round, as loaded into the model, in the place of an earlier round's.

    The folder is laid out like a run's, and holds what `fedsdr export` reads there.
    """
    kept, base = ClientFolder(client.folder).received, model.base
    write_file(kept.config, dump_settings(settings))
    about = {"name": settings.model.name, "origin": base.origin, "identity": base.identity}
    data = {"origin": "the client's own", "num_train": {client.id: len(client.data.train)}}
    write_json(kept.environment, {"model": about, "data": data})
    shared = {key: value.numpy() for key, value in model.state("shared").items()}
    name = public_name(settings.model.name)
    save_round(kept, server_round, shared, sent.residual, {}, settings.adapter, name)
    for other in list_rounds(kept.server):
        if other != server_round:
            shutil.rmtree(kept.round(other))
