"""The chat template as the run uses it: with the settings and missing features written into it.

The exported merged model therefore prompts exactly like the trained one. Plain Jinja is enough: a variable
for each argument, a macro instead of the clock, and the system text at the head of the user's turn if the
template has no system role.
"""

import json
from datetime import date
from typing import Any

from fedsdr.config import Model
from fedsdr.data.template import Turn, render
from fedsdr.errors import UserError

PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n### Response:\n"
    "{% else %}{{ message['content'] }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
)
"""For models without a chat template; a prompt ends with the heading of the response."""
FOLDED = (
    "{% if messages[0]['role'] == 'system' %}{% set messages = [{'role': 'user', 'content': "
    "messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)
_CLOCK = "{% macro strftime_now(format) %}"
DIRECTIVES = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
"""Of `strftime`."""
SYSTEM, USER, ANSWER = "Abide by the rules.", "What is said?", "fedsdr"
CONVERSATION: list[Turn] = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": USER},
    {"role": "assistant", "content": ANSWER},
]


def settle_template(spec: Model, tokenizer: Any) -> str:
    """Write the settings into the tokenizer's chat template, and check it.

    Args:
        spec: The recipe's [model].
        tokenizer: Its `chat_template` is replaced if anything changes.

    Returns:
        A fixed conversation rendered by the template; part of the model's identity.

    Raises:
        UserError: There is no template, it fails, does not end, drops text of a turn, or is not
            deterministic.
    """
    named = f"model.name = {spec.name}"
    if spec.chat_template == "plain":
        starts = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [
            tokenizer.bos_token_id
        ]
        tokenizer.chat_template = "{{ bos_token }}" * starts + PLAIN
    elif tokenizer.chat_template is None:
        raise UserError(
            f"{named}: the tokenizer has no chat template (key chat_template in tokenizer_config.json, or a"
            " file chat_template.jinja): use an instruct model, or set model.chat_template = 'plain'"
        )
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, none of which is the default
        raise UserError(f"{named}: {error}") from None
    arguments = "".join(
        f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}"
        for name, value in spec.template_args.items()
    )
    clock = _fixed_clock(spec.date) if "strftime_now" in template else ""
    tokenizer.chat_template = arguments + clock + template
    try:
        render(tokenizer, CONVERSATION[1:])
        if not _has_system(tokenizer):
            tokenizer.chat_template = FOLDED + tokenizer.chat_template
        whole = render(tokenizer, CONVERSATION)
        texts = {
            f"{render(tokenizer, CONVERSATION[:-1], asks=True)}\n{render(tokenizer, CONVERSATION)}"
            for _ in range(8)
        }
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
    for text in (SYSTEM, USER, ANSWER):
        if text not in whole:
            raise UserError(
                f"{named}: the chat template drops text of a turn: nothing of {text!r} is left in"
                f" {whole[:200]!r}; use a model whose template accepts text turns"
            )
    if len(texts) > 1:
        raise UserError(f"{named}: the chat template does not render the same text twice; use another model")
    return texts.pop()


def describe_template(spec: Model, tokenizer: Any) -> list[str]:
    """Describe the automatic changes to the template, one line each."""
    lines = []
    if tokenizer.chat_template.startswith(FOLDED):
        lines.append("chat template: no system role; the system text is put at the head of the user's turn")
    if _CLOCK in tokenizer.chat_template:
        lines.append(f"chat template: writes the date, which is always model.date = {spec.date}")
    return lines


def as_taken(tokenizer: Any, turns: list[Turn]) -> list[Turn]:
    """Turns as the template accepts them, for a server of the same model: system text folded if needed."""
    if turns[0]["role"] != "system" or not tokenizer.chat_template.startswith(FOLDED):
        return turns
    system, user, *rest = turns
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def _has_system(tokenizer: Any) -> bool:
    """Whether the template accepts a system turn, and renders it."""
    try:
        return SYSTEM in render(tokenizer, CONVERSATION)
    except UserError:
        return False


def _fixed_clock(day: str) -> str:
    """A macro that replaces transformers' `strftime_now` by a fixed time, the beginning of a day."""
    moment = date.fromisoformat(day)
    filters = "".join(
        f"|replace('%{flag}{letter}', {json.dumps(moment.strftime(f'%{flag}{letter}'))})"
        for letter in DIRECTIVES
        for flag in ("", "-")
    )
    return f"{_CLOCK}{{{{ format{filters} }}}}{{% endmacro %}}"
