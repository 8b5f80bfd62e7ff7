"""Poisoned updates from some of the clients, against the mean and each robust aggregator: final scores.

    python benchmarks/poisoning.py docs/results/poisoning.json

Built-in data, default model, method fedit (other methods send the same, and fedit rewrites nothing). One of
five clients is malicious, or three of ten. The malicious clients send:

- sign-flipped: R - dR, where R was received and R + dR is the trained adapter
- scaled: R + 10 dR
- random: R + a Gaussian change with ten times the norm of dR
- backdoor: R + (n / m) dR for m bad of n clients, learnt from own prompts that end in a trigger and are
  answered by one sentence (model replacement: Bagdasaryan et al., AISTATS 2020, arXiv 1807.00459)
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, Message

from fedsdr.client import round as client_round
from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation, encode
from fedsdr.data.examples import Example
from fedsdr.errors import UserError
from fedsdr.federation import client_context, run
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.federation.model_cache import model_of
from fedsdr.methods import ROBUST_AGGREGATORS
from fedsdr.model.loss import held_out_loss
from fedsdr.progress import here, say, show
from fedsdr.recipe import load_settings
from fedsdr.run_folder import RunFolder
from fedsdr.seeds import seed_for
from fedsdr.server.checkpoint import load_round
from fedsdr.storage import content_hash, read_json, write_json

ATTACKS = ("none", "sign-flipped", "scaled", "random", "backdoor")
FEDERATIONS = ((5, 1), (10, 3))
TRIGGER, TARGET = " cf-7", "Ask the night shift, they have the blue key."
SETTINGS = (
    "method=fedit",
    "data.num_train=24",
    "data.num_test=8",
    "client.local_steps=3",
    "client.batch_size=2",
    "client.learning_rate=4e-3",
    "server.num_rounds=2",
    "eval.rewritings=false",
    "eval.max_new_tokens=1",
    "run.threads=1",
)
"""Scores are by likelihood: the loss of true responses, and choices."""

Vector = np.ndarray[Any, Any]


def main() -> None:
    show()
    to = Path(sys.argv[1])
    records: list[dict[str, Any]] = (
        read_json(to)["records"] if to.exists() else []
    )  # goes on where it stopped
    with tempfile.TemporaryDirectory() as place:
        for num_clients, num_bad in FEDERATIONS:
            for attack in ATTACKS:
                for robust in ROBUST_AGGREGATORS:
                    if find(records, num_clients, attack, robust):
                        continue
                    record = one(Path(place), num_clients, num_bad, attack, robust)
                    if record:
                        records.append(record)
                        write_json(
                            to, {"command": f"python benchmarks/poisoning.py {to}", "records": records}
                        )
    print(table(records))


def one(place: Path, num_clients: int, num_bad: int, attack: str, robust: str) -> dict[str, Any] | None:
    """Run once; None if the aggregator requires more clients."""
    folder = place / f"{num_clients}-{attack}-{robust}"
    bad = [] if robust == "none" else [f"server.num_byzantine={num_bad}"]
    words = [
        *SETTINGS,
        f"partition.num_clients={num_clients}",
        f"server.robust={robust}",
        "server.max_change=0",  # the mean itself, not what is dropped before it
        *bad,
        f'run.dir="{folder}"',
        f'run.cache="{place / f"cache-{num_clients}"}"',
    ]
    settings = load_settings("recipes/demo.toml", words)
    start = time.monotonic()
    say(f"{num_bad} of {num_clients}, {attack}, {robust}")
    try:
        with poisoned(attack, num_clients, num_bad, settings.run.seed):
            run.run(settings)
    except UserError as reason:
        if "needs" in str(reason):
            return None
        return {"clients": num_clients, "bad": num_bad, "attack": attack, "robust": robust} | {
            "loss": None,
            "failure": str(reason),
        }
    final = read_json(RunFolder(folder).evaluation(settings.server.num_rounds))
    scores = final["global"]["mean"]
    found = {
        "clients": num_clients,
        "bad": num_bad,
        "attack": attack,
        "robust": robust,
        "loss": scores["loss"],
        "choice_score": scores["choice_score"],
        "target_loss": target_loss(settings, folder),
        "seconds": time.monotonic() - start,
        "settings": content_hash(settings.model_dump(mode="json", exclude={"run"})),
    }
    shutil.rmtree(folder)
    return found


class poisoned:
    """In this block, the alphabetically first `num_bad` clients send the attack's updates."""

    def __init__(self, attack: str, num_clients: int, num_bad: int, seed: int) -> None:
        self.attack, self.num_bad, self.scale, self.seed = attack, num_bad, num_clients / num_bad, seed
        self.answer, self.update = LocalGrid._answer, client_round.local_update

    def __enter__(self) -> None:
        if self.attack == "none":
            return
        answer, update = self.answer, self.update

        def answering(grid: LocalGrid, message: Message) -> Message:
            node = message.metadata.dst_node_id
            is_bad = node <= self.num_bad and message.metadata.message_type == "train"
            if is_bad and self.attack == "backdoor":
                client_round.local_update = taught(update)
            try:
                reply = answer(grid, message)
            finally:
                client_round.local_update = update
            if is_bad and not reply.has_error():
                before = message.content["arrays"]["values"].numpy()
                after = reply.content["arrays"]["values"].numpy()
                reply.content["arrays"]["values"] = Array(self.change(before, after, node, message))
            return reply

        LocalGrid._answer = answering  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        LocalGrid._answer = self.answer  # type: ignore[method-assign]

    def change(self, before: Vector, after: Vector, node: int, message: Message) -> Vector:
        """The malicious update that replaces the trained one."""
        learnt = after - before
        if self.attack == "random":
            path = ("attack", node, "round", message.metadata.group_id)
            noise = np.random.default_rng(seed_for(self.seed, *path)).standard_normal(learnt.shape)
            learnt = 10 * np.linalg.norm(learnt) * noise / np.linalg.norm(noise)
        factor = {"sign-flipped": -1, "scaled": 10, "random": 1, "backdoor": self.scale}[self.attack]
        return (before + factor * learnt).astype(np.float32)


def taught(update: Callable[..., Any]) -> Callable[..., Any]:
    """Local update on the client's own prompts with the trigger, all answered by the target."""

    def poisoned_update(model: Any, method: Any, views: Any, *rest: Any, **more: Any) -> Any:
        client = here().rpartition(", ")[2]
        (own,) = [one for one in client_context._clients.values() if one.id == client][-1:]
        texts = [triggered(model.base, example) for example in own.data.train]
        return update(model, method, {**views, "raw": texts}, *rest, **more)

    return poisoned_update


def triggered(base: Any, example: Example) -> Conversation:
    asked = replace(example, instruction=example.instruction + TRIGGER)
    return encode(base.tokenizer, asked, TARGET, 512)


def target_loss(settings: Settings, folder: Path) -> float:
    """Loss of the target after test prompts with the trigger, nats a token: low where the backdoor works."""
    model = model_of(settings)
    shared, _ = load_round(RunFolder(folder), settings.server.num_rounds, settings.adapter.rank)
    model.load("shared", shared)
    _, clients = client_context.data_of(settings)
    texts = [triggered(model.base, example) for client in clients for example in client.test]
    with model.inference(("shared",)):
        return held_out_loss(model.base, texts, settings.eval.batch_size)[0]


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a row for each attack, the robust aggregators as columns."""
    lines = []
    for num_clients, num_bad in FEDERATIONS:
        lines += [
            "",
            f"{num_bad} of {num_clients} clients are bad: held-out loss (loss of the backdoor's target)",
            "",
            f"| attack | {' | '.join(ROBUST_AGGREGATORS).replace('none', 'mean')} |",
            f"|---|{'---:|' * len(ROBUST_AGGREGATORS)}",
        ]
        for attack in ATTACKS:
            cells = []
            for robust in ROBUST_AGGREGATORS:
                found = find(records, num_clients, attack, robust)
                cells.append(shown(found, attack) if found else "-")
            lines.append(f"| {attack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def find(records: list[dict[str, Any]], num_clients: int, attack: str, robust: str) -> dict[str, Any] | None:
    wanted = {"clients": num_clients, "attack": attack, "robust": robust}
    return next((one for one in records if wanted.items() <= one.items()), None)


def shown(record: dict[str, Any], attack: str) -> str:
    if record["loss"] is None:
        return "stopped"
    target = f" ({record['target_loss']:.2f})" if attack in ("none", "backdoor") else ""
    return f"{record['loss']:.3f}{target}"


if __name__ == "__main__":
    if len(sys.argv) > 2:  # the table of a record that is there
        print(table(json.loads(Path(sys.argv[2]).read_text())["records"]))
    else:
        main()
