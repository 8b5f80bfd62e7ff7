"""Whether a rewriting depends on the rows that share its batch, or on the engine: 500 prompts, two types.

    python benchmarks/equal_answers.py DATA benchmarks/results/equal_answers.json

DATA holds five domains, one for each client. The 100 training examples of a domain are the first different
ones that fit `model.max_length`. The default model answers the reference prompt greedily, in at most 64
tokens, on one thread: for all clients of a simulation together, for each client in a process of its own, as
on its node, and for all together again in batches of another size. Answers are compared by text, number of
tokens, and whether they ended. Where rows depend on each other, a simulation does not share batches either:
its answers must equal the nodes' all the same, and those of another batch size need not. We expect 30
minutes on one idle core; the record is written after each type.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from bench import environment
from fedsdr.config import Settings
from fedsdr.data.conversation import encode
from fedsdr.data.examples import as_record
from fedsdr.data.sources import load_domains
from fedsdr.federation.client_context import data_of, open_client
from fedsdr.federation.model_cache import model_of
from fedsdr.federation.rewritings import rewrite_all
from fedsdr.recipe import load_settings
from fedsdr.storage import content_hash, read_json, read_lines, rewrite_lines, write_json

TYPES = ("bfloat16", "float32")
OTHER_SIZE = 30
"""Rows of a batch of another size; the default is 48."""
SETTINGS: dict[str, Any] = {
    "method": "fedsd", "run.threads": 1, "eval.rewritings": False,
    "distill.prompts": ["reference"], "distill.max_new_tokens": 64,
}  # fmt: skip
Answers = dict[str, tuple[str, bool, int]]
"""Hash of an example -> text, whether it ended, number of tokens."""


def choose(settings: Settings, num: int, to: Path) -> None:
    """Write the first examples of each domain that fit, each in a folder of its own."""
    tokenizer, longest = model_of(settings).base.tokenizer, settings.model.max_length
    for name, domain in load_domains(settings.data).items():
        different = dict.fromkeys(record.example for record in domain.train)
        fit = (e for e in different if len(encode(tokenizer, e, e.response, sys.maxsize).ids) <= longest)
        train = list(islice(fit, num))
        for part, examples in (("train", train), ("test", train[:1])):
            rows = [as_record(e) | {"output": e.response, "input": e.context} for e in examples]
            rewrite_lines(to / name / name / f"{part}.jsonl", rows)
            rewrite_lines(to / "all" / name / f"{part}.jsonl", rows)


def write(client: str, values: dict[str, Any]) -> dict[str, Any]:
    """Rewrite in this process: for one client as on its node, or for all of a simulation ("")."""
    settings = load_settings(None, values)
    root = Path(settings.run.dir)
    if client:
        open_client(settings, client, root)
    else:
        rewrite_all(settings, root)
        for number in range(len(data_of(settings)[1])):
            open_client(settings, number, root)
    is_independent = model_of(settings).base.has_independent_rows
    return {"rows_are_independent": is_independent, "processor_seconds": time.process_time()}


def written(
    clients: list[str], data: Path, to: Path, values: dict[str, Any]
) -> tuple[Answers, dict[str, Any]]:
    """Rewrite in a process for each of `clients`; return all answers, and what the processes measured."""
    found = []
    for client in clients:
        chosen = values | {
            "data.root": str(data / (client or "all")),
            "run.dir": str(to),
            "run.cache": str(to),
        }
        command = [sys.executable, __file__, "--client", client, json.dumps(chosen)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    lines = [line for path in sorted(to.glob("rewritings/*.jsonl")) for line in read_lines(path)]
    answers = {line["example"]: (line["text"], line["finished"], line["num_tokens"]) for line in lines}
    seconds = sum(one["processor_seconds"] for one in found)
    return answers, {"rows_are_independent": found[0]["rows_are_independent"], "processor_seconds": seconds}


def compare(data: Path, place: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Rewrite in the three ways, and count the equal answers."""
    nodes = sorted(path.name for path in (data / "all").iterdir())
    together, first = written([""], data, place / "together", values)
    apart, second = written(nodes, data, place / "nodes", values)
    other, third = written([""], data, place / "other", values | {"distill.batch_size": OTHER_SIZE})
    return {
        "prompts": len(together),
        "tokens": sum(num for _, _, num in together.values()),
        "ended": sum(ended for _, ended, _ in together.values()),
        "rows_are_independent": first["rows_are_independent"],
        "simulation_equals_nodes": sum(together[key] == apart[key] for key in together),
        f"equal_in_batches_of_{OTHER_SIZE}": sum(together[key] == other[key] for key in together),
        "processor_seconds": {
            "simulation": first["processor_seconds"],
            "nodes": second["processor_seconds"],
            f"batches_of_{OTHER_SIZE}": third["processor_seconds"],
        },
        "answers": content_hash(sorted(together.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of domains")
    parser.add_argument("to", type=Path, help="where to write the record")
    parser.add_argument("--num", type=int, default=100, help="examples of each domain")
    parser.add_argument(
        "--types", nargs="*", choices=TYPES, default=TYPES, help="the others keep their numbers"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], help="further settings, such as model.name='\"tiny\"'"
    )
    options = parser.parse_args()
    more = {key: json.loads(value) for key, _, value in (word.partition("=") for word in options.set)}
    machine = environment()
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        choose(load_settings(None, SETTINGS | more | {"data.root": str(options.data)}), options.num, data)
        for name in options.types:
            values = SETTINGS | more | {"model.dtype": name}
            found = compare(data, Path(place) / name, values)
            known = read_json(options.to)["types"] if options.to.exists() else {}
            settings = {"environment": machine, "settings": SETTINGS | more}
            write_json(options.to, settings | {"types": known | {name: found}})
            print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--client":
        print(json.dumps(write(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main()
