"""The measurements of `make bench`: each function is one measurement in its own process, and returns numbers.

    python benchmarks/measures.py train_ours '{"dtype": "bfloat16", "batch": 4, "length": 192, "steps": 6}'

prints them as JSON. docs/performance.md explains them.
"""

import contextlib
import io
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "FLWR_TELEMETRY_ENABLED": "0"}

import numpy as np
import torch

from check_gpu import build
from fedsdr.callbacks import Callback
from fedsdr.client.update import local_update
from fedsdr.config import Client
from fedsdr.data.batching import by_length
from fedsdr.data.checks import unsupported
from fedsdr.data.conversation import Conversation, encode_all, encode_prompt
from fedsdr.data.examples import Example
from fedsdr.data.partition import ClientData, partition
from fedsdr.data.sources import load_domains
from fedsdr.distill.prompts import rewriting_turns
from fedsdr.federation.model_cache import model_of
from fedsdr.federation.run import run
from fedsdr.messages import wire
from fedsdr.methods import METHODS
from fedsdr.model.adapters import ADAPTERS, LoraModel
from fedsdr.model.allocator import keep_pages
from fedsdr.model.base import built_in_folder
from fedsdr.model.generation import Answer, Sampling, generate
from fedsdr.model.likelihood import NO_LIMIT, log_likelihoods
from fedsdr.model.loss import held_out_loss, response_loss
from fedsdr.model.remote import Judge, ask_server
from fedsdr.recipe import load_settings
from fedsdr.storage import read_lines
from measure import serving
from workload import product_rate, random_conversations, step_flops

MODEL = "smollm2-135m-instruct"
DEMO = Path(__file__).parents[1] / "recipes" / "demo.toml"
NEW_TOKENS = 96


def peak() -> float:
    """Peak memory of this process in GB, as the system counted it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def load(dtype: str, shapes: dict[str, Any] | None = None, **settings: Any) -> LoraModel:
    """SmolLM2, as the demo sets it, or random weights of these shapes; with both adapters drawn."""
    chosen = {"model.dtype": dtype, **settings}
    loaded = load_settings(DEMO, [f"{key}={json.dumps(value)}" for key, value in chosen.items()])
    if shapes is None:
        model = model_of(loaded)
    else:
        torch.set_num_threads(loaded.run.threads or os.cpu_count() or 1)
        keep_pages()
        model = build(shapes, torch.device("cpu"), dtype, "grouped")
    for number, name in enumerate(ADAPTERS):
        model.initialise(name, number)
    return model


def demo_clients() -> list[ClientData]:
    """The demo's clients; read without the model, whose number of threads stays as it is."""
    settings = load_settings(DEMO)
    return partition(load_domains(settings.data, settings.partition.id_column), settings)


def demo_conversations(tokenizer: Any, domain: str, part: str = "train") -> list[Conversation]:
    """The demo's examples of a domain, with their true responses."""
    client = next(client for client in demo_clients() if client.id == domain)
    return encode_all(tokenizer, getattr(client, part), NO_LIMIT)


def train_ours(
    dtype: str,
    batch: int,
    steps: int,
    length: int = 0,
    domain: str = "",
    compiled: bool = False,
    updates: int = 2,
    **settings: Any,
) -> dict[str, float]:
    """Local updates of fedit as a client makes them: one that warms up, then `updates` that are timed."""
    model = load(dtype, **settings)
    if compiled:
        for layer in model.base.model.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)
    data = (
        demo_conversations(model.base.tokenizer, domain)
        if domain
        else random_conversations(batch * steps, length)
    )
    client = Client(batch_size=batch, local_steps=steps)
    flops = 0.0 if domain or compiled else step_flops(model, data[:batch])

    def update(number: int) -> float:
        start = time.perf_counter()
        local_update(model, METHODS["fedit"], {"raw": data}, client, 2e-4, number)
        return time.perf_counter() - start

    first = update(0)
    seconds = statistics.mean(update(number) for number in range(1, updates + 1))
    adapter = wire.broadcast({key: value.numpy() for key, value in model.state("shared").items()})
    tokens = steps * batch * statistics.mean(len(one.ids) for one in data)
    rate = product_rate(model.base.dtype)
    return {
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds / steps,
        "first_update_seconds": first,
        "update_seconds": seconds,
        "message_bytes": sum(len(array.data) for array in adapter.values()),
        "peak_gb": peak(),
        "product_gflops": rate,
        "step_gflop": flops,
        "share_of_product_rate": flops / (seconds / steps) / rate,
    }


def train_trl(
    dtype: str, batch: int, steps: int, length: int = 0, domain: str = "", tuned: bool = False
) -> dict[str, float]:
    """TRL's SFTTrainer, recreated for each client and round as in OpenFedLLM.

    `tuned`: with eager attention, which is the faster one in bfloat16 here, and our setting of glibc.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    if tuned:
        keep_pages()
    folder = built_in_folder(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager" if tuned else None
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    data = demo_conversations(tokenizer, domain) if domain else random_conversations(batch * steps, length)
    rows = [
        {
            "input_ids": list(one.ids),
            "completion_mask": [0] * one.prompt_length + [1] * one.num_response_tokens,
        }
        for one in data
    ]
    seconds = alone = 0.0
    for num_steps in (1, steps):  # the first warms up
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as aside, contextlib.redirect_stdout(io.StringIO()):
            config = SFTConfig(
                output_dir=aside, max_steps=num_steps, per_device_train_batch_size=batch, learning_rate=2e-4,
                bf16=dtype == "bfloat16", gradient_checkpointing=False, max_length=None, report_to=[],
                save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
                dataloader_pin_memory=False, eos_token="<|im_end|>",
            )  # fmt: skip
            trainer = SFTTrainer(
                model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(rows), args=config
            )
            begun = time.perf_counter()
            trainer.train()
            alone = time.perf_counter() - begun
        seconds = time.perf_counter() - start
    tokens = steps * batch * statistics.mean(len(one.ids) for one in data)
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_of_train_alone": tokens / alone,
        "step_seconds": seconds / steps,
        "peak_gb": peak(),
    }


def two_adapters(dtype: str, batch: int, length: int) -> dict[str, float]:
    """Seconds of a step with one adapter, and with the private one in the forward pass too; in turns."""
    model = load(dtype)
    generator = torch.Generator().manual_seed(0)
    for name in ADAPTERS:
        state = model.state(name)
        model.load(name, {k: torch.randn(t.shape, generator=generator) / 100 for k, t in state.items()})
    data = random_conversations(batch, length)
    found: dict[str, list[float]] = {"one": [], "two": []}
    for number in range(12):
        for name, active in (("one", ("shared",)), ("two", ADAPTERS)):
            model.set(active, ("shared",))
            model.training(True)
            start = time.perf_counter()
            response_loss(model.base, data)[0].backward()
            if number > 1:
                found[name].append(time.perf_counter() - start)
    one, two = (statistics.median(found[name]) for name in ("one", "two"))
    return {"one_seconds": one, "two_seconds": two, "ratio": two / one}


def gradient_and_decrease(dtype: str, attention: str, to: str) -> dict[str, float]:
    """Write the gradient of a batch; held-out loss before and after 24 steps of mathematics."""
    model = load(dtype, **{"model.attention": attention})
    generator = torch.Generator().manual_seed(0)
    drawn = {k: torch.randn(t.shape, generator=generator) / 50 for k, t in model.state("shared").items()}
    fresh = model.state("shared")
    data = demo_conversations(model.base.tokenizer, "math")
    model.load("shared", drawn)
    model.set(("shared",), ("shared",))
    response_loss(model.base, data[:8])[0].backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters(("shared",))])  # type: ignore[union-attr]
    for parameter in model.parameters(("shared",)):
        parameter.grad = None
    model.load("shared", fresh)
    held = demo_conversations(model.base.tokenizer, "math", "test")
    losses = []
    for steps in (0, 24):
        if steps:
            chosen = Client(batch_size=4, local_steps=steps)
            local_update(model, METHODS["fedit"], {"raw": data}, chosen, 5e-4, 0)
        with model.inference(("shared",)):
            losses.append(held_out_loss(model.base, held, 16)[0])
    np.save(to, gradient.numpy())
    return {"loss_before": losses[0], "loss_after": losses[1]}


def rewriting_prompts(num: int) -> tuple[list[Example], list[list[int]], Any]:
    """Examples of all domains in rotation, and the teacher's prompts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built_in_folder(MODEL))
    parts = [client.train for client in demo_clients()]
    examples = [example for row in zip(*parts, strict=True) for example in row][:num]
    return (
        examples,
        [encode_prompt(tokenizer, rewriting_turns("reference", example)) for example in examples],
        tokenizer,
    )


def generate_ours(dtype: str, num: int, batch: int, **settings: Any) -> dict[str, Any]:
    """Greedy rewritings by fedsdr, in batches of similar length."""
    model = load(dtype, **settings)
    examples, prompts, _ = rewriting_prompts(num)
    found: dict[int, Answer] = {}
    with model.inference(()):
        generate(model.base, prompts[:2], Sampling(4))
        start = time.perf_counter()
        for rows in by_length([len(prompt) for prompt in prompts], batch):
            found |= zip(
                rows, generate(model.base, [prompts[row] for row in rows], Sampling(NEW_TOKENS)), strict=True
            )
        seconds = time.perf_counter() - start
    texts = [found[number].text for number in range(num)]
    return {
        "responses_per_second": num / seconds,
        "tokens_per_second": sum(answer.num_tokens for answer in found.values()) / seconds,
        "peak_gb": peak(),
        "texts": texts,
        "unsupported": [unsupported(example, text) for example, text in zip(examples, texts, strict=True)],
    }


def generate_plain(dtype: str, num: int, batch: int, tuned: bool = False) -> dict[str, Any]:
    """The same by transformers' `generate`, one by one or in batches in the order of the data.

    `tuned`: in our batches of similar length, and with our setting of glibc.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    examples, prompts, tokenizer = rewriting_prompts(num)
    model = AutoModelForCausalLM.from_pretrained(built_in_folder(MODEL), dtype=getattr(torch, dtype)).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if tuned:
        keep_pages()
    model.generate(torch.tensor([prompts[0]]), max_new_tokens=4, do_sample=False)
    found: dict[int, str] = {}
    start = time.perf_counter()
    lengths = [len(prompt) if tuned else 0 for prompt in prompts]
    for rows in by_length(lengths, batch):
        part = [prompts[row] for row in rows]
        width = max(map(len, part))
        out = model.generate(
            input_ids=torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in part]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part]),
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        answers = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        found |= zip(rows, (answer.strip() for answer in answers), strict=True)
    seconds = time.perf_counter() - start
    texts = [found[number] for number in range(num)]
    return {
        "responses_per_second": num / seconds,
        "peak_gb": peak(),
        "texts": texts,
        "unsupported": [unsupported(example, text) for example, text in zip(examples, texts, strict=True)],
    }


def generate_ctranslate2(folder: str, num: int, threads: int, batch: int) -> dict[str, Any]:
    """The same by CTranslate2 in int8, from the converted model in a folder, in batches of similar length."""
    import ctranslate2

    _, prompts, tokenizer = rewriting_prompts(num)
    words = [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts]
    generator = ctranslate2.Generator(folder, compute_type="int8", intra_threads=threads)
    chosen = {"max_batch_size": batch, "end_token": "<|im_end|>", "include_prompt_in_result": False}
    generator.generate_batch(words[:2], max_length=4, **chosen)
    start = time.perf_counter()
    found = generator.generate_batch(words, max_length=NEW_TOKENS, **chosen)
    seconds = time.perf_counter() - start
    ids = [answer.sequences_ids[0] for answer in found]
    return {
        "responses_per_second": num / seconds,
        "tokens_per_second": sum(map(len, ids)) / seconds,
        "peak_gb": peak(),
        "texts": [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)],
    }


def generate_llama_cpp(num: int, threads: int, requests: int) -> dict[str, Any]:
    """The same by llama.cpp's server with the quantised weights, `requests` at a time."""
    examples, _, _ = rewriting_prompts(num)
    prompts = [rewriting_turns("reference", example) for example in examples]
    with serving("--slots", requests, "--threads", threads) as url:
        list(ask_server(prompts[:1], Judge(url, "smollm2", max_new_tokens=4), [0]))
        start = time.perf_counter()
        server = Judge(url, "smollm2", requests, NEW_TOKENS)
        answers = list(ask_server(prompts, server, [0] * num))
        seconds = time.perf_counter() - start
    return {
        "responses_per_second": num / seconds,
        "tokens_per_second": sum(answer.num_tokens for answer in answers) / seconds,
        "texts": [answer.text for answer in answers],
    }


def choices(dtype: str, num: int) -> dict[str, float]:
    """Likelihoods of three labels for each of `num` prompts of 80 tokens: prompts read once, and thrice."""
    model = load(dtype)
    rng = np.random.default_rng(0)
    labels = [[int(token), 2] for token in rng.integers(10, 40_000, 3)]
    questions = [(rng.integers(10, 40_000, 80).tolist(), labels) for _ in range(num)]
    alone = [(prompt, [label]) for prompt, _ in questions for label in labels]
    seconds = []
    with model.inference(()):
        for asked in (questions, alone, questions, alone):
            start = time.perf_counter()
            log_likelihoods(model.base, asked, 48)
            seconds.append(time.perf_counter() - start)
    return {"shared_seconds": seconds[2], "apart_seconds": seconds[3], "ratio": seconds[3] / seconds[2]}


class Clock(Callback):
    """When the rounds of a run ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_round(self, record: dict[str, Any]) -> None:  # noqa: D102
        self.ends.append(time.perf_counter())

    def mean(self) -> float:
        """Mean seconds from one end to the next, pages and files included; 0 for a single round."""
        return (self.ends[-1] - self.ends[0]) / max(1, len(self.ends) - 1)


def federation(settings: dict[str, Any], per_client: int = 0) -> dict[str, float]:
    """One run of the given settings: seconds of rounds, of training in them, bytes, memory.

    `per_client` above 0: with so many made-up examples for each client instead of the built-in data.
    """
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    from fedsdr.client import round as client_round
    from fedsdr.federation.local_engine import LocalGrid

    training: list[float] = []
    sizes: list[int] = []
    clock = Clock()

    def timed(*args: Any, **kwargs: Any) -> dict[str, float]:
        start = time.perf_counter()
        found = local_update(*args, **kwargs)
        training.append(time.perf_counter() - start)
        return found

    send = LocalGrid.send_and_receive

    def weighing(grid: LocalGrid, messages: Iterable[Message], **options: Any) -> Iterable[Message]:
        for reply in send(grid, messages, **options):
            if reply.metadata.message_type == "train" and len(sizes) < 3:
                sizes.append(sum(len(part.deflate()) for part in get_all_nested_objects(reply).values()))
            yield reply

    client_round.local_update = timed  # type: ignore[assignment]
    LocalGrid.send_and_receive = weighing  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"run.dir": f"{folder}/run", **settings}
        if per_client:
            _write_examples(Path(folder), per_client * settings["partition.num_clients"])
            chosen |= {"data.root": f"{folder}/data", "partition.kind": "iid"}
        loaded = load_settings(None, [f"{key}={json.dumps(value)}" for key, value in chosen.items()])
        result = run(loaded, callbacks=[clock])
        events = read_lines(result.folder / "metrics.jsonl")
        num_bytes = sum(path.stat().st_size for path in result.folder.rglob("*") if path.is_file())
    rounds = [event["seconds"] for event in events if event["event"] == "round"]
    clients = [event for event in events if event["event"] == "train"]
    return {
        "round_seconds": statistics.median(rounds),
        "seconds_between_rounds": clock.mean(),
        "folder_bytes": num_bytes,
        "client_seconds": sum(rounds) / len(clients),
        "outside_training": 1 - sum(training) / sum(rounds),
        "array_bytes": clients[0]["num_bytes_up"],
        "message_bytes": max(sizes),
        "loss_before": result.base["global"]["mean"]["loss"],
        "loss_after": result.final["global"]["mean"]["loss"],
        "peak_gb": peak(),
    }


def _write_examples(folder: Path, num: int) -> None:
    target = folder / "data" / "sums"
    target.mkdir(parents=True)
    for part, count in (("train", num), ("test", 4)):
        rows = (
            {"instruction": f"What is {n} plus {n % 7}?", "output": f"{n} plus {n % 7} is {n + n % 7}."}
            for n in range(count)
        )
        (target / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def first_step(folder: str) -> dict[str, float]:
    """Seconds from the start of `fedsdr run` to its first training step, on the cache in a folder."""
    import subprocess

    code = (
        "import fedsdr.client.update as u, os, sys, time\n"
        "def stop(*a, **k):\n    print('STEP', time.time(), flush=True); os._exit(0)\n"
        "u.response_loss = stop\n"
        "from fedsdr.cli import main\n"
        "sys.argv = ['fedsdr', 'run', *sys.argv[1:]]\nmain()\n"
    )
    with tempfile.TemporaryDirectory() as aside:
        arguments = [str(DEMO), f"run.dir={aside}/run", f"run.cache={folder}"]
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("STEP")]
    return {"seconds": float(line.split()[1]) - start}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (
        train_ours,
        train_trl,
        two_adapters,
        gradient_and_decrease,
        generate_ours,
        generate_plain,
        generate_ctranslate2,
        generate_llama_cpp,
        choices,
        federation,
        first_step,
    )
}

if __name__ == "__main__":
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(MEASURES[name](**arguments)))
