"""What a client's own machine decides: its id, its data, its folder, its model, and what it consents to.

These come from the node configuration (the file of `fedsdr node`, or `flower-supernode --node-config`), and
no server can change them. In a simulation a node is only a number, and the run's settings decide the rest.
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

Kind = TypeVar("Kind", bound=BaseModel)

OWN_MODEL = ("name", "revision", "trust_remote_code")
"""Keys of [model] that a node decides."""
OWN_DATA: Mapping[str, Any] = {
    **{"sources": (), "domains": (), "built_in": "domains"},
    # Which columns and rows are taught is the client's choice: a server could select one person's.
    **{"columns": {}, "label_names": (), "choices_after": "", "where": {}},
}
"""Keys of [data] that a node decides, and what they are at each; `root` is its own."""


class Keys(Section):
    """Keys of a file that are written with dashes."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))


class SimulatedNode(Keys):
    """A node of a simulation: the number of a client, and where all clients keep what is theirs."""

    partition_id: int
    num_partitions: int = 0
    folder: str = ""
    cache: str = ""
    distill_url: str = ""


class NodeConfig(Keys):
    """A node of a deployment: `[node]` of its file."""

    client: Annotated[str, Field(examples=["hospital"])]
    """The client's id, under which the server has registered its key."""
    data: Annotated[str, Field(min_length=1, examples=["/srv/examples"])]
    """Folder with <domain>/train.jsonl and <domain>/test.jsonl."""
    folder: Annotated[str, Field(min_length=1, examples=["/var/lib/fedsdr"])]
    """Where the client keeps its rewritings, private adapter and evaluations."""
    model: Annotated[str, Field(min_length=1, examples=["smollm2-135m-instruct"])]
    """Base model: a built-in name, a folder or a hub id."""
    revision: str = ""
    threads: Annotated[int, Field(ge=0)] = 0
    """For computing; 0: as the server's settings say, at most the cores of this machine."""
    cache: str = ""
    """A folder that keeps rewritings for other runs; empty: `folder`."""
    distill_url: str = ""
    """The one server, of the client's own, that may see its texts for rewriting."""
    served_name: str = ""
    """The model of that server."""
    trust_remote_code: bool = False
    keep_updates: bool = False
    """Whether the server's settings may have `server.keep_updates`."""
    run_programs: bool = False
    """Whether the tests of examples, and programs that the model writes, may run, to score answers."""
    most_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Above 0: take part only under local differential privacy, until all that left has cost this epsilon."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    peers: str = ""
    """Folder with the public keys of the other clients, <client>.pub, for secure aggregation."""
    private_key: str = ""
    """Of this node, which signs for it in secure aggregation; `fedsdr node` sets it."""
    least_clients: Annotated[int, Field(ge=0)] = 0
    """Above 0: take part only under secure aggregation, in sums of at least so many clients."""
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
        """The same, with paths that are taken from a folder made absolute."""
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

    Of a simulation it has the number of a client, of a deployment the client's id and `own`.
    """

    who: int | str
    folder: Path
    """Where clients keep their folders."""
    own: NodeConfig | None = None
    """The node's configuration; None in a simulation."""
    cache: str = ""
    distill_url: str = ""

    @property
    def ledger(self) -> Ledger | None:
        """Account of what leaves the client under local privacy; None without a limit."""
        if self.own is None or not self.own.most_epsilon:
            return None
        return Ledger(Path(self.own.folder) / "releases.json", self.own.most_epsilon, self.own.delta)

    @property
    def peers(self) -> Peers | None:
        """Keys of secure aggregation; None in a simulation."""
        if self.own is None:
            return None
        return Peers(Path(self.own.private_key), Path(self.own.peers), self.own.least_clients)

    def apply(self, settings: Settings) -> Settings:
        """The server's settings with all that the node decides itself.

        Raises:
            UserError: The settings need what the node does not consent to, or what no deployment can have.
        """
        if settings.distill.url not in ("", self.distill_url):
            raise UserError(
                f"the server's settings would send this client's data to distill.url ="
                f" {settings.distill.url}; this node's configuration allows distill-url ="
                f" {self.distill_url!r}"
            )
        # Where a client keeps texts, and who may see them, only its node decides.
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
        """Raise UserError if the settings need what this node does not allow."""
        if settings.distill.url and settings.distill.served_name != own.served_name:
            raise UserError(
                f"distill.served_name = {settings.distill.served_name!r} is not this node's served-name ="
                f" {own.served_name!r}"
            )
        privacy = settings.privacy
        if self.ledger and privacy.kind != "local":
            raise UserError(
                f"this node's most-epsilon = {own.most_epsilon:g} requires privacy.kind = 'local'; the"
                f" server's settings have {privacy.kind!r}"
            )
        if privacy.kind != "none" and privacy.source != "secure":
            raise UserError("privacy.source = 'seeded' is for simulations: its noise can be taken off again")
        if own.least_clients and not privacy.secure_aggregation:
            raise UserError(
                f"this node's least-clients = {own.least_clients} requires privacy.secure_aggregation = true"
            )
        if privacy.secure_aggregation and not (own.peers and own.private_key):
            raise UserError(
                "privacy.secure_aggregation = true needs the public keys of the other clients: set peers to"
                " their folder (`fedsdr deploy peers`), and without `fedsdr node` private-key too"
            )
        if settings.server.keep_updates and not own.keep_updates:
            raise UserError(
                "the server's settings would keep this client's updates (server.keep_updates), which this"
                " node's configuration does not allow: set keep-updates = true if it may"
            )


def read_node(config: Mapping[str, Any], folder: Path, run: str) -> Node:
    """Check a node's configuration.

    Args:
        config: As Flower hands it to the client app.
        folder: Where clients of a simulation keep their folders, if the configuration does not say.
        run: Name of the run, for the folder of a node that may take part in several.

    Raises:
        UserError: Names the key, the value and how to fix it.
    """
    if "client" not in config and "partition-id" in config:
        own = check_keys(SimulatedNode, config, "node configuration")
        return Node(
            own.partition_id, Path(own.folder) if own.folder else folder, None, own.cache, own.distill_url
        )
    node = check_keys(NodeConfig, config, "node configuration")
    return Node(node.client, Path(node.folder) / check_name(run, "run"), node, node.cache, node.distill_url)


def check_keys(kind: type[Kind], values: Mapping[str, Any], source: str) -> Kind:
    """Make an object of a node's keys.

    Args:
        kind: What the keys mean.
        values: Keys as they are written; tables are nested.
        source: Where they stand, for the message.

    Raises:
        UserError: Names the key, the value and how to fix it.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        # A misspelt key says more than that the right one is missing.
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
