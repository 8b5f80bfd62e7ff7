"""A client on its machine: its tokenised data, its rewritings, and its folder; read once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from fedsdr.config import Distill, Run, Settings
from fedsdr.data.checks import program_passes
from fedsdr.data.conversation import Conversation, encode_all
from fedsdr.data.examples import Example, as_record
from fedsdr.data.lengths import fit
from fedsdr.data.partition import ClientData, own_data, partition
from fedsdr.data.sources import Domain, load_domains
from fedsdr.data.summary import check_consistent, notices, program_notices
from fedsdr.distill.rewrite import fall_back_where_cut, rewrite
from fedsdr.distill.rewriting import Rewriting
from fedsdr.distill.token_mask import weigh_tokens
from fedsdr.errors import AnotherBaseModel, UserError
from fedsdr.evaluate.tasks import TestSet
from fedsdr.federation.model_cache import forget_model, model_of
from fedsdr.methods import METHODS
from fedsdr.model.generation import Answer
from fedsdr.progress import say, within
from fedsdr.rows import View
from fedsdr.run_folder import ClientFolder
from fedsdr.storage import content_hash, read_lines, rewrite_lines, write_file

REWRITING = tuple(field.name for field in fields(Rewriting))
TRUTH = ("label", "choices", "answer", "facts", "tests", "history")
"""Fields of an example that are saved with its rewriting, for the checks of `fedsdr analyze`."""


@dataclass(frozen=True)
class ClientContext:
    """One client: its tokenised data, and its folder."""

    id: str
    folder: Path
    data: ClientData
    rewritings: dict[str, Sequence[Rewriting]]
    """Rewritings of the "train" and "test" responses, if method and settings need them."""
    views: dict[View, list[Conversation]]
    """The training examples as conversations, with true and with rewritten responses."""
    tests: TestSet


_data: dict[str, tuple[dict[str, Domain], list[ClientData]]] = {}
_clients: dict[tuple[str, str], ClientContext] = {}
rewritings_ahead: dict[tuple[Path, str], list[Rewriting]] = {}
"""Folder of a client and part of its data -> rewritings (`rewrite_all`), until the client is opened."""
answers_ahead: dict[tuple[Path, int], dict[Example, Answer]] = {}
"""Folder and round -> answers to test examples (`answers`): in the folder of the clients, those of the global
model to all; in the folder of a client, those of its personalised model."""
seconds_ahead: dict[str, float] = {}
"""Seconds of shared work (rewriting, answering) for one client, until its record counts them."""


def data_of(
    settings: Settings, domains: dict[str, Domain] | None = None
) -> tuple[dict[str, Domain], list[ClientData]]:
    """All domains of a simulation, and all clients, sorted by id; read once per process.

    Examples that cannot be used within `model.max_length` are left out; the domains count them.

    Args:
        settings: Of the run.
        domains: What `load_domains` returned, if it was called before.
    """
    key = settings.model_dump_json(
        include={"method": True, "data": True, "partition": True, "eval": {"split"}, "model": True}
    )
    if key not in _data:
        _data.clear()
        read = domains or load_domains(settings.data, settings.partition.id_column)
        fitted = _fit(read, settings)
        _data[key] = fitted, partition(fitted, settings)
    return _data[key]


def _fit(domains: dict[str, Domain], settings: Settings) -> dict[str, Domain]:
    check_consistent(domains)
    tokenizer = model_of(settings).base.tokenizer
    return fit(domains, tokenizer, settings.model.max_length, settings.data.skip_bad_rows)


def open_client(settings: Settings, who: int | str, root: Path, identity: str = "") -> ClientContext:
    """Open a client: check its data, rewrite if needed, tokenise. Done once per process.

    Args:
        settings: The run's settings, as applied by the client's node.
        who: Number of the client in a simulation. In a deployment, its id: everything in `data.root` belongs
            to this client, and is read again at each message, since it may change.
        root: Parent of the client's folder.
        identity: Identity of the server's base model; "" if the message has none.

    Raises:
        AnotherBaseModel: The node has another base model than the server; nothing was rewritten.
        UserError: The data differ from those that the client's folder was created with, or there is no such
            client.
    """
    if isinstance(who, str):
        if METHODS[settings.method].is_pooled:
            raise UserError(f"method = {settings.method} pools the data of all clients: simulate it instead")
        domains = load_domains(settings.data, settings.partition.id_column)
        data = own_data(domains, settings, who)
    else:
        clients = data_of(settings)[1]
        if who >= len(clients):
            raise UserError(f"node {who + 1} of the simulation has no client: the data have {len(clients)}")
        data = clients[who]
    key = (str(root / data.id), settings.model_dump_json())
    is_deployed = isinstance(who, str)
    if is_deployed or key not in _clients:
        check_unchanged(root / data.id, data)
    if key not in _clients:
        if is_deployed:
            _clients.clear()  # a worker is long-lived, and serves one run at a time:
            forget_model()  # keep only one model in memory
        if identity and model_of(settings).base.identity != identity:
            raise AnotherBaseModel(
                f"model = {settings.model.name!r} is not the server's base model: set `model` in this node's"
                " configuration to the server's"
            )
        if is_deployed:
            domains = _fit(domains, settings)
            consent = "run-programs of this node's configuration"
            for notice in (*notices(domains), *program_notices(domains, settings.runs_programs, consent)):
                say(f"  {notice}")
            data = own_data(domains, settings, str(who))
        _clients[key] = _open(settings, allowed(settings, data), root / data.id)
    return _clients[key]


def allowed(settings: Settings, data: ClientData) -> ClientData:
    """The client's data, without its programs if they may not run."""
    if settings.runs_programs:
        return data
    train, test = ([replace(e, tests="") for e in part] for part in (data.train, data.test))
    return ClientData(data.id, train, test)


def close_clients() -> None:
    """Drop all clients from memory at the end of a run: their files may change before the next one."""
    _clients.clear()
    _data.clear()
    rewritings_ahead.clear()
    answers_ahead.clear()
    seconds_ahead.clear()
    program_passes.cache_clear()  # a time limit that was exceeded may be kept next time


def _open(settings: Settings, data: ClientData, folder: Path) -> ClientContext:
    model, longest = model_of(settings), settings.model.max_length
    cache = cache_of(settings.run, folder) / "rewritings"

    def conversations(
        examples: Sequence[Example], new: Sequence[Rewriting] | None = None
    ) -> list[Conversation]:
        texts = [one.distilled for one in new] if new else None
        return encode_all(model.base.tokenizer, examples, longest, texts)

    def distilled(examples: Sequence[Example], part: Literal["train", "test"]) -> list[Rewriting]:
        path = ClientFolder(folder).rewritings(part)
        if path.exists():
            return _read_rewritings(path)
        new = rewritings_ahead.pop((folder, part), None)
        if new is None:
            # The limit fits every untruncated training example with the text of the prompts around it.
            new = rewrite(model, examples, distill_of(settings, part), 2 * longest, cache)
        new = fall_back_where_cut(model.base.tokenizer, examples, new, longest)
        _save_rewritings(path, examples, new)
        return new

    rewritings: dict[str, Sequence[Rewriting]] = {}
    views: dict[View, list[Conversation]] = {"raw": conversations(data.train)}
    if METHODS[settings.method].needs_rewritings:
        with within(data.id):
            rewritings["train"] = distilled(data.train, "train")
        views["distilled"] = conversations(data.train, rewritings["train"])
        views["mixed"] = [*views["raw"], *views["distilled"]]
    if "likely" in METHODS[settings.method].views:
        with within(f"{data.id} token mask"):
            views["likely"] = weigh_tokens(model, views["raw"], settings.token_mask, settings.eval.batch_size)
    distilled_tests = []
    if settings.eval.rewritings and data.test:
        with within(f"{data.id} test"):
            rewritings["test"] = distilled(data.test, "test")
        distilled_tests = conversations(data.test, rewritings["test"])
    tests = TestSet(data.test, conversations(data.test), distilled_tests)
    return ClientContext(data.id, folder, data, rewritings, views, tests)


def check_unchanged(folder: Path, data: ClientData) -> None:
    """Save a hash of the client's data in its folder, or compare the data with the saved hash.

    Raises:
        UserError: The data changed since the folder was created.
    """
    path, found = ClientFolder(folder).data_hash, _hashes(data)
    if not path.exists():
        write_file(path, "".join(f"{value} {name}\n" for name, value in found.items()))
        return
    before = {
        name: value for value, _, name in (line.partition(" ") for line in path.read_text().splitlines())
    }
    if changed := [name for name in found if before.get(name) != found[name]]:
        raise UserError(
            f"the data of client {data.id} changed since {folder} was created: {' and '.join(changed)}"
            f" ({len(data.train)} training and {len(data.test)} test examples now); start a new run, or"
            " restore the data"
        )


def _hashes(data: ClientData) -> dict[str, str]:
    """Hash of each part of the data, by its name."""
    parts = {"training examples": data.train, "test examples": data.test}
    return {name: content_hash([as_record(example) for example in part]) for name, part in parts.items()}


def data_hash(data: ClientData) -> str:
    """Hash all data of a client, in order."""
    return content_hash([[as_record(example) for example in part] for part in (data.train, data.test)])


def _read_rewritings(path: Path) -> list[Rewriting]:
    try:
        return [Rewriting(**{key: pair[key] for key in REWRITING}) for pair in read_lines(path)]
    except (KeyError, TypeError):
        raise UserError(f"{path} is damaged; expected the rewritings as fedsdr wrote them") from None


def _save_rewritings(path: Path, examples: Sequence[Example], rewritings: Sequence[Rewriting]) -> None:
    """Save the pairs for people to read, and to resume from.

    The results of the checks are saved with the text: a program that passed its tests before might exceed its
    time limit on a busier machine.
    """
    pairs = [
        {
            "domain": example.domain,
            "instruction": example.instruction,
            "input": example.context,
            "output": example.response,
            **{key: value for key in TRUTH if (value := getattr(example, key))},
            **asdict(new),
        }
        for example, new in zip(examples, rewritings, strict=True)
    ]
    rewrite_lines(path, pairs)


def distill_of(settings: Settings, part: Literal["train", "test"]) -> Distill:
    """How the responses of a part are rewritten: of the tests all are, so that losses compare."""
    return settings.distill if part == "train" else settings.distill.model_copy(update={"only": "all"})


def cache_of(run: Run, folder: Path) -> Path:
    """Folder where a client saves results that other runs may reuse."""
    return Path(run.cache) if run.cache else folder
