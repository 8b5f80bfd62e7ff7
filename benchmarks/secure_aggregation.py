"""The cost of secure aggregation for client and server: bytes and seconds of each step, without a network.

    python benchmarks/secure_aggregation.py docs/results/secure_aggregation.json

Sums of 10 and 100 clients, a tenth and a twentieth of which are lost after they have shared their secrets.
Vectors of a thousand numbers, and of SmolLM2-135M's adapter of rank 8. Clients are folders of one process, in
turn; each has a key of its own and verifies the others' signatures.
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from fedsdr.client.secure import Peers, Session, begin
from fedsdr.deployment.certificates import node_key
from fedsdr.messages import secure_sum
from fedsdr.server.secure import secure_total
from fedsdr.storage import write_json

SIZES = (1_000, 2_442_240)
COHORTS = {10: 1, 100: 5}
"""Clients -> how many of them are lost."""
ABOUT = b"benchmark"


def num_bytes(values: Any) -> int:
    if isinstance(values, np.ndarray):
        return values.nbytes
    return sum(len(name) + len(value) for name, value in values.items())


def measure(place: Path, num: int, num_lost: int, size: int) -> dict[str, Any]:
    names = [f"client-{number:03d}" for number in range(num)]
    rng = np.random.default_rng(0)
    up, down, seconds = (defaultdict[str, float](float) for _ in range(3))
    public: dict[str, bytes] = {}
    for name in names:
        private, public[name] = node_key()
        (place / name).mkdir()
        (place / name / "node.key").write_bytes(private)
    peers = {name: Peers(place / name / "node.key", place / "peers", 0) for name in names}
    (place / "peers").mkdir()
    for name in names:
        (place / "peers" / f"{name}.pub").write_bytes(public[name])
    changes = {name: rng.normal(size=size) * 1e-3 for name in names}
    start = time.perf_counter()
    cards = {name: begin(place / name, peers[name], 1, ABOUT, changes[name], 10, None) for name in names}
    seconds["begin"] = time.perf_counter() - start

    def query(
        step: str, given: Mapping[str, ConfigRecord], check: Any, needed: int, kind: type = ConfigRecord
    ) -> Iterator[tuple[str, Any]]:
        for name, record in given.items():
            if step == "masked" and name in names[:num_lost]:
                continue
            words: Any = dict(record)
            start = time.perf_counter()
            session = Session(place / name, name, peers[name], 1)
            answer: Any
            match step:
                case "shares":
                    answer = session.shares(words["roll"])
                case "masked":
                    answer = session.masked(words)
                case "confirm":
                    answer = {"signature": session.confirm(words["survivors"])}
                case "unmask":
                    answer = session.unmask(words)
            seconds[step] += time.perf_counter() - start
            up[step] += num_bytes(answer)
            down[step] += num_bytes(
                {key: "".join(v) if isinstance(v, list) else v for key, v in words.items()}
            )
            yield name, answer["signature"] if step == "confirm" else answer

    start = time.perf_counter()
    total, survivors = secure_total(query, cards, ABOUT, size, 0, lambda names: None)
    server = (
        time.perf_counter() - start - sum(seconds[step] for step in ("shares", "masked", "confirm", "unmask"))
    )
    bound = secure_sum.bound_of(None, num)
    wanted = sum(
        (secure_sum.encode(changes[name], 1 / num, bound) for name in survivors), np.zeros(size, np.uint32)
    )
    assert (total == wanted).all()
    return {
        "clients": num,
        "lost": num_lost,
        "numbers": size,
        "vector_bytes_up": 4 * size,
        "more_bytes_up": round(sum(up[step] / num for step in ("shares", "confirm", "unmask"))) + 64 + 104,
        "more_bytes_down": round(sum(value / num for value in down.values())),
        "seconds_of_a_client": {step: round(value / num, 4) for step, value in seconds.items()},
        "seconds_of_the_server": round(server, 3),
    }


def main() -> None:
    records = []
    for size in SIZES:
        for num, num_lost in COHORTS.items():
            with tempfile.TemporaryDirectory() as place:
                records.append(measure(Path(place), num, num_lost, size))
            print(records[-1])
    write_json(Path(sys.argv[1]), records)


if __name__ == "__main__":
    main()
