"""Cost of Flower's own process per message, compared with a worker that keeps the model.

    python benchmarks/deployment.py benchmarks/results/deployment.json

One client with the default model on this machine, TLS and node authentication, rounds of a few steps; each
way runs twice, in alternation. Overhead of a round: its seconds minus those of training.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from fedsdr.config import Data
from fedsdr.data.sources import load_domains
from fedsdr.deployment.init import init
from fedsdr.deployment.superlink import environment
from fedsdr.storage import read_lines, rewrite_lines, write_json

BIN = Path(sys.executable).parent
TIMES, CLIENT, PORT = 2, "math", 38400
RUN = (
    "method=fedit",
    "federation.num_clients=1",
    "server.num_rounds=4",
    "client.local_steps=4",
    "data.num_train=0",
    "eval.rewritings=false",
    "eval.max_new_tokens=2",
)


def main() -> None:
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(TIMES):
            for way in ("worker", "process for each message"):
                records += measure(Path(place) / f"{number}-{way.split()[0]}", way, PORT + len(records) * 7)
    table = {
        way: {
            name: median(record[name] for record in records if record["way"] == way)
            for name in ("train", "overhead")
        }
        for way in ("worker", "process for each message")
    }
    for way, row in table.items():
        print(f"| {way} | {row['train']:.1f} | {row['overhead']:.1f} |")
    command = f"python benchmarks/deployment.py {sys.argv[1]}"
    write_json(Path(sys.argv[1]), {"command": command, "medians": table, "records": records})


def measure(folder: Path, way: str, port: int) -> list[dict[str, Any]]:
    """Seconds of training and of the rest, for each round after the first."""
    server, client = init(folder, [CLIENT], f"localhost:{port}", "smollm2-135m-instruct")
    domain = load_domains(Data())[CLIENT]
    for part, some in (("train", domain.train[:24]), ("test", domain.test[:2])):
        rows = [{"instruction": one.example.instruction, "output": one.example.response} for one in some]
        rewrite_lines(client / "data" / CLIENT / f"{part}.jsonl", rows)
    programs = [start([server / "start.sh"])]
    subprocess.run([BIN / "fedsdr", "deploy", "register", server], check=True)
    if way == "worker":
        programs.append(start([BIN / "fedsdr", "node", client / "node.toml"]))
    else:
        node = {"client": CLIENT, "data": str(client / "data"), "folder": str(client / "state")}
        node["model"] = "smollm2-135m-instruct"
        words = " ".join(f"{key}={json.dumps(value)}" for key, value in node.items())
        programs.append(
            start(
                [
                    *(BIN / "flower-supernode", "--superlink", f"localhost:{port}", "--host", "127.0.0.1"),
                    *("--port", str(port + 3), "--root-certificates", client / "ca.crt"),
                    *("--auth-supernode-private-key", client / "node.key", "--node-config", words),
                ],
                FLWR_HOME=str(client / "flower"),
            )
        )
    try:
        command = [BIN / "fedsdr", "run", "recipes/demo.toml", *RUN, "run.dir=runs/one", "--on", server]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    finally:
        for program in programs:
            program.terminate()
            program.wait(60)
    events = read_lines(server / "runs" / "one" / "metrics.jsonl")
    trained = {event["round"]: event["seconds"] for event in events if event["event"] == "train"}
    rounds = {event["round"]: event["seconds"] for event in events if event["event"] == "round"}
    shutil.rmtree(folder)
    return [
        {"way": way, "round": number, "train": trained[number], "overhead": seconds - trained[number]}
        for number, seconds in rounds.items()
        if number > 1
    ]


def start(command: list[Any], **more: str) -> "subprocess.Popen[bytes]":
    own = environment(PATH=f"{BIN}:{os.environ['PATH']}", **more)
    return subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
