"""Facts about a run at the top of its page: method, model, data, cost, and progress."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.config import Model, Privacy, Settings
from fedsdr.methods import METHODS
from fedsdr.progress import duration
from fedsdr.report.events import WORK, cost_records, data_size, total_costs
from fedsdr.storage import Event


def model_fact(model: Model, environment: Mapping[str, Any]) -> tuple[str, str]:
    """The base model."""
    quantised = f", loaded in {model.quantization}" if model.quantization != "none" else ""
    return "Model", f"{model.name}, computed in {model.dtype}{quantised}; {environment['model']['origin']}"


def data_fact(environment: Mapping[str, Any], more: str = "") -> tuple[str, str]:
    """The data, and the number of examples."""
    data = environment["data"]
    num_train, num_test = (sum(data[key].values()) for key in ("num_train", "num_test"))
    return "Data", f"{data['origin']}; {num_train:,} training and {num_test:,} test examples{more}"


def status(num_rounds: int, events: Sequence[Event], after: int, refresh: int) -> str:
    """Progress of an unfinished run; empty for a finished one."""
    if after == num_rounds:
        return ""
    done = max((event["round"] for event in events if event["event"] == "round"), default=0)
    if refresh:
        now = time.strftime("%d %B, %H:%M:%S")
        return f"running: {done} of {num_rounds} rounds on {now}; this page reloads itself every {refresh} s"
    missing = "; the last evaluation is missing" if done == num_rounds else ""
    return f"unfinished: {done} of {num_rounds} rounds{missing}"


def run_facts(settings: Settings, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The setup of the run, as terms and descriptions."""
    method, client, server = METHODS[settings.method], settings.client, settings.server
    clients = list(environment["data"]["num_train"])
    sampled = f"; {server.clients_per_round} sampled each round" if server.clients_per_round else ""
    shown = clients if len(clients) <= 8 else [*clients[:7], f"and {len(clients) - 7} more"]
    named = ", ".join(shown).replace(", and ", " and ")
    passes = f"{client.local_epochs} passes over the data"
    work = f"{client.local_steps} steps" if client.local_steps else passes
    steps = [name for name in (server.aggregation, server.robust, server.optimizer) if name != "none"]
    return [
        ("Method", f"{settings.method}: {method.summary} ({method.paper})"),
        model_fact(settings.model, environment),
        ("Clients", f"{len(clients)}: {named}{sampled}"),
        (
            "Rounds",
            f"{server.num_rounds}; {work} {client.budget.replace('_', ' ')} at each client,"
            f" {client.batch_size * client.accumulation} examples a step; {', '.join(steps)}",
        ),
        ("Seed", f"{settings.run.seed} (data {settings.data.seed}, rewriting {settings.distill.seed})"),
        data_fact(environment),
    ]


def privacy_facts(privacy: Privacy, events: Sequence[Event]) -> list[tuple[str, str]]:
    """Protection of the updates, and the spent privacy budget; empty without either."""
    summed = [
        ("Secure aggregation", "the server saw the sum of a round's changes, and no change of one client")
    ]
    facts = summed if privacy.secure_aggregation else []
    if privacy.kind == "none":
        return facts
    epsilons = [event["epsilon"] for event in events if "epsilon" in event]
    spent = (
        f"epsilon {epsilons[-1]:.3g} at delta {privacy.delta:g} so far" if epsilons else "nothing spent yet"
    )
    seeded = "; the noise repeats run.seed and protects nothing" if privacy.source == "seeded" else ""
    return [
        *facts,
        (
            "Privacy",
            f"of the shared adapter, {privacy.kind}, a client being the unit: {spent}; clipped to"
            f" {privacy.clipping_norm:g}, noise multiplier {privacy.noise_multiplier:g}{seeded}",
        ),
    ]


def cost_facts(events: Sequence[Event]) -> list[tuple[str, str]]:
    """The cost of the run so far, as far as it is known."""
    total = total_costs(cost_records(events))
    seconds = sum(total[work] for work in WORK)
    if not seconds:
        return []
    parts = [f"{duration(seconds)} of work at the clients"]
    end = next((event for event in events if event["event"] == "end" and "seconds" in event), None)
    if end:
        memory = f", {data_size(end['peak_memory'])} of memory" if "peak_memory" in end else ""
        parts = [duration(end["seconds"]) + memory]
    parts.append(f"{data_size(total['num_bytes_up'])} up, {data_size(total['num_bytes_down'])} down")
    return [("Cost", "; ".join(parts))]
