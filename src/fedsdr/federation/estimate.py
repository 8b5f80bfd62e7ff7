"""What a run would take: memory, bytes of messages, and time, from the model's shapes and the data's lengths.

Bytes of messages are exact, since the code that sends them counts them. Memory and time are rough: only what
grows with the model is counted, and docs/paper_scale.md says how far off they were.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from fedsdr.client.update import before_settings, count_steps
from fedsdr.config import Lora, Settings
from fedsdr.data.batching import collate, data_order
from fedsdr.data.conversation import Conversation
from fedsdr.federation.server_app import is_due
from fedsdr.messages.wire import going_down, layout, residual_shapes, travelling
from fedsdr.methods import AGGREGATIONS, DRIFT_CORRECTIONS, METHODS, MessageDtype
from fedsdr.model.adapters import Adapters, find_targets
from fedsdr.model.loss import CHUNK

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Bytes of a weight in bitsandbytes' linear layers. 4bit: half a byte, one for the scale of each 64
weights, and four for each 256 of these scales."""
LIBRARIES = 0.46e9
"""Bytes of a process that has next to no model (docs/performance.md)."""
SHARE = 0.5
"""Part of a single product's speed that a training step reaches: 0.52 to 0.56 in docs/performance.md."""
ROWS = 256
"""Rows of the product that is timed for training and for reading prompts."""
NUM_WEIGHTS = 2**25
"""Weights of the product that is timed for writing: too many for a cache. Each token reads all of a model."""


@dataclass(frozen=True)
class Part:
    """One line of an estimate."""

    section: Literal["memory", "messages", "time"]
    name: str
    amount: float
    unit: Literal["bytes", "FLOP", "FLOP/s", "seconds"]
    """FLOP: floating-point operations, a multiplication and an addition being two."""
    how: str
    """What was counted."""


@dataclass(frozen=True)
class Client:
    """What a client holds, in tokens."""

    train: Sequence[Conversation]
    test: Sequence[Conversation]


@dataclass(frozen=True)
class Sizes:
    """Shapes of a model and of its adapters."""

    num_linear: int
    """Weights of all linear layers but the head."""
    num_other: int
    """All other parameters: embeddings, norms, biases, and the head where it is not the embedding."""
    num_head: int
    """Weights of the output head, which every response token passes."""
    num_largest: int
    """Weights of the largest linear layer."""
    num_layers: int
    width: int
    """Of the hidden state."""
    inner: int
    """Of the widest linear layer's input or output."""
    num_heads: int
    cached: int
    """Numbers of keys and values together, for each token and layer."""
    shared: dict[str, tuple[int, ...]]
    """Shapes of the shared adapter's tensors by PEFT key; the private one has the same."""

    @property
    def num_adapter(self) -> int:
        """Numbers of one adapter."""
        return sum(map(math.prod, self.shared.values()))

    @property
    def num_state(self) -> int:
        """Numbers kept for the backward pass, for each token and layer: docs/performance.md."""
        return 12 * self.width + 3 * self.inner


def sizes_of(skeleton: PreTrainedModel, lora: Lora) -> Sizes:
    """Measure a model without values (`model.skeleton`), and put adapters on it."""
    config = skeleton.config.get_text_config()
    linear = find_targets(skeleton, "all-linear").values()
    num_linear = sum(layer.weight.numel() for layer in linear)
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Sizes(
        num_linear,
        sum(value.numel() for value in skeleton.parameters()) - num_linear,
        skeleton.get_output_embeddings().weight.numel(),
        max(layer.weight.numel() for layer in linear),
        config.num_hidden_layers,
        config.hidden_size,
        max(max(layer.weight.shape) for layer in linear),
        config.num_attention_heads,
        2 * groups * head_width,
        Adapters(skeleton, lora).shapes("shared"),
    )


def memory(settings: Settings, sizes: Sizes, clients: Sequence[Client], is_gpu: bool) -> list[Part]:
    """Memory of the machine that trains, in bytes: what stays, and the larger of training and generation."""
    model, distill, scoring = settings.model, settings.distill, settings.eval
    each = BYTES[model.dtype]
    of_linear = QUANTISED.get(model.quantization, each)
    method = METHODS[settings.method]
    num_learning = {
        "shared": sum(map(math.prod, travelling(settings, sizes.shared).values())),
        "private": sizes.num_adapter,
    }
    most = max(
        sum(num_learning[name] for name in stage.train) for stage in (*method.before_rounds, *method.stages)
    )

    is_flat = model.attention == "grouped"
    longest = [sorted(client.train, key=_length)[-settings.client.batch_size :] for client in clients]
    num_tokens = max(collate(batch, is_flat).ids.size for batch in longest)
    num_states = sizes.num_layers * sizes.num_state
    if model.checkpointing == "on":
        num_states = sizes.num_layers * sizes.width + sizes.num_state
    if model.attention == "eager":  # keeps the softmax, twice
        num_states += 2 * sizes.num_heads * max(_length(batch[-1]) for batch in longest) * sizes.num_layers
    states = each * (num_tokens * num_states + CHUNK * sizes.num_head // sizes.width)
    if model.quantization != "none":
        states += each * sizes.num_largest

    longest_text = max(_length(text) for client in clients for text in (*client.train, *client.test))
    rows = {"eval": (scoring.batch_size, longest_text + scoring.max_new_tokens)}
    if needs_teacher(settings):
        rows["distill"] = distill.batch_size, longest_text + distill.max_new_tokens
    num_rows, length = max(rows.values(), key=math.prod)
    cache = each * num_rows * length * sizes.cached * sizes.num_layers
    reading = each * num_rows * longest_text * sizes.num_state + 8 * num_rows * sizes.num_head // sizes.width

    kind = f"{model.quantization} linear layers, the rest " if model.quantization != "none" else ""
    checkpoints = "the layers' inputs and one layer inside" if model.checkpointing == "on" else "all layers"
    parts = [
        Part(
            "memory", "base", of_linear * sizes.num_linear + each * sizes.num_other, "bytes",
            f"{(sizes.num_linear + sizes.num_other) / 1e6:,.0f} M parameters, {kind}{model.dtype}",
        ),
        Part(
            "memory", "adapters", 2 * 4 * sizes.num_adapter, "bytes",
            f"two of {sizes.num_adapter / 1e6:,.1f} M numbers, float32",
        ),
        Part(
            "memory", "optimizer", 3 * 4 * most, "bytes",
            f"gradient and two moments of the {most / 1e6:,.1f} M numbers that learn at once",
        ),
        Part("memory", "states of a step", states, "bytes", f"{num_tokens} tokens in a pass, {checkpoints}"),
        Part(
            "memory", "generation", cache + reading, "bytes",
            f"{num_rows} rows of {length} tokens: keys and values, one layer inside, logits",
        ),
    ]  # fmt: skip
    if not is_gpu:
        parts.append(Part("memory", "libraries", LIBRARIES, "bytes", "measured with next to no model"))
    amount = {part.name: part.amount for part in parts}
    peak = sum(amount.values()) - min(amount["optimizer"] + amount["states of a step"], amount["generation"])
    return [*parts, Part("memory", "peak", peak, "bytes", "all of it, but training and generation in turn")]


def messages(settings: Settings, sizes: Sizes, num_clients: int) -> list[Part]:
    """Bytes of the arrays that travel."""
    has_control_variates = DRIFT_CORRECTIONS[settings.client.drift_correction].has_control_variates
    down = _num_bytes(going_down(settings, sizes.shared), "float32", has_control_variates)
    up = _num_bytes(travelling(settings, sizes.shared), settings.communication.dtype, has_control_variates)
    most = ", at the largest rank" if settings.adapter.client_ranks else ""
    asked = settings.server.clients_per_round or num_clients
    rounds = settings.server.num_rounds
    residual = _residual_bytes(settings, sizes, asked)
    grown = "in the last round; it grows with what is added to the base" if residual[-1] else "each round"
    return [
        Part("messages", "down", down + residual[-1], "bytes", f"to each client, {grown}"),
        Part(
            "messages", "up", up, "bytes",
            f"from each client, each round; {settings.communication.dtype}{most}",
        ),
        Part(
            "messages", "all rounds", asked * (rounds * (down + up) + sum(residual)), "bytes",
            f"{rounds} rounds of {asked} clients, both ways{most}; evaluation is sent down once more",
        ),
    ]  # fmt: skip


def _residual_bytes(settings: Settings, sizes: Sizes, asked: int) -> list[int]:
    """What each round sends to each client of what the rounds before added to the base.

    Newly drawn factors in each round leave all that the clients learnt to the base, their ranks stacked;
    means of factors leave it one client's fewer (`server.aggregate`).
    """
    aggregation = AGGREGATIONS[settings.server.aggregation]
    if not aggregation.adds_to_base:
        return [0] * settings.server.num_rounds
    added = settings.adapter.rank * (asked if aggregation.is_fresh else asked - 1)
    ranks = [added * number for number in range(settings.server.num_rounds)]
    return [
        4 * sum(map(math.prod, residual_shapes(sizes.shared, rank).values())) + 8
        if rank
        else 0  # and the rank
        for rank in ranks
    ]


def needs_teacher(settings: Settings) -> bool:
    """Whether the model of this process rewrites."""
    return not settings.distill.url and (
        METHODS[settings.method].needs_rewritings or settings.eval.rewritings
    )


def _num_bytes(shapes: dict[str, tuple[int, ...]], wire: MessageDtype, has_control_variates: bool) -> int:
    arrays = layout(shapes, wire, has_control_variates).values()
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in arrays)


def _length(text: Conversation) -> int:
    return len(text.ids)


def duration(settings: Settings, sizes: Sizes, clients: Sequence[Client], device: torch.device) -> list[Part]:
    """Operations of the large products over all clients and rounds, and the seconds that they take here.

    For each token and weight of a linear layer: 2 in a forward pass, 2 in the backward pass, which makes
    gradients of hidden states and, the base being frozen, none of weights; and 2 more where checkpointing
    computes states again. Attention, norms and the optimizer are left out.
    """
    dtype = getattr(torch, settings.model.dtype)
    torch.set_num_threads(settings.run.threads)
    speed = SHARE * measure_speed(ROWS, sizes.width, sizes.inner, dtype, device)
    writing = {
        rows: SHARE * measure_speed(rows, sizes.width, NUM_WEIGHTS // sizes.width, dtype, device)
        for rows in {settings.distill.batch_size, settings.eval.batch_size}
    }
    read, written = _rewriting(settings, sizes, clients)
    scored, answered = _evaluation(settings, sizes, clients)
    trained = _training(settings, sizes, clients)
    seconds = {
        "rewriting": read / speed + written / writing[settings.distill.batch_size],
        "training": trained / speed,
        "evaluation": scored / speed + answered / writing[settings.eval.batch_size],
    }
    operations = {"rewriting": read + written, "training": trained, "evaluation": scored + answered}
    return [
        *(
            Part("time", name, seconds[name], "seconds", f"{operations[name] / 1e12:,.4g} TFLOP")
            for name in seconds
        ),
        Part(
            "time", "in all", sum(seconds.values()), "seconds",
            f"at {speed / 1e9:,.0f} GFLOP/s: half the speed of one product of {settings.model.dtype},"
            " measured now; answers as long as the true ones",
        ),
    ]  # fmt: skip


def _training(settings: Settings, sizes: Sizes, clients: Sequence[Client]) -> float:
    """Operations of all local updates, those before round 1 included."""
    method = METHODS[settings.method]
    asked = settings.server.clients_per_round or len(clients)
    times = settings.server.num_rounds * asked / len(clients)
    a_token = (6 if settings.model.checkpointing == "on" else 4) * sizes.num_linear
    total = 0.0
    for client in clients:
        num_tokens, num_answers = _step(client.train, settings)
        for stages, chosen, weight in (
            (method.before_rounds, before_settings(settings), 1),
            (method.stages, settings.client, times),
        ):
            for number, stage in enumerate(stages):
                num_examples = len(client.train) * (1 + (stage.on == "mixed"))
                step = num_tokens * (a_token + 6 * sizes.num_adapter * len(stage.active))
                step += num_answers * 4 * sizes.num_head
                total += weight * step * count_steps(chosen, len(stages), number, num_examples)
    return total


def _step(texts: Sequence[Conversation], settings: Settings) -> tuple[float, float]:
    """Mean tokens, padding included, and response tokens of an optimizer step, over an epoch."""
    chosen = settings.client
    size = min(chosen.batch_size * chosen.accumulation, len(texts))
    num_steps = math.ceil(len(texts) / size)
    batches = [
        collate(
            [texts[i] for i in step[start : start + chosen.batch_size]], settings.model.attention == "grouped"
        )
        for step in islice(data_order(len(texts), size, seed=0), num_steps)
        for start in range(0, size, chosen.batch_size)
    ]
    return sum(b.ids.size for b in batches) / num_steps, sum(len(b.targets) for b in batches) / num_steps


def _rewriting(settings: Settings, sizes: Sizes, clients: Sequence[Client]) -> tuple[float, float]:
    """Operations to read the prompts, and to write the rewritings token by token; one prompt for each."""
    if not needs_teacher(settings):
        return 0, 0
    texts = [text for client in clients for text in client.test if settings.eval.rewritings]
    if METHODS[settings.method].needs_rewritings:
        texts += [text for client in clients for text in client.train]
    return _answering(sizes, texts, settings.distill.max_new_tokens, read_whole=True)


def _evaluation(settings: Settings, sizes: Sizes, clients: Sequence[Client]) -> tuple[float, float]:
    """Operations to read the tests' prompts and losses, and to write the answers token by token."""
    texts = [text for client in clients for text in client.test]
    num_due = sum(is_due(settings, number) for number in range(1, settings.server.num_rounds + 1))
    num_models = 1 + num_due * (1 + METHODS[settings.method].has_personal)
    read, written = _answering(sizes, texts, settings.eval.max_new_tokens, read_whole=False)
    num_sides = 1 + settings.eval.rewritings
    losses = num_sides * sum(
        2 * sizes.num_linear * _length(text) + 2 * sizes.num_head * text.num_response_tokens for text in texts
    )
    return num_models * (read + losses), num_models * written


def _answering(
    sizes: Sizes, texts: Sequence[Conversation], limit: int, read_whole: bool
) -> tuple[float, float]:
    """Operations to read prompts, or whole conversations, and to write answers as long as the true ones."""
    num_read = sum(_length(text) if read_whole else text.prompt_length for text in texts)
    num_written = sum(min(limit, text.num_response_tokens) for text in texts)
    return 2 * sizes.num_linear * num_read, 2 * (sizes.num_linear + sizes.num_head) * num_written


def measure_speed(rows: int, d_in: int, d_out: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of one product (rows, d_in) x (d_in, d_out) on this machine: the best of half a second."""
    h = torch.ones(rows, d_in, dtype=dtype, device=device)
    weight = torch.ones(d_out, d_in, dtype=dtype, device=device)
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < 0.5:
        start = time.perf_counter()
        torch.nn.functional.linear(h, weight)[0, 0].item()  # which waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * rows * d_in * d_out / min(seconds)
