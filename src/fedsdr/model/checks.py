"""Requirements on a language model before training: end of turns, length, vocabulary, output head."""

from typing import Any

from fedsdr.config import Model
from fedsdr.data.template import render, tokens
from fedsdr.errors import UserError


def settle_tokens(name: str, model: Any, tokenizer: Any) -> None:
    """Ensure that turns end in a token that stops generation, and that there is a padding token."""
    from transformers import GenerationConfig

    answer = "fedsdr"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    tail = render(tokenizer, turns).rpartition(answer)[2]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [number for number in tokens(tokenizer, tail) if number in special]
    if not ends:
        raise UserError(
            f"model.name = {name}: the chat template ends an answer with {tail!r}, where no special token"
            " makes the model stop: use an instruct model"
        )
    check_vocabulary(name, model, tokenizer, tokens(tokenizer, render(tokenizer, turns)))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    # Drop the model's own sampling settings: sampling follows fedsdr's settings only.
    model.generation_config = GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=sorted({*known, ends[0]} - {None}),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.config.pad_token_id = tokenizer.pad_token_id


def check_vocabulary(name: str, model: Any, tokenizer: Any, written: list[int]) -> None:
    """Reject the tokenizer of another model, whose tokens have no row in the embedding.

    Special tokens not written by the chat template may be out of range, like the image token of Gemma 3 1B.

    Args:
        name: Name of the model, for the error.
        model: Provides the size of the embedding.
        tokenizer: Provides the vocabulary.
        written: Token ids of a conversation.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max({*tokenizer.get_vocab().values()} - special | {*written})
    num_rows = model.get_input_embeddings().weight.shape[0]
    if largest >= num_rows:
        raise UserError(
            f"model.name = {name}: the tokenizer has a token with id {largest}, but the embedding has"
            f" {num_rows} rows: the tokenizer belongs to another model, or tokens were added to it but not to"
            " the model (`resize_token_embeddings`)"
        )


def check_length(spec: Model, config: Any) -> None:
    """Reject a max_length above the model's limit."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and spec.max_length > longest:
        raise UserError(
            f"model.max_length = {spec.max_length}: {spec.name} supports conversations of at"
            f" most {longest} tokens; set this value or less"
        )


def check_head(name: str, model: Any) -> None:
    """Reject models that cap or scale their logits: the loss applies the head itself, in chunks."""
    import torch

    tokens = torch.tensor([[0, 1, 2]], device=model.device)
    try:
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits
            hidden = model.get_decoder()(tokens, use_cache=False).last_hidden_state
            plain = model.get_output_embeddings()(hidden)
    except UserError:
        raise
    except Exception as error:  # of any kind: it comes from the model's own code
        raise UserError(
            f"model.name = {name}: fedsdr does not support this model ({model.config.model_type}):"
            f" {type(error).__name__}: {error}"
        ) from error
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-4, atol=1e-4):
        raise UserError(
            f"model.name = {name}: its logits are not its output head applied to its last hidden state (it"
            " caps or scales them, as Gemma 2, Cohere and Granite do); fedsdr does not train such models"
        )
