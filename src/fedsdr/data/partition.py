"""Divide the domains among the clients.

Input: domains of records. Output: the training and test examples of each client. Each example is held by
exactly one client. The same seed (`data.seed`) gives the same partition.
"""

from dataclasses import dataclass, replace

import numpy as np

from fedsdr.config import Partition, Settings
from fedsdr.data.examples import Example
from fedsdr.data.readers import Record
from fedsdr.data.sources import Domain, check_name, opening, split_off
from fedsdr.errors import UserError
from fedsdr.methods import METHODS
from fedsdr.seeds import seed_for

Class = tuple[str, str]
"""Domain, with the label if classes are labels."""
Groups = dict[Class, list[int]]
"""Indices of the examples of each class in the pool of all domains."""
Assignment = dict[str, list[int]]
"""Indices of the examples of each client in the pool of all domains."""

MAX_DRAWS = 1000


@dataclass(frozen=True)
class ClientData:
    """What one client holds."""

    id: str
    train: list[Example]
    test: list[Example]


def partition(domains: dict[str, Domain], settings: Settings) -> list[ClientData]:
    """Divide all examples among clients as `settings.partition` says.

    The test examples of a class (a domain, or a label with ``by = "label"``) are dealt to the clients in
    proportion to their training examples of that class, so that each client is tested on the mix it trains
    on. In a natural partition, test records that name a client go to that client.

    Returns:
        Clients sorted by id; examples keep the order of their domain. One client, "pooled", if the method
            pools all data.

    Raises:
        UserError: The settings do not fit the data; the message says what to change.
    """
    chosen, seed = settings.partition, settings.data.seed
    train, test = _pool(domains, settings)
    by_label = chosen.by == "label" and chosen.kind in ("dirichlet", "pathological")
    if by_label and not any(record.example.label for record in train):
        raise UserError("partition.by = 'label', but no example has a label; set partition.by = 'domain'")
    if METHODS[settings.method].is_pooled:
        return [_holding_all("pooled", train, test)]
    clients = _assign_train(train, list(domains), _group(train, by_label), chosen, seed)
    tests = _assign_test(clients, train, test, by_label, chosen, seed)
    return [
        ClientData(name, [train[i].example for i in places], [test[i].example for i in tests[name]])
        for name, places in clients.items()
    ]


def own_data(domains: dict[str, Domain], settings: Settings, client: str) -> ClientData:
    """All examples of all domains, as the data of the one client of a deployment node.

    Raises:
        UserError: `data.validation` leaves a domain nothing to train on.
    """
    return _holding_all(client, *_pool(domains, settings))


def _pool(domains: dict[str, Domain], settings: Settings) -> tuple[list[Record], list[Record]]:
    """Training and test records of all domains, without the held-out training examples."""
    if settings.data.validation:
        domains = {name: _hold_out(name, domain, settings) for name, domain in domains.items()}
    train = [record for domain in domains.values() for record in domain.train]
    return train, [record for domain in domains.values() for record in domain.test]


def _holding_all(client: str, train: list[Record], test: list[Record]) -> ClientData:
    return ClientData(client, [record.example for record in train], [record.example for record in test])


def _hold_out(name: str, domain: Domain, settings: Settings) -> Domain:
    """Hold a share of the training prompts (at least one) out of training, with all that share an opening.

    Models are scored on them instead of the test examples. The choice does not depend on the partition, so
    methods that pool the data hold out the same examples.
    """
    prompts = list(dict.fromkeys(opening(record.example) for record in domain.train))
    num = max(1, round(settings.data.validation * len(prompts)))
    if num == len(prompts):
        raise UserError(
            f"data.validation = {settings.data.validation} leaves domain {name!r} no examples to train"
            f" on: of its {len(domain.train)} prompts, {num} differ; lower it, or set it to 0"
        )
    rng = np.random.default_rng(seed_for(settings.data.seed, "validation", name))
    chosen = rng.permutation(len(prompts))[:num]
    train, held = split_off(domain.train, (prompts[place] for place in chosen))
    return replace(domain, train=train, test=held if settings.eval.split == "validation" else domain.test)


def _group(records: list[Record], by_label: bool) -> Groups:
    groups: Groups = {}
    for i, record in enumerate(records):
        key = (record.example.domain, record.example.label if by_label else "")
        groups.setdefault(key, []).append(i)
    return groups


def _assign_train(
    train: list[Record], names: list[str], groups: Groups, chosen: Partition, seed: int
) -> Assignment:
    """Draw until every client has `min_examples`; clients sorted by id, indices ascending."""
    rng = np.random.default_rng(seed_for(seed, "partition", chosen.kind))
    num_draws = MAX_DRAWS if chosen.kind in ("dirichlet", "quantity", "pathological") else 1
    for _ in range(num_draws):
        clients = _assign_once(train, names, groups, chosen, rng)
        smallest = min(clients, key=lambda name: len(clients[name]))
        if len(clients[smallest]) >= chosen.min_examples:
            return {name: sorted(clients[name]) for name in sorted(clients)}
    tried = f" in the last of {num_draws} draws" if num_draws > 1 else ""
    larger = ", a larger partition.alpha" if chosen.kind in ("dirichlet", "quantity") else ""
    raise UserError(
        f"partition.kind = {chosen.kind!r}: client {smallest} has {len(clients[smallest])} training examples"
        f"{tried}, but partition.min_examples = {chosen.min_examples}; {len(train)} examples are divided"
        f" among {len(clients)} clients: set a smaller partition.num_clients or min_examples{larger},"
        " or give more data"
    )


def _assign_once(
    train: list[Record], names: list[str], groups: Groups, chosen: Partition, rng: np.random.Generator
) -> Assignment:
    match chosen.kind:
        case "domain":
            return _by_domain(names, groups, chosen, rng)
        case "natural":
            return _natural(train, chosen)
        case "iid":
            return _numbered(np.array_split(rng.permutation(len(train)), _num_clients(chosen)))
        case "dirichlet":
            return _dirichlet(groups, chosen, rng)
        case "quantity":
            return _quantity(len(train), chosen, rng)
        case "pathological":
            return _pathological(groups, chosen, rng)


def _by_domain(names: list[str], groups: Groups, chosen: Partition, rng: np.random.Generator) -> Assignment:
    """Assign each domain to one client, or split it evenly among several of its own."""
    num_clients = chosen.num_clients or len(names)
    if num_clients < len(names):
        raise UserError(
            f"partition.num_clients = {num_clients} is below the number of domains, {len(names)}"
            f" ({', '.join(names)}); choose fewer data.domains, or partition.kind = 'iid'"
        )
    clients: Assignment = {}
    for d, name in enumerate(names):
        num = num_clients // len(names) + (d < num_clients % len(names))
        places = groups[name, ""]
        parts = np.array_split(rng.permutation(places), num) if num > 1 else [np.array(places)]
        for i, part in enumerate(parts):
            client = f"{name}-{i:0{len(str(num - 1))}}" if num > 1 else name
            if client in clients:
                raise UserError(
                    f"partition.num_clients = {num_clients}: two clients would be called {client!r}, one of"
                    f" domain {name!r} and one of another; rename a domain"
                )
            clients[client] = part.tolist()
    return clients


def _dirichlet(groups: Groups, chosen: Partition, rng: np.random.Generator) -> Assignment:
    """Deal each class in proportions drawn from a symmetric Dirichlet distribution over the clients.

    Paper: Hsu et al. 2019, arXiv 1909.06335. Differs: they draw each client's mix of classes; we draw each
    class's mix of clients, as in Yurochkin et al., ICML 2019, arXiv 1905.12022, so that every example is
    held exactly once. Sizes are uneven too.
    """
    num_clients = _num_clients(chosen)
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for places in groups.values():
        _deal(places, rng.dirichlet(np.full(num_clients, chosen.alpha)), parts, rng)
    return _numbered(parts)


def _quantity(num: int, chosen: Partition, rng: np.random.Generator) -> Assignment:
    """Deal all examples, shuffled, in sizes drawn from a symmetric Dirichlet distribution."""
    num_clients = _num_clients(chosen)
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    _deal(list(range(num)), rng.dirichlet(np.full(num_clients, chosen.alpha)), parts, rng)
    return _numbered(parts)


def _pathological(groups: Groups, chosen: Partition, rng: np.random.Generator) -> Assignment:
    """Sort by class, cut into shards, and deal `classes_per_client` shards to each client.

    Paper: McMahan et al., AISTATS 2017, arXiv 1602.05629. Differs: their equal shards may straddle two
    classes; here each class is cut separately into shards of nearly equal size, so that no client holds more
    than `classes_per_client` classes.
    """
    num_clients, each = _num_clients(chosen), chosen.classes_per_client
    spare = num_clients * each - len(groups)
    if spare < 0:
        raise UserError(
            f"partition.num_clients = {num_clients} times partition.classes_per_client = {each} cannot hold"
            f" {len(groups)} classes; raise one of the two"
        )
    sizes = np.array([len(places) for places in groups.values()])
    shards: list[np.ndarray] = []
    for places, extra in zip(groups.values(), _apportion(spare, sizes / sizes.sum(), rng), strict=True):
        shards += np.array_split(rng.permutation(places), 1 + extra)
    dealt = rng.permutation(len(shards)).reshape(num_clients, each)
    return _numbered([np.concatenate([shards[s] for s in row]) for row in dealt])


def _natural(train: list[Record], chosen: Partition) -> Assignment:
    """Assign each example to the client that its record names."""
    clients: Assignment = {}
    for i, record in enumerate(train):
        if not record.client:
            raise UserError(
                f"partition.kind = 'natural', but an example of {record.example.domain!r} names no client"
                f" under {chosen.id_column!r}; set partition.id_column, or choose another kind"
            )
        clients.setdefault(record.client, []).append(i)
    if chosen.num_clients not in (0, len(clients)):
        raise UserError(
            f"partition.num_clients = {chosen.num_clients}, but the data names {len(clients)} clients; set 0"
        )
    for name in clients:
        check_name(name, "client id")
    return clients


def _assign_test(
    clients: Assignment, train: list[Record], test: list[Record], by_label: bool, chosen: Partition, seed: int
) -> Assignment:
    rng = np.random.default_rng(seed_for(seed, "partition", chosen.kind, "test"))
    parts: list[list[int]] = [[] for _ in clients]
    holder = {name: k for k, name in enumerate(clients)} if chosen.kind == "natural" else {}
    held = [_group([train[i] for i in places], by_label) for places in clients.values()]
    for key, places in _group(test, by_label).items():
        for i in places:
            if test[i].client in holder:
                parts[holder[test[i].client]].append(i)
        counts = np.array([len(groups.get(key, [])) for groups in held])
        if not counts.any():
            # Only the test set has this label, so no client has a better claim to it.
            counts = np.ones_like(counts)
        _deal([i for i in places if test[i].client not in holder], counts / counts.sum(), parts, rng)
    return {name: sorted(part) for name, part in zip(clients, parts, strict=True)}


def _deal(places: list[int], shares: np.ndarray, parts: list[list[int]], rng: np.random.Generator) -> None:
    """Append shuffled indices to the clients' parts, in sizes given by shares (num_clients,)."""
    ends = np.cumsum(_apportion(len(places), shares, rng))
    for part, piece in zip(parts, np.split(rng.permutation(places).astype(int), ends[:-1]), strict=True):
        part += piece.tolist()


def _apportion(num: int, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split a count by shares (n,) that sum to 1: largest remainder, random ties, exact sum."""
    exact = num * shares
    sizes = np.floor(exact).astype(int)
    order = rng.permutation(len(shares))
    order = order[np.argsort(-(exact - sizes)[order], kind="stable")]
    sizes[order[: num - sizes.sum()]] += 1
    return sizes


def _num_clients(chosen: Partition) -> int:
    if not chosen.num_clients:
        raise UserError(f"partition.kind = {chosen.kind!r} needs partition.num_clients above 0")
    return chosen.num_clients


def _numbered(parts: list[list[int]] | list[np.ndarray]) -> Assignment:
    digits = max(2, len(str(len(parts) - 1)))
    return {f"client-{k:0{digits}}": np.asarray(part, dtype=int).tolist() for k, part in enumerate(parts)}
