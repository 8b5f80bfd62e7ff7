"""Checks before a run begins: settings that do not fit the data, the clients or the privacy budget."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsdr.config import Settings
from fedsdr.data.sources import Domain, check_name
from fedsdr.errors import Unreachable, UserError
from fedsdr.messages.secure_sum import LEAST_CLIENTS
from fedsdr.methods import ROBUST_AGGREGATORS
from fedsdr.plugins import require_functions
from fedsdr.progress import say


def check_alone(settings: Settings) -> None:
    """Reject a run for its settings alone, before its data are read.

    Raises:
        UserError: A plugin's row has no function here, the rounds exceed the privacy budget, or the engine
            is not installed.
    """
    require_functions(settings)
    check_budget(settings, [])
    check_engine(settings)


def check_engine(settings: Settings) -> None:
    """Reject an engine that cannot start.

    Raises:
        UserError: Ray is not installed, or its workers would not see a model in memory.
    """
    if settings.run.engine != "simulation":
        return
    if find_spec("ray") is None:
        raise UserError(
            "run.engine = 'simulation' needs Ray: pip install 'fedsdr[simulation]', or leave run.engine ="
            " 'local'"
        )
    from fedsdr.model.base import MEMORY

    if settings.model.name.startswith(MEMORY):
        raise UserError(
            "run.engine = 'simulation' runs workers in other processes, which cannot access a model in"
            " memory: save it by save_pretrained and name its folder, or set run.engine = 'local'"
        )


def check_data(settings: Settings) -> dict[str, Domain]:
    """Read the data and check the settings against it, before the model is loaded, which takes seconds.

    Raises:
        UserError: The data cannot be read or divided, more clients are sampled than exist, or a client in
            lora.client_ranks or a domain in distill.only is unknown.
    """
    from fedsdr.data.partition import partition
    from fedsdr.data.sources import load_domains

    domains = load_domains(settings.data, settings.partition.id_column)
    check_rewritten(settings, domains)
    check_counts(settings, [client.id for client in partition(domains, settings)])
    return domains


def check_fit(settings: Settings, domains: dict[str, Domain]) -> None:
    """Reject what would fail later, before the folder becomes a run and anything is computed.

    Args:
        settings: Of the run.
        domains: What `check_data` returned.

    Raises:
        UserError: A prompt leaves no room for a response, the remaining examples cannot be divided, all
            examples of a domain contradict their own ground truth, or the disk has no room for the run.
    """
    from fedsdr.federation.client_context import data_of
    from fedsdr.federation.disk import check_disk, disk
    from fedsdr.federation.model_cache import model_of

    _, clients = data_of(settings, domains)
    check_counts(settings, [client.id for client in clients])
    shapes = {key: value.shape for key, value in model_of(settings).state("shared").items()}
    check_disk(Path(settings.run.dir), disk(settings, shapes, len(clients)), 0)


def describe_data(settings: Settings) -> dict[str, Any]:
    """The data of each client, and the effect of `model.max_length`: the summary of `fedsdr data`.

    Token lengths are included if the tokenizer is available without the weights; otherwise a notice gives the
    reason.

    Raises:
        UserError: As for `check_data`, or the named model cannot be one.
    """
    from fedsdr.data.lengths import fit, measure
    from fedsdr.data.partition import partition
    from fedsdr.data.sources import load_domains
    from fedsdr.data.summary import summarize
    from fedsdr.model.base import list_models
    from fedsdr.model.meta import load_tokenizer

    longest = settings.model.max_length
    domains = load_domains(settings.data, settings.partition.id_column)
    name = settings.model.name
    try:
        if any(model["name"] == name and not model["cached"] and name != "tiny" for model in list_models()):
            raise Unreachable(f"model.name = {name} is not fetched yet: fedsdr fetch {name}")
        tokenizer = load_tokenizer(settings.model)
    except Unreachable as reason:
        summary = summarize(domains, partition(domains, settings))
        summary["notices"].append(f"token lengths are unknown: {reason}")
        return summary
    lengths = {
        name: [each for part in measure(domain, tokenizer, longest) for each in part]
        for name, domain in domains.items()
    }
    fitted = fit(domains, tokenizer, longest, skips_long=True)
    return summarize(fitted, partition(fitted, settings), lengths=lengths, max_length=longest)


def check_deployed(settings: Settings, num_clients: int = 0) -> None:
    """Reject settings that no engine of Flower can run, before any client works.

    Args:
        settings: Of the run.
        num_clients: The number to propose, if known.

    Raises:
        UserError: The number of clients or the name of the run is missing, clients could compute the noise,
            or the privacy cost exceeds the budget.
    """
    if not settings.federation.num_clients:
        raise UserError(
            "federation.num_clients = 0: Flower's engines need the number of clients to wait for; add"
            f" federation.num_clients={num_clients or 3} to the settings"
        )
    if not settings.run.dir:
        raise UserError("run.dir is empty: name the server's folder of this run")
    check_name(Path(settings.run.dir).name, "run")
    if settings.privacy.kind != "none" and settings.privacy.source != "secure":
        raise UserError("privacy.source = 'seeded' is for simulations: set privacy.source = 'secure'")
    check_budget(settings, [])


def check_budget(settings: Settings, clients: Sequence[str]) -> None:
    """Reject a run whose rounds would cost more than `privacy.max_epsilon`, before anything is spent.

    Args:
        settings: The run's settings.
        clients: All clients; [] if unknown, and then only a run without sampling is checked.

    Raises:
        UserError: States the number of rounds that the budget allows.
    """
    from fedsdr.messages.privacy import affordable, epsilon
    from fedsdr.server.sampling import num_trainings

    privacy, num_rounds = settings.privacy, settings.server.num_rounds
    if privacy.kind == "none" or (settings.server.clients_per_round and not clients):
        return

    def trainings(server_round: int) -> int:
        num, seed = settings.server.clients_per_round, settings.run.seed
        return num_trainings(clients or ["all"], num, seed, server_round)

    total = epsilon(privacy, trainings(num_rounds))
    if clients:
        say(f"  privacy: {privacy.kind}, epsilon {total:.3g} at delta {privacy.delta:g} after all rounds")
    if privacy.max_epsilon and total > privacy.max_epsilon:
        most = affordable(privacy, num_rounds)
        paid = max(n for n in range(num_rounds) if trainings(n) <= most)
        fewer = f"set server.num_rounds = {paid}, or" if paid else "set"
        raise UserError(
            f"server.num_rounds = {num_rounds} would spend epsilon = {total:.3g} of privacy.max_epsilon ="
            f" {privacy.max_epsilon:g}: {fewer} a larger privacy.noise_multiplier than"
            f" {privacy.noise_multiplier:g}"
        )


def check_rewritten(settings: Settings, domains: Iterable[str]) -> None:
    """Reject a name in `distill.only` that is no domain of the run: its responses would stay as they are.

    Raises:
        UserError: Lists the domains.
    """
    only = settings.distill.only
    if isinstance(only, tuple) and (unknown := sorted(set(only).difference(domains))):
        listed = ", ".join(map(repr, unknown))
        raise UserError(f"distill.only: unknown domain {listed}; known: {', '.join(sorted(domains))}")


def check_counts(settings: Settings, clients: Sequence[str]) -> None:
    """Reject fewer clients than are sampled or than the aggregation requires, and ranks of unknown clients.

    Raises:
        UserError: States the setting and the actual number.
    """
    server, lora = settings.server, settings.lora
    sampled = server.clients_per_round or len(clients)
    if sampled > len(clients):
        raise UserError(f"server.clients_per_round = {sampled}, but there are {len(clients)} clients")
    if unknown := sorted(set(lora.client_ranks) - set(clients)):
        raise UserError(f"lora.client_ranks names {', '.join(unknown)}; the clients are {', '.join(clients)}")
    if len(lora.client_ranks) == len(clients):
        largest = max(lora.client_ranks.values())
        raise UserError(
            f"lora.rank = {lora.rank} is above the rank of every client: set lora.rank = {largest},"
            " and leave the clients of that rank out of lora.client_ranks"
        )
    needed = ROBUST_AGGREGATORS[server.robust].num_needed(server.num_byzantine)
    if sampled < needed:
        raise UserError(
            f"server.robust = {server.robust!r} with server.num_byzantine = {server.num_byzantine}"
            f" needs {needed} clients in each round, and {sampled} are sampled"
        )
    if settings.privacy.secure_aggregation and sampled < LEAST_CLIENTS:
        raise UserError(
            f"privacy.secure_aggregation = true needs {LEAST_CLIENTS} clients in each round, but {sampled}"
            " are sampled: in a sum of two, each could compute the other's part"
        )
