"""Many simulated clients, few of them sampled in each round: which costs grow with the rounds.

    python benchmarks/many_clients.py benchmarks/results/many-clients.json [CLIENTS] [DRAWN] [ROUNDS]

10,000 clients of four examples each, 100 drawn in each of 20 rounds, FedSDR on the tiny model by the local
engine; the responses come with their rewritings. After each round: memory of the process, the processor time
of the server for each drawn client (that of the process less that of the clients and of the page), and the
bytes of the run's folder, those of clients' adapters apart. Folders are made on $FEDSDR_SCRATCH where that is
set. docs/scale.md shows the record.
"""

import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from fedsdr import Callback, run
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.federation.server_app import PageWriter
from fedsdr.storage import write_json

EACH, NUM_TEST = 4, 200
"""Training examples of a client, and test examples of all."""
spent: dict[str, float] = defaultdict(float)
"""Seconds of processor time of this process, by who spent them."""


def count_time(owner: Any, name: str, who: str) -> None:
    """Measure the time spent in a method."""
    plain = getattr(owner, name)

    def method(*arguments: Any) -> Any:
        begun = time.process_time()
        try:
            return plain(*arguments)
        finally:
            spent[who] += time.process_time() - begun

    setattr(owner, name, method)


class Recorder(Callback):
    """The cost of a run, round by round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun, self.last = time.monotonic(), time.process_time()
        self.parts: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []

    def on_start(self, settings: Any, server_round: int) -> None:  # noqa: D102
        self.parts["prepare"] = self.sizes()

    def on_round(self, record: dict[str, Any]) -> None:  # noqa: D102
        num = sum(key.startswith("client/") and key.endswith("/seconds") for key in record)
        row = {"round": record["round"], "clients": num, "seconds": record["seconds"], **self.sizes()}
        row["server_ms_per_client"] = 1000 * row["cpu_seconds_server"] / num
        self.rounds.append(row)
        print(json.dumps(row), flush=True)

    def on_evaluate(self, record: dict[str, Any]) -> None:  # noqa: D102
        self.parts[f"evaluation of round {record['round']}"] = self.sizes()

    def sizes(self) -> dict[str, float]:
        """Memory, bytes and files now, and the processor time since the last call."""
        cpu = time.process_time() - self.last
        spent["server"] = cpu - spent["clients"] - spent["page"]
        found = {f"cpu_seconds_{who}": spent[who] for who in ("server", "clients", "page")}
        adapters = rest = num = 0
        for path, _, names in os.walk(self.folder):
            size = sum(os.stat(os.path.join(path, name)).st_size for name in names)
            num += len(names)
            if "clients/" in path and "/round-" in path:
                adapters += size
            else:
                rest += size
        drawn = sum(any(one.glob("round-*")) for one in (self.folder / "clients").glob("*"))
        found |= {"memory": psutil.Process().memory_info().rss, "bytes_clients_adapters": adapters}
        found |= {"clients_with_adapters": drawn, "bytes_other": rest, "files": num}
        spent.clear()
        self.last = time.process_time()
        return found


def write_data(root: Path, num_clients: int) -> None:
    """Sums of two numbers, with rewritten responses."""
    rng = random.Random(0)
    (root / "sums").mkdir(parents=True)
    for name, num in (("train", EACH * num_clients), ("test", NUM_TEST)):
        with (root / "sums" / f"{name}.jsonl").open("w") as file:
            for _ in range(num):
                a, b = rng.randrange(1000), rng.randrange(1000)
                row = {"instruction": f"What is {a} plus {b}?", "output": f"{a + b}"}
                file.write(json.dumps(row | {"distilled": f"{a} plus {b} is {a + b}."}) + "\n")


def main() -> None:
    numbers = [int(word) for word in sys.argv[2:]]
    num_clients, drawn, rounds = [*numbers, *(10_000, 100, 20)[len(numbers) :]]
    with tempfile.TemporaryDirectory(dir=os.environ.get("FEDSDR_SCRATCH")) as place:
        write_data(Path(place) / "data", num_clients)
        folder = Path(place) / "run"
        count_time(LocalGrid, "_answer", "clients")
        count_time(PageWriter, "write", "page")
        recorder = Recorder(folder)
        run(
            {
                "method": "fedsdr", "run.dir": str(folder), "run.threads": 1,
                "model.name": "tiny", "model.dtype": "float32", "model.max_length": 128,
                "data.root": str(Path(place) / "data"),
                "partition.kind": "iid", "partition.num_clients": num_clients,
                "lora.rank": 4, "client.local_steps": 1, "server.num_rounds": rounds,
                "server.clients_per_round": drawn, "server.keep_rounds": "last",
                "eval.every": 0, "eval.max_new_tokens": 4,
            },
            callbacks=[recorder],
        )  # fmt: skip
        page = (folder / "report.html").stat().st_size
    result = {"clients": num_clients, "drawn": drawn, "examples_each": EACH, "bytes_page": page}
    result |= {"seconds": time.monotonic() - recorder.begun, **recorder.parts, "rounds": recorder.rounds}
    write_json(Path(sys.argv[1]), result)


if __name__ == "__main__":
    main()
