"""What a client's own machine decides: its id, its data, its folder, its model, and what it consents to.

These come from the node configuration (`flower-supernode --node-config`, or the file of `fedsdr node`), and
no server can change them. Under a simulation a node is only a number, and the run's settings decide the rest.
"""

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.config import Settings
from fedsdr.data.sources import check_name
from fedsdr.errors import UserError
from fedsdr.messages.privacy import Ledger

SIMULATED = ("partition-id", "num-partitions")
NEEDED = ("client", "data", "folder", "model")
"""Keys of a node of a deployment."""
CHOICES: Mapping[str, Any] = {
    "revision": "",
    "threads": 0,
    "cache": "",
    "distill-url": "",
    "served-name": "",
    "trust-remote-code": False,
    "keep-updates": False,
    "run-programs": False,
    "most-epsilon": 0.0,
    "delta": 1e-5,
}
"""Keys that a node may have beside, with their defaults."""
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Node:
    """A client's machine.

    Of a simulation it has the number of a client, of a deployment the client's id and `own`.
    """

    who: int | str
    folder: Path
    """Where clients keep their folders."""
    own: Mapping[str, Any] | None = None
    """The node's configuration; None in a simulation."""
    cache: str = ""
    distill_url: str = ""

    @property
    def runs_programs(self) -> bool:
        """Whether programs that the model writes may be run, to score them; always so in a simulation."""
        return self.own is None or bool(self.own["run-programs"])

    @property
    def ledger(self) -> Ledger | None:
        """Account of what leaves the client under local privacy; None without a limit."""
        if self.own is None or not self.own["most-epsilon"]:
            return None
        path = Path(self.own["folder"]) / "releases.json"
        return Ledger(path, self.own["most-epsilon"], self.own["delta"])

    def apply(self, settings: Settings) -> Settings:
        """The server's settings with all that the node decides itself.

        Raises:
            UserError: The server asks for what the node does not consent to, or what no deployment can have.
        """
        if settings.distill.url not in ("", self.distill_url):
            raise UserError(
                f"the server's settings would send this client's data to distill.url ="
                f" {settings.distill.url}; this node's configuration allows distill-url ="
                f" {self.distill_url!r}"
            )
        # Where a client keeps texts, and who may see them, is its node's affair and not the server's.
        run = settings.run.model_copy(update={"cache": self.cache})
        if self.own is None:
            return settings.model_copy(update={"run": run})
        if settings.distill.url and settings.distill.served_name != self.own["served-name"]:
            raise UserError(
                f"distill.served_name = {settings.distill.served_name!r} is not this node's served-name ="
                f" {self.own['served-name']!r}"
            )
        privacy = settings.privacy
        if self.ledger and privacy.kind != "local":
            raise UserError(
                f"this node's most-epsilon = {self.ledger.most:g} asks for privacy.kind = 'local'; the"
                f" server's settings have {privacy.kind!r}"
            )
        if privacy.kind != "none" and privacy.source != "secure":
            raise UserError("privacy.source = 'seeded' is for simulations: its noise can be taken off again")
        if settings.server.keep_updates and not self.own["keep-updates"]:
            raise UserError(
                "the server's settings would keep this client's updates (server.keep_updates), which this"
                " node's configuration does not allow: set keep-updates = true if it may"
            )
        threads = self.own["threads"] or min(run.threads, os.cpu_count() or 1)
        run = run.model_copy(update={"threads": threads})
        model = settings.model.model_copy(
            update={
                "name": self.own["model"],
                "revision": self.own["revision"],
                "trust_remote_code": self.own["trust-remote-code"],
            }
        )
        # Which columns and rows are taught is the client's affair: a server could choose one person's.
        own_rows = {"columns": {}, "label_names": (), "choices_after": "", "where": {}}
        data = settings.data.model_copy(
            update={"root": self.own["data"], "sources": (), "domains": (), "built_in": "domains", **own_rows}
        )
        return settings.model_copy(update={"run": run, "model": model, "data": data})


def read_node(config: Mapping[str, Any], folder: Path, run: str) -> Node:
    """Check a node's configuration.

    Args:
        config: As Flower hands it to the client app.
        folder: Where clients of a simulation keep their folders, if the configuration does not say.
        run: Name of the run, for the folder of a node that may take part in several.

    Raises:
        UserError: Names the key, the value and what would do.
    """
    is_simulated = "client" not in config and "partition-id" in config
    known = (
        [*SIMULATED, "folder", "cache", "distill-url"] if is_simulated else [*NEEDED, *CHOICES, *SIMULATED]
    )
    if unknown := sorted(set(config) - set(known)):
        near = difflib.get_close_matches(unknown[0], known) or known
        raise UserError(f"node configuration: unknown key {unknown[0]}; nearest are {', '.join(near)}")
    if is_simulated:
        root = Path(str(config.get("folder", folder)))
        cache, url = (str(config.get(key, "")) for key in ("cache", "distill-url"))
        return Node(int(config["partition-id"]), root, None, cache, url)
    if missing := [key for key in NEEDED if not config.get(key)]:
        raise UserError(
            f"node configuration: {missing[0]} is missing; a node needs {', '.join(NEEDED)}, such as client ="
            ' "hospital", data = "/srv/examples", folder = "/var/lib/fedsdr", model = "smollm2-135m-instruct"'
        )
    own = {**CHOICES, **config}
    for key, value in own.items():
        expected = type(CHOICES.get(key, 0 if key in SIMULATED else ""))
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise UserError(f"node configuration: {key} = {value!r}; expected {KINDS[expected]}")
    if not 0 <= own["most-epsilon"] < math.inf:
        raise UserError(f"node configuration: most-epsilon = {own['most-epsilon']}; expected 0 or more")
    if not 0 < own["delta"] < 1:
        raise UserError(f"node configuration: delta = {own['delta']}; expected more than 0 and less than 1")
    client = check_name(own["client"], "client")
    root = Path(own["folder"]) / check_name(run, "run")
    return Node(client, root, own, own["cache"], own["distill-url"])
