"""The disk space that a run needs, and whether it is available."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsdr.client.state import NUM_VERSIONS
from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation.estimate import Part
from fedsdr.methods import METHODS, OPTIMIZERS
from fedsdr.server.checkpoint import is_kept


def disk(settings: Settings, shapes: Mapping[str, Sequence[int]], num_clients: int) -> list[Part]:
    """Upper bound on the bytes of adapters in a run's folder: at its end, and of updates during a round.

    Not counted: texts, and the state of aggregations and drift corrections (residual, factors that stay at
    clients, control variates).

    Args:
        settings: The run's settings.
        shapes: Shapes of the shared adapter's tensors by PEFT key; the private one has the same.
        num_clients: Number of all clients: by the end each may have been drawn.
    """
    each = 4 * sum(map(math.prod, shapes.values()))
    server, method = settings.server, METHODS[settings.method]
    num_moments = OPTIMIZERS[server.optimizer].num_moments
    num_kept = 2 + sum(is_kept(number, server) for number in range(server.num_rounds))
    rounds = min(num_kept, server.num_rounds + 1) * (1 + 2 * num_moments) * each  # moments are float64
    moments = f" with {num_moments} moments" if num_moments else ""
    parts = [Part("disk", "rounds", rounds, f"{min(num_kept, server.num_rounds + 1)} adapters{moments}")]
    if method.has_personal:
        clients = num_clients * (NUM_VERSIONS + 1) * each
        parts.append(
            Part("disk", "clients", clients, f"{NUM_VERSIONS + 1} adapters of {num_clients} clients")
        )
    sampled = min(server.clients_per_round or num_clients, num_clients)
    if not settings.privacy.secure_aggregation:  # secure aggregation keeps a sum in memory
        what = f"{sampled} clients' updates while a round is collected"
        parts.append(Part("disk", "spool", sampled * each, what))
    if server.keep_updates:
        what = f"{sampled} clients' updates of {server.num_rounds} rounds"
        parts.append(Part("disk", "updates", sampled * server.num_rounds * each, what))
    apart = "at most, without texts, residual, clients' factors and control variates"
    return [*parts, Part("disk", "all", sum(part.num_bytes for part in parts), apart)]


def check_disk(folder: Path, parts: Sequence[Part], begun: int) -> None:
    """Reject a run without enough disk space, before its first round.

    Raises:
        UserError: States the required and the free space.
    """
    needed, free = parts[-1].num_bytes, shutil.disk_usage(folder).free
    if not begun and needed > free:
        what = ", ".join(f"{part.name} {part.num_bytes / 1e9:.1f} GB" for part in parts[:-1])
        raise UserError(
            f"{folder}: the run will write {needed / 1e9:.1f} GB ({what}), {free / 1e9:.1f} GB are free;"
            ' set server.keep_rounds = "last", or choose another disk by run.dir'
        )
