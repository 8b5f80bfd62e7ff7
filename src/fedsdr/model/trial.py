"""A trial of a newly loaded model: one gradient, and one token with a cache.

There are many architectures, each with its own code. A model that fails here would fail in the middle of a
run, and one whose cache changes its answers would write nonsense.
"""

import torch

from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import first_line
from fedsdr.model.generation import begin
from fedsdr.model.loss import response_loss
from fedsdr.model.randomness import seeded

PROMPTS = (tuple(range(3, 12)), tuple(range(20, 26)))
"""Two lengths, so that padding matters."""


def try_out(name: str, model: LoraModel) -> None:
    """Reject a model that cannot be trained, or whose answers depend on the other prompts in the batch.

    Args:
        name: Name of the model, for the error.
        model: Its adapters are left unchanged.

    Raises:
        UserError: Shows the error of the model's code, or the difference.
    """
    kind = model.base.model.config.model_type
    try:
        with seeded(model.base.device, 0):  # dropout draws
            _one_gradient(model)
        with model.inference(()):
            differs = _cache_differs(model)
    except Exception as error:  # of any kind: it comes from the model's own code
        raise UserError(
            f"model.name = {name}: fedsdr does not support this model ({kind}): {type(error).__name__}:"
            f" {first_line(error)}"
        ) from error
    if differs:
        raise UserError(
            f"model.name = {name}: this model ({kind}) gives other answers when prompts of several lengths"
            " share a batch, or when it continues from its cache; use another"
        )


def _one_gradient(model: LoraModel) -> None:
    model.set(active=("shared",), train=("shared",))
    model.training(True)
    conversations = [Conversation(prompt, len(prompt) - 2) for prompt in PROMPTS]
    response_loss(model.base, conversations)[0].backward()
    for parameter in model.parameters(("shared",)):
        parameter.grad = None
    model.training(False)
    model.set(active=(), train=())


def _cache_differs(model: LoraModel) -> bool:
    """Whether a padded prompt with a cache continues differently than alone without a cache."""
    base, last = model.base, 30
    batch = begin(base, PROMPTS)
    rows = batch.keep([1])
    batch.step(
        torch.full((len(rows),), last, device=base.device), torch.tensor(rows, device=base.device) == 1
    )
    state = batch.states[rows.index(1)]
    ids = torch.tensor([[*PROMPTS[1], last]], device=base.device)
    alone = base.model.get_decoder()(ids, use_cache=False).last_hidden_state[0, -1]
    tolerance = 0.1 if base.dtype == torch.float32 else 0.5  # a router may choose other experts
    return bool((state - alone).float().norm() > tolerance * alone.float().norm())
