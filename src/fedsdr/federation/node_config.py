"""The decisions of a client's own machine: its id, data, folder, model, and permissions.

They come from the node configuration (the file of `fedsdr node`, or `flower-supernode --node-config`), and no
server can change them. In a simulation a node is only a number, and the run's settings decide the rest.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedsdr.client.secure import Peers
from fedsdr.config import Section, Settings
from fedsdr.data.sources import check_client, check_name
from fedsdr.errors import UserError
from fedsdr.messages.privacy import Ledger
from fedsdr.storage import content_hash, write_file

Kind = TypeVar("Kind", bound=BaseModel)

OWN_MODEL = ("name", "revision", "trust_remote_code")
"""Keys of [model] that the node decides."""
OWN_COLUMNS: Mapping[str, Any] = {"columns": {}, "label_names": (), "choices_after": "", "where": {}}
"""Keys of [data] for the trained columns and rows, with their values: otherwise a server could select one
person's."""
OWN_DATA: Mapping[str, Any] = {"sources": (), "domains": (), "built_in": "domains", **OWN_COLUMNS}
"""Keys of [data] that the node decides, with their values; `root` is its own."""
RELEASES = "releases.json"
"""The node's record of released updates, in its folder."""
OWN_FILES = ("node", "node-error.txt", RELEASES)
"""What else is in a node's folder, or locked there, next to the runs, whose names the server chooses."""


class Keys(Section):
    """Keys of a file, written with dashes."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))


class SimulatedNode(Keys):
    """A node of a simulation: the number of a client, and the parent of all clients' folders."""

    partition_id: int
    num_partitions: int = 0
    folder: str = ""
    cache: str = ""
    distill_url: str = ""
    serves_all: bool = False
    """Whether its process serves all clients, one after the other."""


class NodeConfig(Keys):
    """A node of a deployment: `[node]` of its file."""

    client: Annotated[str, Field(examples=["hospital"])]
    """The client's id, under which the server registered its key."""
    data: Annotated[str, Field(min_length=1, examples=["/srv/examples"])]
    """Folder with <domain>/train.jsonl and <domain>/test.jsonl."""
    folder: Annotated[str, Field(min_length=1, examples=["/var/lib/fedsdr"])]
    """Folder for the client's rewritings, private adapter and evaluations."""
    model: Annotated[str, Field(min_length=1, examples=["smollm2-135m-instruct"])]
    """Base model: a built-in name, a folder or a hub id."""
    revision: str = ""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for computing; 0: the server's setting, at most the cores of this machine."""
    cache: str = ""
    """Folder that shares rewritings between runs; empty: `folder`."""
    distill_url: str = ""
    """The client's own server, the only one that may receive its texts for rewriting."""
    served_name: str = ""
    """Model of that server."""
    trust_remote_code: bool = False
    keep_updates: bool = False
    """Whether to accept server settings with `server.keep_updates`."""
    run_programs: bool = False
    """Whether tests of examples and programs written by the model may run to score answers."""
    max_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Above 0: take part only under local differential privacy, until all sent updates have cost this
    epsilon."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    peers: str = ""
    """Folder with the public keys of the other clients, <client>.pub, for secure aggregation."""
    private_key: str = ""
    """Private key file of this node, used for signatures in secure aggregation; set by `fedsdr node`."""
    min_clients: Annotated[int, Field(ge=0)] = 0
    """Above 0: take part only under secure aggregation, in sums of at least this many clients."""
    partition_id: int = 0
    num_partitions: int = 0

    @field_validator("client")
    @classmethod
    def _check_client(cls, value: str) -> str:
        try:
            return check_client(value)
        except UserError as reason:
            raise ValueError(str(reason)) from None

    def within(self, here: Path) -> Self:
        """A copy with paths made absolute, relative to a folder."""
        paths = {
            key: str(here / value)
            for key in ("data", "folder", "cache", "peers")
            if (value := getattr(self, key))
        }
        if (here / self.model).is_dir():
            paths["model"] = str(here / self.model)
        return self.model_copy(update=paths)


@dataclass(frozen=True)
class Node:
    """A client's machine.

    In a simulation it has the number of a client, in a deployment the client's id and `own`.
    """

    who: int | str
    folder: Path
    """Parent of the clients' folders."""
    own: NodeConfig | None = None
    """The node's configuration; None in a simulation."""
    cache: str = ""
    distill_url: str = ""
    serves_all: bool = False
    """Whether its process serves all clients of a simulation, one after the other."""

    @property
    def ledger(self) -> Ledger | None:
        """Record of the client's updates under local privacy; None without a limit."""
        if self.own is None or not self.own.max_epsilon:
            return None
        return Ledger(Path(self.own.folder) / RELEASES, self.own.max_epsilon, self.own.delta)

    @property
    def peers(self) -> Peers | None:
        """Keys for secure aggregation; None in a simulation."""
        if self.own is None:
            return None
        return Peers(Path(self.own.private_key), Path(self.own.peers), self.own.min_clients)

    def pin(self, sent: str) -> None:
        """Keep a hash of a run's settings in a deployed node's folder, or compare them with the one kept.

        A server could otherwise change the method within a run, to one that sends the saved private adapter.

        Args:
            sent: The settings as the server sent them. The name of an honest run depends on them.

        Raises:
            UserError: They changed since the run began here.
        """
        path = self.folder / ".settings.hash"
        if self.own is None:
            return
        if not path.exists():
            write_file(path, content_hash(sent))
        elif path.read_text() != content_hash(sent):
            raise UserError(
                f"the server's settings are not those with which this run began in {self.folder}: the"
                " server's operator has to start another run"
            )

    def apply(self, settings: Settings) -> Settings:
        """The server's settings with the node's own decisions applied.

        Raises:
            UserError: The settings need something that the node does not permit, or that no deployment
                supports.
        """
        if settings.distill.url not in ("", self.distill_url):
            raise UserError(
                f"the server's settings would send this client's data to distill.url ="
                f" {settings.distill.url}; this node's configuration allows distill-url ="
                f" {self.distill_url!r}"
            )
        # Only the node decides where a client keeps texts, and who may see them.
        run = settings.run.model_copy(update={"cache": self.cache})
        if self.own is None:
            return settings.model_copy(update={"run": run})
        self._check_consent(settings, self.own)
        threads = self.own.threads or min(run.threads, os.cpu_count() or 1)
        names = {"name": self.own.model, "revision": self.own.revision}
        model = names | {"trust_remote_code": self.own.trust_remote_code}
        return settings.model_copy(
            update={
                "run": run.model_copy(update={"threads": threads}),
                "model": settings.model.model_copy(update=model),
                "eval": settings.eval.model_copy(update={"run_programs": self.own.run_programs}),
                "data": settings.data.model_copy(update={"root": self.own.data, **OWN_DATA}),
            }
        )

    def _check_consent(self, settings: Settings, own: NodeConfig) -> None:
        """Raise UserError if the settings need something that this node does not permit."""
        if settings.distill.url and settings.distill.served_name != own.served_name:
            raise UserError(
                f"distill.served_name = {settings.distill.served_name!r} is not this node's served-name ="
                f" {own.served_name!r}"
            )
        privacy = settings.privacy
        if self.ledger and privacy.kind != "local":
            raise UserError(
                f"this node's max-epsilon = {own.max_epsilon:g} requires privacy.kind = 'local'; the"
                f" server's settings have {privacy.kind!r}"
            )
        if privacy.kind != "none" and privacy.source != "secure":
            raise UserError("privacy.source = 'seeded' is for simulations: its noise can be removed")
        if own.min_clients and not privacy.secure_aggregation:
            raise UserError(
                f"this node's min-clients = {own.min_clients} requires privacy.secure_aggregation = true"
            )
        if privacy.secure_aggregation and not (own.peers and own.private_key):
            raise UserError(
                "privacy.secure_aggregation = true needs the public keys of the other clients: set peers to"
                " their folder (`fedsdr deploy peers`); without `fedsdr node`, also set private-key"
            )
        if settings.server.keep_updates and not own.keep_updates:
            raise UserError(
                "the server's settings would keep this client's updates (server.keep_updates), which this"
                " node's configuration does not allow: set keep-updates = true to allow it"
            )


def read_node(config: Mapping[str, Any], folder: Path, run: str) -> Node:
    """Check a node's configuration.

    Args:
        config: As passed to the client app by Flower.
        folder: Parent of the clients' folders in a simulation, if the configuration has none.
        run: Name of the run, for the folder of a node that may take part in several.

    Raises:
        UserError: Names the key, the value and how to fix it.
    """
    if "client" not in config and "partition-id" in config:
        own = check_keys(SimulatedNode, config, "node configuration")
        place = Path(own.folder) if own.folder else folder
        return Node(own.partition_id, place, None, own.cache, own.distill_url, own.serves_all)
    node = check_keys(NodeConfig, config, "node configuration")
    if run in OWN_FILES:
        raise UserError(f"run = {run!r}: a run cannot have the name of one of this node's own files")
    return Node(node.client, Path(node.folder) / check_name(run, "run"), node, node.cache, node.distill_url)


def check_keys(kind: type[Kind], values: Mapping[str, Any], source: str) -> Kind:
    """Validate a node's keys.

    Args:
        kind: The class of the keys.
        values: Keys as written; tables are nested.
        source: Where they come from, for the message.

    Raises:
        UserError: Names the key, the value and how to fix it.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        # A misspelt key is more informative than a missing one.
        problems = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise UserError(f"{source}: " + "\n".join(_explain(kind, one) for one in problems)) from None


def _explain(kind: type[BaseModel], problem: Any) -> str:
    *tables, name = (str(part) for part in problem["loc"])
    fields = {field.alias: field for field in kind.model_fields.values()}
    for table in tables:
        inner: Any = fields[table].annotation
        fields = {field.alias: field for field in inner.model_fields.values()}
    key = ".".join([*tables, name])
    if problem["type"] == "extra_forbidden":
        known = [str(alias) for alias in fields]
        near = difflib.get_close_matches(name, known) or known
        return f"unknown key {key}; nearest are {', '.join('.'.join([*tables, one]) for one in near)}"
    if problem["type"] == "missing":
        examples = fields[name].examples
        return f"{key} is missing" + (f'; add one such as {name} = "{examples[0]}"' if examples else "")
    reason = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    return f"{key} = {problem['input']!r}: {reason}"
