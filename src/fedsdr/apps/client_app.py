"""The ClientApp: prepare (rewrite the responses), train, evaluate. It never knows which engine runs it.

Settings come with each message; the client's number and folder come from its node's configuration.
What leaves is the shared adapter and listed numbers, nothing else.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsdr.apps.site import Site, model_of, open_site
from fedsdr.client.state import load_private, save_private
from fedsdr.client.update import learning_rate, local_update
from fedsdr.config import Settings, check_settings
from fedsdr.data.examples import Example
from fedsdr.distill.paradox import paradox_counts
from fedsdr.distill.rewrite import Rewriting
from fedsdr.measure.tasks import evaluate
from fedsdr.model.adapters import Adapters
from fedsdr.seeds import seed_for
from fedsdr.storage import rewrite_lines
from fedsdr.tables import METHODS, Adapter

app = ClientApp()


@app.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    """Rewrite the responses where the method or the evaluation wants it; tell the client's id."""
    start = time.monotonic()
    _, site, _ = _open(message, context)
    metrics: dict[str, float] = {"num_train": len(site.data.train), "num_test": len(site.data.test)}
    if site.rewritings:
        metrics |= distill_metrics(site.data.train, site.rewritings)
    metrics["seconds"] = time.monotonic() - start
    content = RecordDict({"client": ConfigRecord({"id": site.id}), "metrics": _as_record(metrics)})
    return Message(content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One local update from the broadcast shared adapter; the private one is kept here."""
    start = time.monotonic()
    settings, site, server_round = _open(message, context)
    base, adapters = model_of(settings)
    _load_adapters(message, settings, site, adapters, before=server_round)
    method = METHODS[settings.method]
    metrics = local_update(
        base,
        adapters,
        method.stages,
        site.views,
        settings.client,
        learning_rate(settings.client, server_round, settings.server.num_rounds),
        seed_for(settings.run.seed, "client", site.id, "round", server_round),
        f"round {server_round}, {site.id}",
    )
    if method.has_private:
        private = adapters.state("private")
        save_private(
            site.folder, server_round, private, settings.lora, adapters.target_names, settings.model.name
        )
    metrics |= {"round": server_round, "num_examples": len(site.data.train)}
    metrics["seconds"] = time.monotonic() - start
    arrays = {key: Array(tensor.numpy()) for key, tensor in adapters.state("shared").items()}
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": _as_record(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate_models(message: Message, context: Context) -> Message:
    """Score the global model and, where there is one, the personalised model on the client's tests.

    Round 0 scores the base model: the shared adapter's B is still zero.
    """
    start = time.monotonic()
    settings, site, server_round = _open(message, context)
    base, adapters = model_of(settings)
    is_personal = _load_adapters(message, settings, site, adapters, before=server_round + 1)
    models: dict[str, tuple[Adapter, ...]] = {"global": ("shared",)}
    if is_personal:
        models["personalised"] = ("shared", "private")
    metrics: dict[str, float] = {"round": server_round}
    for model, active in models.items():
        what = f"{model if server_round else 'base'} model answers {site.id}"
        by_domain, records = evaluate(base, adapters, active, site.tests, settings.eval, what)
        for domain, numbers in by_domain.items():
            metrics |= {f"eval/{domain}/{name}@{model}": value for name, value in numbers.items()}
        rewrite_lines(site.folder / "evaluation" / f"round-{server_round:04d}-{model}.jsonl", records)
    metrics["seconds"] = time.monotonic() - start
    return Message(RecordDict({"metrics": _as_record(metrics)}), reply_to=message)


def distill_metrics(examples: Sequence[Example], rewritings: Sequence[Rewriting]) -> dict[str, float]:
    """Counts of the rewrite paradox before and after fall-back, of the prompts, and of the reasons."""
    metrics: dict[str, float] = {}
    for when, texts in (
        ("before", [new.first for new in rewritings]),
        ("after", [new.distilled for new in rewritings]),
    ):
        counts = paradox_counts(examples, texts)
        metrics |= {f"distill/{name}@{when}": value for name, value in counts.items()}
    for kind, names in (
        ("fallback", Counter(new.fallback for new in rewritings if new.fallback)),
        ("prompt", Counter(new.prompt for new in rewritings if new.prompt)),
    ):
        metrics |= {f"distill/num_{kind}/{name.replace(' ', '_')}": num for name, num in names.items()}
    return metrics


def _as_record(metrics: dict[str, float]) -> MetricRecord:
    return MetricRecord(dict(metrics))


def _open(message: Message, context: Context) -> tuple[Settings, Site, int]:
    """Settings, client and round that a message is about."""
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    settings = check_settings(json.loads(str(config["settings"])), source="settings from the server")
    folder = Path(str(context.node_config["folder"]))
    site = open_site(settings, int(context.node_config["partition-id"]), folder)
    return settings, site, int(config["round"])  # type: ignore[arg-type]


def _load_adapters(message: Message, settings: Settings, site: Site, adapters: Adapters, before: int) -> bool:
    """Take the broadcast shared adapter and this client's private one; say whether that was ever trained."""
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    adapters.load("shared", {key: torch.from_numpy(array.numpy().copy()) for key, array in arrays.items()})
    if not METHODS[settings.method].has_private:
        return False
    private = load_private(site.folder, before)
    if private is None:
        adapters.initialise("private", seed_for(settings.run.seed, "client", site.id, "private"))
        return False
    adapters.load("private", private)
    return True
