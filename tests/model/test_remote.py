"""Rewriting by a server: what it is asked, what becomes of its answers, and what a user reads when it fails."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.built_in import demo_data

from fedsdr.config import Distill, Lora, Model, Settings
from fedsdr.data.conversation import encode_prompt
from fedsdr.data.examples import Example, as_record
from fedsdr.distill import rewrite as module
from fedsdr.distill.prompts import rewriting_turns
from fedsdr.distill.rewrite import fault, rewrite
from fedsdr.distill.rewriting import Rewriting
from fedsdr.errors import UserError
from fedsdr.model import remote
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base
from fedsdr.model.generation import Answer, Sampling, generate
from fedsdr.model.remote import Judge, ask_server
from fedsdr.recipe import check_settings, dump_settings
from fedsdr.seeds import seed_for
from fedsdr.storage import content_hash

EXAMPLES = [Example(f"Question {n}?{' pad' * n}", f"Answer {n}.", "general") for n in range(5)]
PROMPTS = [[{"role": "user", "content": f"Say {n}"}] for n in range(3)]
SECRET = "sk-a1b2c3"


def completion(text: str | None, reason: str = "stop", num_tokens: int = 5) -> tuple[int, str]:
    """Status and body of a chat completion, as llama.cpp sends it, shortened."""
    choice = {"finish_reason": reason, "index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"completion_tokens": num_tokens, "prompt_tokens": 36, "total_tokens": 36 + num_tokens}
    return 200, json.dumps({"choices": [choice], "object": "chat.completion", "usage": usage})


class Fake(ThreadingHTTPServer):
    """A server that answers by a function of the request, and remembers what it was sent."""

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that no longer waits is no news."""


class FakeHandler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.paths.append(self.path)
        self.server.headers.append(dict(self.headers))
        status, text = self.server.answer(body)
        if status:  # 0: hang up without a word
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def no_waits_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    monkeypatch.delenv("FEDSDR_API_KEY", raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Fake]]:
    """Return `serve(answer)`: a fake server that runs until the test ends."""
    started: list[Fake] = []

    def start(answer: Callable[[dict[str, Any]], tuple[int, str]]) -> Fake:
        fake = Fake(answer)
        started.append(fake)
        threading.Thread(target=fake.serve_forever, args=(0.01,), daemon=True).start()
        return fake

    yield start
    for fake in started:
        fake.shutdown()
        fake.server_close()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """Address at which no server listens. It stays bound, or another test's server might be given its port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


def of(fake: Fake, **settings: Any) -> Distill:
    return Distill(url=fake.url, served_name="our-model", **settings)


def refusal(settings: Distill | Judge) -> str:
    with pytest.raises(UserError) as caught:
        list(ask_server(PROMPTS, settings, [0, 1, 2]))
    return str(caught.value)


def test_turns_and_sampling_arrive_with_a_seed_for_each_prompt(serve):
    fake = serve(lambda body: completion("Yes."))
    settings = of(fake, temperature=0.7, top_p=0.9, max_new_tokens=17)
    list(ask_server(PROMPTS, settings, [5, 2**31 + 6, 2**63 - 1]))
    assert sorted(fake.bodies, key=lambda body: body["messages"][0]["content"]) == [
        {
            "model": "our-model",
            "messages": turns,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 17,
            "seed": seed,
        }
        for turns, seed in zip(PROMPTS, [5, 6, 2**31 - 1], strict=True)
    ]
    assert set(fake.paths) == {"/v1/chat/completions"}
    assert not any("Authorization" in headers for headers in fake.headers)


def test_all_requests_are_sent_at_once_and_answered_in_its_own_order(serve):
    """No answer is given before all have asked, and the last prompt's is given first."""
    all_asked = threading.Barrier(3, timeout=10)
    answered = [threading.Event() for _ in PROMPTS]

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        number = int(body["messages"][0]["content"].removeprefix("Say "))
        all_asked.wait()
        assert all(event.wait(10) for event in answered[number + 1 :])
        answered[number].set()
        return completion(f" {number}\n", num_tokens=number)

    answers = list(ask_server(PROMPTS, of(serve(answer), num_requests=3), [0, 0, 0]))
    assert answers == [Answer("0", True, 0), Answer("1", True, 1), Answer("2", True, 2)]


def test_a_slash_at_the_end_of_the_address_changes_nothing(serve):
    fake = serve(lambda body: completion("Yes."))
    list(ask_server(PROMPTS, Distill(url=f"{fake.url}/", served_name="our-model"), [0, 1, 2]))
    assert set(fake.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("text", "reason", "expected", "found"),
    [
        ("Yes, but", "length", Answer("Yes, but", False, 5), "cut off"),
        ("Yes.", "content_filter", Answer("Yes.", False, 5), "cut off"),
        (None, "stop", Answer("", True, 5), "empty"),  # a model that only thought
    ],
)
def test_what_did_not_end_by_itself_is_unfinished(serve, text, reason, expected, found):
    answers = [*ask_server(PROMPTS, of(serve(lambda body: completion(text, reason))), [0, 1, 2])]
    assert answers == [expected] * 3
    assert fault(EXAMPLES[0], answers[0], "off") == found


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_server_that_is_busy_or_hangs_up_once_is_asked_again(serve, status):
    seen: set[str] = set()

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        content = body["messages"][0]["content"]
        if content in seen:
            return completion(content)
        seen.add(content)
        return status, "Loading model"

    fake = serve(answer)
    assert [found.text for found in ask_server(PROMPTS, of(fake), [0, 1, 2])] == ["Say 0", "Say 1", "Say 2"]
    assert len(fake.bodies) == 6


def test_a_server_that_stays_busy_is_named_with_its_own_words(serve):
    fake = serve(lambda body: (503, "Loading model " + "x" * 1000))
    message = refusal(of(fake, num_requests=3))
    assert f"distill.url = {fake.url} gave no answer in 3 tries: 503 Service Unavailable: Loading" in message
    assert "distill.num_requests than 3" in message
    assert "x" * 150 in message and "x" * 200 not in message
    assert "Say" not in message
    assert [body["messages"] for body in fake.bodies].count(PROMPTS[0]) == 3


def test_an_answer_that_never_comes_is_an_error(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "TIMEOUT", httpx.Timeout(0.2))
    end = threading.Event()
    fake = serve(lambda body: (end.wait(10), completion("late"))[1])
    message = refusal(of(fake))
    end.set()
    assert f"distill.url = {fake.url} gave no answer in 3 tries: ReadTimeout" in message


def test_no_server_at_the_address_is_an_error(nowhere):
    message = refusal(Distill(url=nowhere, served_name="our-model"))
    assert f"distill.url = {nowhere} gave no answer in 3 tries: ConnectError: " in message
    assert "start a server at that address" in message


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            404,
            '{"error": {"message": "The model `our-model` does not exist."}}',
            ["served_name = 'our-model'", "The model `our-model` does not exist.", "/models"],
        ),
        (404, "Not Found", ["404 Not Found", "usually ends in /v1"]),
        (
            400,
            '{"error": {"message": "request (5031 tokens) exceeds the available context size"}}',
            ["5031 tokens", "twice model.max_length", "distill.max_new_tokens = 192"],
        ),
        (401, "Unauthorized", ["401 Unauthorized", "environment variable FEDSDR_API_KEY"]),
        (302, "elsewhere", ["302 Found"]),
        (
            200,
            "<html>Welcome</html>",
            ["not with a chat completion", "<html>Welcome</html>", "usually ends in /v1"],
        ),
        (200, '{"error": "no such model"}', ["not with a chat completion", "no such model"]),
        (200, '{"choices": [], "usage": {"completion_tokens": 1}}', ["not with a chat completion"]),
    ],
)
def test_what_another_try_would_not_change_is_said_at_once(serve, status, body, words):
    fake = serve(lambda request: (status, body))
    message = refusal(of(fake))
    for word in (f"distill.url = {fake.url}", *words):
        assert word in message
    assert "Say" not in message
    assert [body["messages"] for body in fake.bodies].count(PROMPTS[0]) == 1


def test_a_judge_is_named_as_the_user_set_it(serve, nowhere):
    """What is wrong with a judge's server is not laid on [distill]."""
    broken = Judge("http://localhost:8OOO/v1", "ours")
    for judge, words in (
        (broken, ["--judge = http://localhost:8OOO/v1: Invalid port"]),
        (
            Judge(nowhere, "ours", num_requests=3),
            [f"--judge = {nowhere} gave no", "Judge.num_requests than 3"],
        ),
        (
            Judge(serve(lambda body: (404, "no")).url, "ours"),
            ["--judge-model = 'ours'", "check --judge, which"],
        ),
        (Judge(serve(lambda body: (400, "no")).url, "ours"), ["an answer of max_new_tokens = 16"]),
        (
            Judge(serve(lambda body: (200, "no")).url, "ours"),
            ["answered, but not with a chat completion: 200"],
        ),
    ):
        message = refusal(judge)
        for word in words:
            assert word in message
        assert "distill" not in message


def test_an_address_that_is_none_is_an_error():
    settings = Distill(url="http://localhost:8OOO/v1", served_name="our-model")
    assert "distill.url = http://localhost:8OOO/v1: Invalid port: '8OOO'" in refusal(settings)


def test_the_key_is_sent_in_its_header_and_is_nowhere_else(serve, teach, tmp_path, monkeypatch):
    """Not in what else is sent, nor in settings, files or messages, even where the server repeats it."""
    monkeypatch.setenv("FEDSDR_API_KEY", f"{SECRET}\n")
    fake = serve(lambda body: completion("Yes."))
    teach(fake)
    assert {headers.pop("Authorization") for headers in fake.headers} == {f"Bearer {SECRET}"}
    settings = Settings(distill=of(fake))
    kept = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert kept
    for text in (
        *map(str, fake.headers),
        *map(str, fake.bodies),
        *fake.paths,
        dump_settings(settings),
        *kept,
    ):
        assert SECRET not in text
    for status in (401, 500, 200):
        message = refusal(of(serve(lambda body, status=status: (status, f"unknown key {SECRET}"))))
        assert "unknown key ***" in message and SECRET not in message


def test_a_key_that_no_header_can_hold_is_an_error_that_does_not_show_it(serve, monkeypatch):
    for key in (f"{SECRET}\nmore", f"{SECRET}é"):
        monkeypatch.setenv("FEDSDR_API_KEY", key)
        message = refusal(of(serve(lambda body: completion("Yes."))))
        assert "FEDSDR_API_KEY" in message and SECRET not in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"url": "http://localhost:8000/v1"},
            "distill: url = 'http://localhost:8000/v1' and served_name = ''",
        ),
        ({"served_name": "m"}, "distill: url = '' and served_name = 'm'"),
        ({"url": "localhost:8000", "served_name": "m"}, "does not begin with http:// or https://"),
    ],
)
def test_an_address_goes_with_a_name_and_begins_as_one(settings, words):
    with pytest.raises(UserError) as caught:
        check_settings({"distill": settings}, "test")
    assert words in str(caught.value)


@pytest.fixture(scope="module")
def model(tiny_settings: Callable[..., Settings]) -> LoraModel:
    base = load_base(tiny_settings().model)
    return LoraModel(base, Lora(rank=2))


@pytest.fixture
def teach(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return `teach(fake)`, which rewrites the examples by that server; the model of this process may not."""

    def never(*args: Any) -> None:
        raise AssertionError

    def go(fake: Fake, examples: list[Example] = EXAMPLES, longest: int = 512, **settings: Any):
        settings = {"batch_size": 2, "prompts": ("turn",)} | settings
        return rewrite(model, examples, of(fake, **settings), longest, tmp_path)

    monkeypatch.setattr(module, "generate", never)
    return go


def number_of(body: dict[str, Any]) -> int:
    """Which example a request shows."""
    (turn,) = [turn for turn in body["messages"] if turn["content"].startswith("Answer")]
    return int(turn["content"].removeprefix("Answer ").removesuffix("."))


def test_a_whole_rewriting_by_a_server(serve, teach):
    """Like the model in this process: in order, with checks and fall-back, and without requests for long prompts."""

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        number = number_of(body)
        return completion(f"New {number}", "length" if number == 3 else "stop")

    fake = serve(answer)
    long = Example("Question?", "Answer 9." + " and so on" * 2000, "general")
    new = teach(fake, examples=[*EXAMPLES, long])
    good = [Rewriting(f"New {n}", f"New {n}", "turn", "") for n in range(5)]
    cut = Rewriting("New 3", "Answer 3.", "", "cut off")
    too_long = Rewriting(None, long.response, "", "too long")
    assert new == [*good[:3], cut, good[4], too_long]
    sent = {number_of(body): body for body in fake.bodies}
    assert len(fake.bodies) == len(sent) == 5
    for number, example in enumerate(EXAMPLES):
        assert sent[number]["messages"] == rewriting_turns("turn", example)
        parts = ("distill", "turn", content_hash(as_record(example)))
        assert sent[number]["seed"] == seed_for(0, *parts) % 2**31


def test_the_next_batch_is_asked_before_the_last_answer_of_one(serve, teach):
    """5 examples in batches of 2: the server has 3 requests before it answers the first."""
    three = threading.Barrier(3, timeout=10)
    waits = iter([three.wait] * 3)

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        next(waits, lambda: 0)()
        return completion(f"New {number_of(body)}")

    new = teach(serve(answer), num_requests=3)
    assert [one.distilled for one in new] == [f"New {n}" for n in range(5)]


def test_a_server_is_asked_again_when_it_says_so(serve, monkeypatch: pytest.MonkeyPatch):
    """After 2 minutes at most; where it names no seconds, after a wait of our own that no two tries share."""
    slept: list[float] = []
    monkeypatch.setattr(remote, "WAITS", (1.0, 1.0))
    monkeypatch.setattr(remote.time, "sleep", slept.append)

    def waits(header: str) -> list[float]:
        def end_headers(handler: FakeHandler) -> None:
            handler.send_header("Retry-After", header)
            BaseHTTPRequestHandler.end_headers(handler)

        monkeypatch.setattr(FakeHandler, "end_headers", end_headers)
        slept.clear()
        with pytest.raises(UserError):
            list(ask_server(PROMPTS[:1], of(serve(lambda body: (429, "busy"))), [0]))
        assert slept[0] == 0
        return slept[1:]

    assert waits("7") == [7, 7]
    assert waits("100000") == [120, 120]
    first, second = waits("Sun, 29 Nov 2026 09:30:00 GMT")
    assert 1 <= first < 1.5 and 1 <= second < 1.5 and first != second


def test_tokens_and_time_are_reported(serve, teach, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        teach(serve(lambda body: completion(f"New {number_of(body)}", num_tokens=7)))
    (line,) = [record.getMessage() for record in caplog.records if "wrote" in record.getMessage()]
    assert "our-model read" in line and "wrote 35 in " in line


def test_a_stopped_rewriting_asks_only_for_the_batches_that_are_missing(serve, teach):
    """5 examples in batches of 2; the server fails at the third, and another one is used to resume."""
    one_by_one = serve(lambda body: completion(f"New {number_of(body)}"))
    whole = teach(one_by_one, seed=1, num_requests=1)
    last = number_of(one_by_one.bodies[-1])
    broken = serve(
        lambda body: (400, "no") if number_of(body) == last else completion(f"New {number_of(body)}")
    )
    with pytest.raises(UserError):
        teach(broken, num_requests=2)
    other = serve(lambda body: completion(f"New {number_of(body)}"))
    assert teach(other) == whole
    assert [number_of(body) for body in other.bodies] == [last]
    assert teach(other) == whole
    assert len(other.bodies) == 1


THOUGHT = "<think>\nA place is asked for; one sentence will do.\n</think>\n\n"


def test_thinking_before_a_rewriting_is_not_taught(serve, teach):
    new = teach(serve(lambda body: completion(f"{THOUGHT}New {number_of(body)}")), examples=EXAMPLES)
    assert new == [Rewriting(f"New {n}", f"New {n}", "turn", "") for n in range(5)]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_thinking_that_never_ends_is_a_fault_of_its_own(serve, teach, reason: str):
    """In the text, or parted from it by the server."""

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        if number_of(body) % 2:
            return completion("<think>\nA place is", reason)
        status, text = completion(None, reason)
        document = json.loads(text)
        document["choices"][0]["message"]["reasoning_content"] = "A place is"
        return status, json.dumps(document)

    new = teach(serve(answer), examples=EXAMPLES)
    assert {one.fallback for one in new} == {"unclosed thinking"}
    assert [one.distilled for one in new] == [example.response for example in EXAMPLES]


def test_arguments_of_the_servers_template_are_sent_and_asked_anew(serve, teach):
    fake = serve(lambda body: completion(f"New {number_of(body)}"))
    teach(fake)
    assert all("chat_template_kwargs" not in body for body in fake.bodies)
    fake.bodies.clear()
    teach(fake, template_args={"enable_thinking": False})
    assert len(fake.bodies) == len(EXAMPLES)
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in fake.bodies)


def test_another_served_name_is_asked_anew(serve, teach, model, tmp_path: Path):
    fake = serve(lambda body: completion("Yes."))
    teach(fake)
    settings = Distill(url=fake.url, served_name="another", batch_size=2, prompts=("turn",))
    rewrite(model, EXAMPLES, settings, 512, tmp_path)
    assert [body["model"] for body in fake.bodies] == ["our-model"] * 5 + ["another"] * 5


@pytest.mark.real_model
def test_llama_cpp_rewrites_as_the_model_of_this_process_does(llama_cpp: str, real_model: Model, tmp_path):
    """Both read the same prompts, token for token, and begin most answers with the same words.

    Not all of them, and not to the end: llama.cpp computes with the weights' 4-bit codes and 8-bit
    activations.
    """
    examples = [example for train, _ in demo_data().values() for example in train[:2]]
    base = load_base(real_model)
    model = LoraModel(base, Lora())
    settings = Distill(url=llama_cpp, served_name="smollm2", prompts=("turn",), max_new_tokens=96)
    new = rewrite(model, examples, settings, 1024, tmp_path)

    turns = [rewriting_turns("turn", example) for example in examples]
    prompts = [encode_prompt(base.tokenizer, asked) for asked in turns]
    for asked, ids in zip(turns, prompts, strict=True):
        body = {"model": "smollm2", "messages": asked, "max_tokens": 1}
        reply = httpx.post(f"{llama_cpp}/chat/completions", json=body, timeout=60).json()
        assert reply["usage"]["prompt_tokens"] == len(ids)

    with model.inference(()):
        own = generate(base, prompts, Sampling(settings.max_new_tokens))
    for example, there, here in zip(examples, new, own, strict=True):
        print(f"\n{example.domain}: {example.response}\n  there: {there}\n  here:  {here.text}")
    assert all(there.first for there in new)
    assert sum(there.prompt == "turn" for there in new) >= 6
    same = [there.first.split()[:4] == here.text.split()[:4] for there, here in zip(new, own, strict=True)]
    assert sum(same) >= 6
