"""The cost of a run: memory and bytes of messages, from the model's shapes and the data's lengths.

Bytes of messages are exact, since the code that sends them counts them. Memory is approximate:
docs/paper_scale.md reports the error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedModel

from fedsdr.config import PACKED, Lora, Settings
from fedsdr.data.batching import collate
from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.messages.wire import downloaded, layout, residual_shapes, uploaded
from fedsdr.methods import AGGREGATIONS, DRIFT_CORRECTIONS, METHODS
from fedsdr.model.adapters import adapter_shapes
from fedsdr.model.loss import CHUNK
from fedsdr.model.targets import find_targets
from fedsdr.rows import Aggregation, MessageDtype

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
"""Bytes per weight in bitsandbytes' linear layers. 4bit: half a byte, one byte for the scale of each 64
weights, and four for each 256 of these scales."""
LIBRARIES = 0.54e9
"""Bytes of a process that has loaded SmolLM2, minus those of its weights and adapters."""
HEAP = 1.6
"""Process memory of training and generation over the bytes of their values: glibc keeps freed pages, and used
blocks leave gaps, so memory freed by one is only partly reused by the other. Fitted to the runs in
docs/paper_scale.md."""


@dataclass(frozen=True)
class Part:
    """One line of an estimate."""

    section: Literal["memory", "messages", "disk"]
    name: str
    num_bytes: float
    how: str
    """Description of the counted items."""


@dataclass(frozen=True)
class ClientTexts:
    """A client's data, in tokens."""

    train: Sequence[Conversation]
    test: Sequence[Conversation]


@dataclass(frozen=True)
class Sizes:
    """Shapes of a model and of its adapters."""

    num_linear: int
    """Weights of all linear layers except the head."""
    num_other: int
    """All other parameters: embeddings, norms, biases, and the head if it is not tied to the embedding."""
    num_head: int
    """Weights of the output head, applied to every response token."""
    num_largest: int
    """Weights of the largest linear layer."""
    num_layers: int
    width: int
    """Width of the hidden state."""
    inner: int
    """Width of the widest input or output of a linear layer."""
    num_heads: int
    cached: int
    """Values of the keys and values together, per token and layer."""
    shared: dict[str, tuple[int, ...]]
    """Shapes of the shared adapter's tensors by PEFT key; the private one has the same."""

    @property
    def num_adapter(self) -> int:
        """Parameters of one adapter."""
        return sum(map(math.prod, self.shared.values()))

    def num_state(self, attention: str) -> int:
        """Numbers kept for the backward pass, for each token and layer.

        Inputs and outputs of two norms, q, and the output of attention; keys and values; gate, its
        activation, up, and their product. Norms that are not ours keep states in float32 besides.
        """
        norms = 0 if attention == "grouped" else 6 * self.width
        return 6 * self.width + norms + self.cached + 4 * self.inner


def sizes_of(skeleton: PreTrainedModel, lora: Lora) -> Sizes:
    """Measure a model without weights (`model.meta`), and attach adapters to it.

    Raises:
        UserError: It has no attention.
    """
    config = skeleton.config.get_text_config()
    if not hasattr(config, "num_attention_heads"):
        raise UserError(f"fedsdr does not support this model ({config.model_type}): it has no attention")
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
        adapter_shapes(skeleton, lora),
    )


def memory(
    settings: Settings, sizes: Sizes, clients: Sequence[ClientTexts], is_gpu: bool, rewrites: bool = True
) -> list[Part]:
    """Memory of the machine that trains, in bytes.

    Args:
        settings: With dtype, attention and checkpointing resolved.
        sizes: Of model and adapters.
        clients: What they hold.
        is_gpu: Whether a GPU trains, of which training and generation take memory in turn.
        rewrites: Whether responses are left to rewrite.
    """
    model, distill, scoring = settings.model, settings.distill, settings.eval
    each = BYTES[model.dtype]
    of_linear = QUANTISED.get(model.quantization, each)
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    num_learning = {
        "shared": sum(map(math.prod, uploaded(method, aggregation, sizes.shared).values())),
        "private": sizes.num_adapter,
    }
    most = max(
        sum(num_learning[name] for name in stage.train) for stage in (*method.before_rounds, *method.stages)
    )

    is_flat = model.attention in PACKED
    longest = [sorted(client.train, key=_length)[-settings.client.batch_size :] for client in clients]
    num_tokens = max(collate(batch, is_flat).ids.size for batch in longest)
    num_state = sizes.num_state(model.attention)
    num_states = sizes.num_layers * num_state
    is_recomputed = model.gradient_checkpointing == "on"
    if is_recomputed:
        num_states = sizes.num_layers * sizes.width + num_state
    if model.attention == "eager":  # keeps the softmax twice
        num_states += 2 * sizes.num_heads * max(_length(batch[-1]) for batch in longest) * sizes.num_layers
    states = each * (num_tokens * num_states + CHUNK * sizes.num_head // sizes.width)
    if model.quantization != "none":
        states += each * sizes.num_largest

    longest_text = max(_length(text) for client in clients for text in (*client.train, *client.test))
    rows = {"eval": (scoring.batch_size, longest_text + scoring.max_new_tokens)}
    if rewrites and not distill.url and (method.needs_rewritings or scoring.rewritings):
        rows["distill"] = distill.batch_size, longest_text + distill.max_new_tokens
    num_rows, length = max(rows.values(), key=math.prod)
    cache = each * num_rows * length * sizes.cached * sizes.num_layers
    reading = each * num_rows * longest_text * num_state + 8 * num_rows * sizes.num_head // sizes.width

    kind = f"{model.quantization} linear layers, the rest " if model.quantization != "none" else ""
    checkpoints = "the layers' inputs and one layer inside" if is_recomputed else "all layers"
    parts = [
        Part(
            "memory", "base", of_linear * sizes.num_linear + each * sizes.num_other,
            f"{(sizes.num_linear + sizes.num_other) / 1e6:,.0f} M parameters, {kind}{model.dtype}",
        ),
        Part(
            "memory", "adapters", 2 * 4 * sizes.num_adapter,
            f"two of {sizes.num_adapter / 1e6:,.1f} M numbers, float32",
        ),
        Part(
            "memory", "optimizer", 3 * 4 * most,
            f"gradient and two moments of the {most / 1e6:,.1f} M numbers that are trained together",
        ),
        Part("memory", "states of a step", states, f"{num_tokens} tokens in a pass, {checkpoints}"),
        Part(
            "memory", "generation", cache + reading,
            f"{num_rows} rows of {length} tokens: keys and values, one layer inside, logits",
        ),
    ]  # fmt: skip
    amount = {part.name: part.num_bytes for part in parts}
    training, generation = amount["optimizer"] + amount["states of a step"], amount["generation"]
    if is_gpu:
        peak = amount["base"] + amount["adapters"] + max(training, generation)
        return [*parts, Part("memory", "peak", peak, "the sum, but training and generation alternate")]
    gaps = (HEAP - 1) * (training + generation)
    parts.append(Part("memory", "gaps", gaps, "of the heap, measured on processors"))
    parts.append(Part("memory", "libraries", LIBRARIES, "measured"))
    return [*parts, Part("memory", "peak", sum(part.num_bytes for part in parts), "all of it")]


def messages(settings: Settings, sizes: Sizes, num_clients: int) -> list[Part]:
    """Bytes of the transmitted arrays."""
    has_control_variates = DRIFT_CORRECTIONS[settings.client.drift_correction].has_control_variates
    method, aggregation = METHODS[settings.method], AGGREGATIONS[settings.server.aggregation]
    dtype, lora, rounds = settings.communication.dtype, settings.adapter, settings.server.num_rounds
    down = _num_bytes(downloaded(method, aggregation, sizes.shared), "float32", has_control_variates)
    up = _num_bytes(uploaded(method, aggregation, sizes.shared), dtype, has_control_variates)
    most = ", at the largest rank" if lora.client_ranks else ""
    sampled = settings.server.clients_per_round or num_clients
    residual = [
        _residual_bytes(sizes, ranks) for ranks in _residual_ranks(aggregation, lora.rank, sampled, rounds)
    ]
    grown = "in the last round; it grows with the residual" if residual[-1] else "each round"
    return [
        Part("messages", "down", down + residual[-1], f"to each client, {grown}"),
        Part(
            "messages", "up", up,
            f"from each client, each round; {dtype}{most}",
        ),
        Part(
            "messages", "all rounds", sampled * (rounds * (down + up) + sum(residual)),
            f"{rounds} rounds of {sampled} clients, both ways{most}; evaluation sends it once more",
        ),
    ]  # fmt: skip


def _residual_ranks(aggregation: Aggregation, rank: int, sampled: int, num_rounds: int) -> list[int]:
    """Ranks of the residual before each round.

    If factors are new in each round, the stacked ranks of all clients' changes go to the base; if factors are
    averaged, one client's fewer (`server.aggregate`).
    """
    added = rank * (sampled if aggregation.is_fresh else sampled - 1) if aggregation.adds_to_base else 0
    return [added * number for number in range(num_rounds)]


def _residual_bytes(sizes: Sizes, rank: int) -> int:
    """Bytes of a residual of this rank, including the rank itself; none for rank 0."""
    return 4 * sum(map(math.prod, residual_shapes(sizes.shared, rank).values())) + 8 if rank else 0


def _num_bytes(shapes: dict[str, tuple[int, ...]], wire: MessageDtype, has_control_variates: bool) -> int:
    arrays = layout(shapes, wire, has_control_variates).values()
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in arrays)


def _length(text: Conversation) -> int:
    return len(text.ids)
