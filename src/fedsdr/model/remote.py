"""Answers of an OpenAI-compatible server (vLLM, llama.cpp, ...), as the rewriting model or as a judge.

Conversations go out, answers come back. `distill.rewrite` and `evaluate.judge` provide the prompts, the
checks and the cache. The server applies its own chat template and batching, so the same request may have
another answer the next time, even if greedy.
"""

import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import httpx
from pydantic import BaseModel, Field, ValidationError

from fedsdr.config import Distill
from fedsdr.data.conversation import Turn, trimmed
from fedsdr.data.thinking import without_thinking
from fedsdr.errors import UserError
from fedsdr.model.generation import Answer

WAITS = (1.0, 5.0, 25.0)
"""Seconds to wait before each retry when the server is down, busy or broken. Up to half of that is added at
random, so that requests refused together are not retried together."""
LONGEST_WAIT = 120.0
"""Longest Retry-After of a busy server that is honoured, in seconds."""
TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Timeout in seconds. The last request in a server's queue may wait for all the others."""
NUM_SHOWN = 200
"""Number of characters of a refusal shown in an error."""
ADVICE = {
    401: "set the environment variable FEDSDR_API_KEY to the server's key",
    403: "set the environment variable FEDSDR_API_KEY to a key that may use this model",
    404: "check {url}, which usually ends in /v1, and {served_name}: /models under that address lists the"
    " names",
}
"""How to fix it, by HTTP status."""


@dataclass(frozen=True)
class Judge:
    """A model behind a server that judges other models' texts: greedy one-word answers."""

    url: str
    """Base address, such as http://localhost:8000/v1. It receives all judged texts."""
    served_name: str
    num_requests: int = 16
    """Number of concurrent requests."""
    max_new_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0


_NAMES: dict[type, dict[str, str]] = {
    Distill: {
        "url": "distill.url",
        "served_name": "distill.served_name",
        "num_requests": "distill.num_requests",
        "room": "a prompt of twice model.max_length and distill.max_new_tokens",
    },
    Judge: {
        "url": "--judge",
        "served_name": "--judge-model",
        "num_requests": "Judge.num_requests",
        "room": "a prompt with both judged texts, and an answer of max_new_tokens",
    },
}
"""Names of the settings in errors, by kind, as the user knows them."""


class _Message(BaseModel):
    content: str | None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None


class _Usage(BaseModel):
    completion_tokens: int


class _Reply(BaseModel):
    """The used fields of a chat completion."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage


def ask_server(
    prompts: Sequence[list[Turn]], server: Distill | Judge, seeds: Sequence[int]
) -> Iterator[Answer]:
    """Send prompts to the server at `server.url`, with `server.num_requests` concurrent requests.

    Args:
        prompts: Conversations; the server writes the next turn of each.
        server: Address, served name and sampling.
        seeds: One for each prompt; sent modulo 2**31, which every server accepts.

    Yields:
        One answer for each prompt, in order. `num_tokens` is the server's count, which may include the end of
        turn.

    Raises:
        UserError: The server is unreachable, refuses, or does not answer with a chat completion. The message
            shows the beginning of the reply, without the key; the server may repeat parts of the request in
            it.
    """
    key = os.environ.get("FEDSDR_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("FEDSDR_API_KEY contains invalid characters; set it to the server's key only")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        client = httpx.Client(
            base_url=server.url,
            headers=headers,
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # a proxy from the environment would see the data too
        )
    except httpx.InvalidURL as error:
        raise UserError(
            f"{_name(server, 'url')} = {server.url}: {error}; set an address such as http://localhost:8000/v1"
        ) from None
    with client, ThreadPoolExecutor(server.num_requests) as pool:
        yield from pool.map(lambda turns, seed: _ask(client, server, turns, seed), prompts, seeds)


def _ask(client: httpx.Client, server: Distill | Judge, turns: list[Turn], seed: int) -> Answer:
    given = server.template_args if isinstance(server, Distill) else {}
    arguments: dict[str, object] = {"chat_template_kwargs": given} if given else {}
    reply = _post(
        client,
        server,
        {
            "model": server.served_name,
            "messages": turns,
            "temperature": server.temperature,
            "top_p": server.top_p,
            "max_tokens": server.max_new_tokens,
            "seed": seed % 2**31,
            **arguments,
        },
    )
    if not reply.is_success:
        advice = ADVICE.get(
            reply.status_code,
            f"check {{served_name}}, and that the server's context holds {{room}} = {server.max_new_tokens}",
        ).format(**_NAMES[type(server)])
        raise UserError(
            f"{_name(server, 'url')} = {server.url} refuses"
            f" {_name(server, 'served_name')} = {server.served_name!r}: {_describe(reply)}\n"
            f"How to fix it: {advice}"
        )
    try:
        read = _Reply.model_validate_json(reply.content)
    except ValidationError:
        raise UserError(
            f"{_name(server, 'url')} = {server.url} answered, but not with a chat completion:"
            f" {_describe(reply)}\n"
            "How to fix it: the base address of an OpenAI-compatible server, which usually ends in /v1"
        ) from None
    choice = read.choices[0]
    text = trimmed(without_thinking(choice.message.content or ""))
    if thoughts := not text and (choice.message.reasoning_content or choice.message.reasoning):
        text = f"<think>{thoughts}"  # the server separated the thinking, and the answer is missing
    return Answer(text, choice.finish_reason == "stop", read.usage.completion_tokens)


def _post(client: httpx.Client, server: Distill | Judge, body: dict[str, object]) -> httpx.Response:
    """Return the first reply that a retry would not change."""
    draw = random.Random(f"{body['seed']} {body['messages']}").random
    wanted = 0.0
    for wait in (0.0, *WAITS):
        time.sleep(max(wait * (1 + draw() / 2), wanted))
        wanted = 0.0
        try:
            reply = client.post("chat/completions", json=body)
        except httpx.RequestError as error:
            found = f"{type(error).__name__}: {error}"
            continue
        if reply.status_code != httpx.codes.TOO_MANY_REQUESTS and not reply.is_server_error:
            return reply
        found = _describe(reply)
        seconds = reply.headers.get("Retry-After", "")
        wanted = min(float(seconds), LONGEST_WAIT) if seconds.isdecimal() else 0.0
    raise UserError(
        f"{_name(server, 'url')} = {server.url} gave no answer in {1 + len(WAITS)} tries: {found}\n"
        "How to fix it: start a server at that address; if it is overloaded, set a smaller"
        f" {_name(server, 'num_requests')} than {server.num_requests}"
        + ". Batches answered so far are saved"
        * isinstance(server, Distill)
    )


def _name(server: Distill | Judge, key: str) -> str:
    return _NAMES[type(server)][key]


def _describe(reply: httpx.Response) -> str:
    """Status and beginning of the reply, without the key, which some servers echo."""
    _, _, key = reply.request.headers.get("Authorization", "").partition(" ")
    body = reply.text.replace(key, "***") if key else reply.text
    return f"{reply.status_code} {reply.reason_phrase}: {body[:NUM_SHOWN]}"
