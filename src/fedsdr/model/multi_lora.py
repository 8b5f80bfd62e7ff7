"""The private adapters of several clients in one forward pass without gradient.

They are concatenated along the rank: A = [A_1; A_2; ...], B = [B_1 B_2 ...]. In A h, each token keeps the
ranks of its own client, and the others are set to zero. So B A h is the client's own term plus exact zeros,
and each product serves all clients.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsdr.model.adapter_files import join
from fedsdr.model.adapters import LoraModel
from fedsdr.model.generation import Route
from fedsdr.rows import Adapter


@contextmanager
def several(
    model: LoraModel, active: Sequence[Adapter], private: Sequence[Mapping[str, Tensor]]
) -> Iterator[Route]:
    """Activate adapters as `LoraModel.inference` does, with a private one for each of several clients.

    Args:
        model: Holds the shared adapter.
        active: Adapters in the forward pass.
        private: The private adapter of each client: tensors by PEFT key.

    Yields:
        Sets the client of each token of the next forward pass, by its place in `private`.
    """
    tensors = model.tensors("private")
    before = {key: tensor.data for key, tensor in tensors.items()}

    def route(clients: Sequence[int]) -> None:
        place = torch.tensor(clients, device=model.base.device)
        is_own = F.one_hot(place, len(private)).to(model.base.dtype)
        masks: dict[int, Tensor] = {}  # by the number of all ranks, which a residual makes differ
        for layer in model.layers.values():
            if layer.ready is None or "private" not in layer.active:  # every client's is zero
                continue
            first = len(layer.A["shared"]) if "shared" in layer.active else 0
            num, num_private = len(layer.ready[0]), len(layer.A["private"])
            if num not in masks:
                ranks = is_own.repeat_interleave(num_private // len(private), dim=1)
                masks[num] = F.pad(ranks, (first, num - first - num_private), value=1.0)
            layer.ranks = masks[num]

    try:
        for key, joined in join(*private).items():
            tensors[key].data = joined.to(tensors[key].device)
        with model.inference(active):
            yield route
    finally:
        for key, tensor in tensors.items():
            tensor.data = before[key]


def ranks_are_independent(model: LoraModel, route: Route, num: int) -> bool:
    """Whether a product is bit-identical with the ranks of other clients and without them.

    It holds if matrix products add in the same order for any number of ranks, of which those of other clients
    add zero. Tried on one layer of each shape, for 4 and for 16 rows of a client, with its ranks and without
    those that are zero (a client alone leaves out a private adapter that is zero). Call it inside `several`,
    of `num` clients.
    """
    route([*range(num)] * 16)
    for layer in {layer.base.weight.shape: layer for layer in model.layers.values()}.values():
        ready, ranks = layer.ready, layer.ranks
        if ready is None or ranks is None:
            continue
        a, b = ready
        h = torch.randn(len(ranks), a.shape[1], generator=torch.Generator().manual_seed(0)).to(a)
        together = layer(h)
        for client in range(num):
            own = ranks[client] > 0
            for used, rows in product((own, own & b.any(dim=0)), (4, 16)):
                layer.ready, layer.ranks = (a[used], b[:, used]), None
                alone = layer(h[client::num][:rows])
                layer.ready, layer.ranks = ready, ranks
                if not torch.equal(alone, together[client::num][:rows]):
                    return False
    return True
