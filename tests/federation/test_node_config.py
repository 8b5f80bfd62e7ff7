"""A client's own configuration cannot be changed by the server's settings."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedsdr import __version__
from fedsdr.cli import main
from fedsdr.config import Data, Privacy, Settings
from fedsdr.data.sources import BUILT_IN
from fedsdr.deployment import node
from fedsdr.deployment.init import init
from fedsdr.deployment.node import read_node_file, run_node
from fedsdr.errors import UserError
from fedsdr.federation.client_app import app
from fedsdr.federation.model_cache import model_of
from fedsdr.federation.node_config import read_node
from fedsdr.federation.server_app import sent_settings
from fedsdr.messages.privacy import epsilon
from fedsdr.messages.wire import Arrays, broadcast
from fedsdr.recipe import check_settings
from fedsdr.storage import read_lines, rewrite_lines

OWN = {"client": "bank", "data": "/srv/data", "folder": "/var/lib/fedsdr", "model": "mine"}
HOSTILE = {
    "run": {"dir": "/etc", "cache": "/tmp/theirs", "threads": 2},
    "model": {"name": "evil/model", "revision": "theirs", "trust_remote_code": True},
    "data": {
        "root": "/home/other",
        "domains": ["secret"],
        "columns": {"response": "name"},
        "where": {"name": "Ann"},
    },
}
SETTINGS_THAT_A_NODE_TAKES = {
    "method", "partition", "lora", "distill", "client", "server", "federation", "communication", "privacy", "token_mask", "feddpa", "fdlora", "fedala", "eval",
}  # fmt: skip
SETTINGS_THAT_A_NODE_DECIDES = {"run", "model", "data"}


def applied(settings: dict[str, Any], **own: Any) -> Settings:
    return read_node({**OWN, **own}, Path("/elsewhere"), "run").apply(check_settings(settings, "test"))


def test_data_model_and_folders_are_the_nodes_whatever_the_server_says():
    found = applied(HOSTILE)
    assert (found.model.name, found.model.revision, found.model.trust_remote_code) == ("mine", "", False)
    assert found.data == Data(root="/srv/data")
    assert found.run.cache == ""
    assert read_node(OWN, Path("/elsewhere"), "first-1234").folder == Path("/var/lib/fedsdr/first-1234")
    own = applied(HOSTILE, **{"trust-remote-code": True, "revision": "v1", "cache": "/mine", "threads": 3})
    assert (own.model.revision, own.model.trust_remote_code) == ("v1", True)
    assert (own.run.cache, own.run.threads) == ("/mine", 3)
    assert applied({"run": {"threads": 4096}}).run.threads == os.cpu_count()


def test_a_registered_client_is_sent_no_path_of_the_server_and_all_that_it_needs():
    """The settings held the server's paths; a client needs none of them."""
    paths = {"model": {"name": "/srv/model", "revision": "v2"}, "data": {"root": "/srv/data", "num_train": 5}}
    paths |= {"run": {"dir": "/srv/runs/first", "cache": "/srv/cache", "seed": 3}}
    settings = check_settings({**paths, "federation": {"nodes": "/srv/nodes", "num_clients": 2}}, "test")
    sent = sent_settings(settings)
    assert "/srv" not in sent and "v2" not in sent
    taken = read_node(OWN, Path("/elsewhere"), "run").apply(check_settings(json.loads(sent), "test"))
    full = read_node(OWN, Path("/elsewhere"), "run").apply(settings)
    own = full.model_dump(exclude={"run": {"dir"}, "federation": True})
    assert taken.model_dump(exclude={"run": {"dir"}, "federation": True}) == own


def test_every_section_of_the_settings_is_either_taken_from_the_server_or_decided_by_the_node():
    """A new one must be put on one of the two lists, after thought."""
    assert set(Settings.model_fields) == SETTINGS_THAT_A_NODE_TAKES | SETTINGS_THAT_A_NODE_DECIDES


@pytest.mark.parametrize(
    ("settings", "own", "told"),
    [
        ({"server": {"keep_updates": True}}, {}, "set keep-updates = true"),
        ({"distill": {"url": "http://x", "served_name": "m"}}, {}, "allows distill-url = ''"),
        (
            {"distill": {"url": "http://x", "served_name": "m"}},
            {"distill-url": "http://x", "served-name": "other"},
            "is not this node's served-name = 'other'",
        ),
        ({}, {"max-epsilon": 4.0}, "requires privacy.kind = 'local'"),
        (
            {"privacy": {"kind": "central", "noise_multiplier": 2.0}},
            {"max-epsilon": 4},
            "requires privacy.kind",
        ),
        ({"privacy": {"kind": "local", "source": "seeded"}}, {}, "can be removed"),
        ({"privacy": {"kind": "central", "source": "seeded"}}, {}, "can be removed"),
        ({}, {"min-clients": 3}, "min-clients = 3 requires privacy.secure_aggregation = true"),
        (
            {"privacy": {"secure_aggregation": True}},
            {},
            "needs the public keys of the other clients: set peers",
        ),
        (
            {"privacy": {"secure_aggregation": True}},
            {"peers": "/p"},
            "without `fedsdr node`, also set private-key",
        ),
    ],
)
def test_what_a_node_does_not_consent_to_is_refused(settings: dict, own: dict, told: str):
    with pytest.raises(UserError, match=told):
        applied(settings, **own)


@pytest.mark.parametrize("run", ["node", "node-error.txt", "releases.json"])
def test_a_server_cannot_name_a_run_as_a_file_of_the_node(run: str):
    """A folder "node" would move the node's lock, and one "releases.json" stop all its runs."""
    node = {"client": "bank", "data": "/data", "folder": "/state", "model": "any"}
    with pytest.raises(UserError, match="one of this node's own files"):
        read_node(node, Path(), run)


def test_what_a_node_consents_to_is_done():
    assert applied({"server": {"keep_updates": True}}, **{"keep-updates": True}).server.keep_updates
    own = {"peers": "/peers", "private-key": "/node.key", "min-clients": 5}
    assert applied({"privacy": {"secure_aggregation": True}}, **own).privacy.secure_aggregation
    assert (
        applied(
            {"privacy": {"kind": "local", "noise_multiplier": 2.0}}, **{"max-epsilon": 4.0}
        ).privacy.noise_multiplier
        == 2
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"clint": "x"}, "unknown key clint; nearest are client"),
        ({"data": ""}, "data = '': should have at least 1 character"),
        ({"threads": "3"}, "threads = '3': should be a valid integer"),
        ({"trust-remote-code": 1}, "trust-remote-code = 1: should be a valid boolean"),
        ({"client": "../up"}, "cannot name a folder"),
        ({"client": "mean"}, "cannot be named 'mean'"),
        ({"client": "Mean"}, "looks like 'mean'"),
        ({"client": "a11"}, "looks like 'all'"),
        ({"client": "m\u0435an"}, "expected ASCII letters"),  # a Cyrillic letter
        ({"client": 7}, "client = 7: should be a valid string"),
        ({"delta": 1e5}, "delta = 100000.0: should be less than 1"),
        (
            {"most-epsilon": 4.0},
            "unknown key most-epsilon; nearest are max-epsilon",
        ),  # names of earlier versions
        ({"least-clients": 3}, "unknown key least-clients; nearest are min-clients"),
        ({"max-epsilon": float("nan")}, "max-epsilon = nan: should be a finite number"),
        ({"max-epsilon": -1}, "max-epsilon = -1: should be greater than or equal to 0"),
    ],
)
def test_a_wrong_configuration_is_told_with_key_value_and_what_would_do(change: dict, told: str):
    with pytest.raises(UserError, match=told):
        read_node({**OWN, **change}, Path(), "run")


def test_a_missing_key_is_named_with_an_example_of_it():
    with pytest.raises(UserError, match=r'data is missing; add one such as data = "/srv/examples"'):
        read_node({key: value for key, value in OWN.items() if key != "data"}, Path(), "run")


def test_a_simulated_node_has_no_keys_that_it_would_not_heed():
    with pytest.raises(UserError, match="unknown key max-epsilon"):
        read_node({"partition-id": 0, "max-epsilon": 4.0}, Path(), "run")


def test_the_name_of_a_run_cannot_lead_out_of_the_nodes_folder():
    with pytest.raises(UserError, match="cannot name a folder"):
        read_node(OWN, Path(), "../../etc")


@pytest.fixture
def ask(tiny_settings: Callable[..., Settings], flower_task: None) -> Callable[..., Message]:
    """Let a deployed node prepare, or train on a shared adapter; return its reply."""

    def handle(
        node: dict[str, Any],
        shared: Arrays | None = None,
        run: str = "r-1",
        name: str = "",
        identity: str = "",
        **overrides: Any,
    ) -> Message:
        settings = tiny_settings(**{"data.num_train": 0, "data.num_test": 0, **overrides})
        config = {"settings": sent_settings(settings), "version": __version__, "round": 1, "run": run}
        config |= {"model": identity} if identity else {}
        config |= {"client": name} if shared is None else {}
        content = RecordDict({"config": ConfigRecord(config)})
        if shared is not None:
            content["arrays"] = broadcast(shared)
        message = Message(content, 1, "query.prepare" if shared is None else "train", group_id="0")
        message.metadata.__dict__["_message_id"] = "m"
        return app(message, Context(1, 1, node, RecordDict(), {}))

    return handle


def make_node(tmp_path: Path, model: Path) -> dict[str, Any]:
    for file, num in (("train.jsonl", 4), ("test.jsonl", 2)):
        rows = read_lines(BUILT_IN / "domains/code" / file)[:num]
        rewrite_lines(tmp_path / "data/code" / file, rows)
    state = {"data": str(tmp_path / "data"), "folder": str(tmp_path / "state")}
    return {"client": "house", "model": str(model), **state}


def test_programs_are_run_only_at_a_node_that_consents(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path
):
    """The server's adapter decides what a model writes, so this would be running the server's code."""
    node = make_node(tmp_path, tiny_folder)
    for consent, checkable in ((False, 0), (True, 4)):
        reply = ask(node | {"run-programs": consent, "folder": str(tmp_path / str(consent))}, method="fedsd")
        assert reply.content["client"]["id"] == "house"
        assert reply.content["metrics"]["distill/num_checkable@before"] == checkable


def test_data_that_changed_are_refused_with_what_changed_and_the_server_is_not_told(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    node = make_node(tmp_path, tiny_folder)
    assert not ask(node).has_error()
    path = tmp_path / "data/code/test.jsonl"
    rewrite_lines(path, [{**row, "output": "pass"} for row in read_lines(path)])
    reply = ask(node)
    assert reply.error.reason.startswith("UserError, see node-error.txt")
    assert "changed since" in capsys.readouterr().err
    text = (tmp_path / "state/node-error.txt").read_text()
    assert (
        "test examples (4 training and 2 test examples now)" in text and "training examples and" not in text
    )


def test_a_node_whose_key_is_registered_under_another_name_is_told_before_it_rewrites(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    node = make_node(tmp_path, tiny_folder)
    assert ask(node, name="home").has_error()
    assert "the server registered its key as 'home'" in capsys.readouterr().err
    assert not list(tmp_path.glob("state/**/distilled*"))
    assert not ask(node, name="house").has_error()


def test_a_client_is_told_how_many_of_its_examples_the_server_draws(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    """With few clients, an update reveals much about each."""
    assert not ask(make_node(tmp_path, tiny_folder), **{"data.num_train": 3}).has_error()
    assert "; 3 examples of each domain drawn, " in capsys.readouterr().err


def test_a_client_sees_what_it_did_in_a_round(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path, tiny_settings: Callable[..., Settings],
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """Its log had only Flower's lines."""
    model = model_of(tiny_settings())
    model.initialise("shared", 0)
    shared = {key: value.numpy() for key, value in model.state("shared").items()}
    assert not ask(make_node(tmp_path, tiny_folder), shared, method="fedit").has_error()
    size = 4 * sum(value.size for value in shared.values())
    told = capsys.readouterr().err
    assert re.search(rf"house: round 1: trained 2 steps in \d+ s, update {size:,} bytes\n", told)


def test_a_dishonest_server_that_asks_a_round_again_with_another_adapter_gets_no_update_beyond_the_clients_limit(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path, tiny_settings: Callable[..., Settings]
):
    """Each new one would be another look at the same data, which no run's epsilon counts."""
    node = make_node(tmp_path, tiny_folder)
    one, two = (epsilon(Privacy(kind="local", noise_multiplier=4.0), num) for num in (1, 2))
    private = {
        "method": "fedit",
        "privacy.kind": "local",
        "privacy.noise_multiplier": 4.0,
        "eval.rewritings": False,
    }
    shared = {k: v.numpy() for k, v in model_of(tiny_settings()).state("shared").items()}
    first = ask(node | {"max-epsilon": (one + two) / 2}, shared, **private)
    assert not first.has_error(), first.error
    again = ask(node | {"max-epsilon": (one + two) / 2}, shared, **private)
    assert again.content["arrays"] == first.content["arrays"]
    assert ask(node | {"max-epsilon": one * 0.9, "folder": str(tmp_path / "new")}, **private).has_error()
    assert "one update with privacy.noise_multiplier = 4" in (tmp_path / "new/node-error.txt").read_text()
    other = {key: value + 0.01 for key, value in shared.items()}
    for run in ("r-1", "r-2"):  # a run of another name does not begin at zero
        assert ask(node | {"max-epsilon": (one + two) / 2}, other, run=run, **private).has_error()
        assert "its max-epsilon is" in (tmp_path / "state/node-error.txt").read_text()
    assert not ask(node | {"max-epsilon": two * 1.01}, other, **private).has_error()


def test_a_client_under_local_privacy_does_not_tell_by_failing_how_far_it_moved(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path, tiny_settings: Callable[..., Settings]
):
    """The server chooses `server.max_norm`, so rejecting larger norms would be a noiseless observation."""
    node = make_node(tmp_path, tiny_folder)
    model = model_of(tiny_settings())
    model.initialise("shared", 0)
    shared = {k: v.numpy() for k, v in model.state("shared").items()}
    tight = {"method": "fedit", "eval.rewritings": False, "server.max_norm": 1e-6}
    assert ask(node, shared, **tight).error.reason.startswith("Diverged")
    assert not ask(node, shared, run="r-2", **tight, **{"privacy.kind": "local"}).has_error()


def test_a_node_without_a_folder_writes_nothing_where_the_server_says(
    ask: Callable[..., Message], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    reply = ask({"client": "house", "data": "data", "model": "tiny"}, **{"run.dir": str(tmp_path / "theirs")})
    assert reply.has_error()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def node_file(tmp_path: Path) -> Path:
    """What `fedsdr deploy init` writes for a client of a trial."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    init(tmp_path / "all", ["bank"], "localhost:8443", "any")
    path = tmp_path / "all/bank/node.toml"
    path.write_text(re.sub(r"port = \d+", f"port = {port}", path.read_text()))
    (path.parent / "data/loans").mkdir(parents=True)
    return path


def test_a_second_program_of_one_node_is_refused(node_file: Path, monkeypatch: pytest.MonkeyPatch):
    """Once it took the first one's messages, and ended without a word."""
    monkeypatch.setattr(node, "FREED", 0.0)
    with (
        socket.create_server(("127.0.0.1", read_node_file(node_file).port)),
        pytest.raises(UserError, match="another `fedsdr node` with this file uses it"),
    ):
        run_node(node_file)


@pytest.fixture
def as_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `run_node` changes of its process, it does not change of this one."""
    monkeypatch.setattr(node.signal, "signal", lambda *args: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "umask", lambda mask: None)


def test_missing_data_are_told_when_a_node_starts(
    node_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_another_process: None,
):
    def serve(*args: Any) -> int:
        raise SystemExit(0)

    monkeypatch.setattr(node, "_serve", serve)
    (node_file.parent / "data/loans/train.jsonl").touch()
    with pytest.raises(SystemExit):
        run_node(node_file)
    told = capsys.readouterr().err
    assert "cannot reach superlink = localhost:8443: " in told
    assert "is missing" in told and "loans/test.jsonl" in told and "loans/train.jsonl" not in told


@pytest.fixture
def server_with_tls(node_file: Path) -> Iterator[int]:
    """Port of an HTTPS server with the certificate of the node's server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    place = node_file.parents[1] / "server"
    context.load_cert_chain(place / "server.crt", place / "server.key")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_node_is_checked_before_its_first_run(
    node_file: Path,
    server_with_tls: int,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """A wrong name of the model, and a wrong address, showed as retries without a reason."""

    def check(**changes: str) -> tuple[int, str]:
        text = node_file.read_text()
        for name, value in {
            "superlink": f"localhost:{server_with_tls}",
            "model": str(tiny_folder),
            **changes,
        }.items():
            text = re.sub(rf'^{name} = "[^"]*"', f'{name} = "{value}"', text, flags=re.MULTILINE)
        node_file.write_text(text)
        with pytest.raises(SystemExit) as end:
            main(["node", str(node_file), "--check"])
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    make_node(node_file.parent, tiny_folder)
    shutil.rmtree(node_file.parent / "data/loans")
    code, told = check()
    assert code == 0
    assert (
        "domain code: 4 training, 2 test examples" in told and f"server: localhost:{server_with_tls}" in told
    )
    with (node_file.parent / "data/code/train.jsonl").open("a") as file:
        file.write("no JSON\n")
    code, told = check(model="/nowhere", superlink="localhost:1")
    assert code == 2
    assert "train.jsonl:5" in told and "there is no such folder" in told
    assert "cannot reach superlink = localhost:1: [Errno 111] Connection refused" in told
    init(tmp_path / "other", ["bank"], "localhost:8443", "any")
    shutil.copy(tmp_path / "other/bank/ca.crt", node_file.with_name("ca.crt"))
    code, told = check()
    assert code == 2
    assert "CERTIFICATE_VERIFY_FAILED" in told and "ca.crt is of another server" in told


def test_a_folder_in_place_of_a_nodes_file_is_answered_by_the_file_in_it(node_file: Path):
    with pytest.raises(UserError, match=f"is a folder; did you mean {node_file}\\?"):
        run_node(node_file.parent)


@pytest.mark.parametrize("port", [0, 80, 99_999])
def test_a_port_that_no_node_can_have_is_told_at_once(node_file: Path, port: int):
    node_file.write_text(re.sub(r"port = \d+", f"port = {port}", node_file.read_text()))
    with pytest.raises(UserError, match=r"node.toml: port = .*: should be (greater|less) than or equal to"):
        read_node_file(node_file)


def test_a_misspelt_key_of_a_nodes_file_is_named_before_the_one_that_it_stands_for(node_file: Path):
    node_file.write_text(node_file.read_text().replace("private-key", "privat-key"))
    with pytest.raises(UserError, match=r"unknown key privat-key; nearest are private-key"):
        read_node_file(node_file)


@pytest.mark.parametrize(
    ("file", "holds", "told"),
    [
        ("node.key", "public", "private-key = .*found no private key as made by `ssh-keygen -t ecdsa"),
        ("node.key", "ed25519", "private-key = .*found no private key as made by `ssh-keygen -t ecdsa"),
        ("ca.crt", "nothing", "root-certificates = .*expected the server's ca.crt"),
        ("node.toml", "https://", "superlink = 'https://localhost:8443': expected host:port"),
    ],
)
def test_what_no_server_would_let_in_is_told_before_it_is_tried(
    node_file: Path, file: str, holds: str, told: str
):
    """Flower's words were the same for all, and the node was started again for ever."""
    place = node_file.with_name(file)
    openssh = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
    place.write_bytes(
        {
            "public": node_file.parents[1].joinpath("server/keys/bank.pub").read_bytes(),
            "ed25519": ed25519.Ed25519PrivateKey.generate().private_bytes(
                *openssh, serialization.NoEncryption()
            ),
            "nothing": b"",
            "https://": node_file.read_bytes().replace(b'"localhost', b'"https://localhost'),
        }[holds]
    )
    with pytest.raises(UserError, match=told):
        read_node_file(node_file)


def test_a_ctrl_c_reaches_the_node_and_not_its_supernode_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A terminal interrupts the whole process group. A SuperNode interrupted twice did not sign off at its server."""
    told = tmp_path / "group"
    program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpgrp())); time.sleep(60)"

    def work(*args: Any) -> None:
        while not told.exists() or not told.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsdr.deployment.worker.work", work)
    with pytest.raises(KeyboardInterrupt):
        node._serve([sys.executable, "-c", program, str(told)], [], "", b"")
    assert int(told.read_text()) != os.getpgrp()


def test_a_clients_paths_and_settings_are_not_in_the_list_of_processes(
    node_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_another_process: None
):
    """Every user of its machine can read that list; they were there, in `--node-config`."""
    seen, commands, popen = tmp_path / "seen", list[str](), subprocess.Popen
    program = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"

    def start(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        commands.extend(command)
        return popen([sys.executable, "-c", program, str(seen)], **how)

    def work(app: Any, address: str, secret: bytes, is_alive: Callable[[], bool]) -> None:
        while is_alive():
            time.sleep(0.01)
        raise SystemExit(0)

    monkeypatch.setattr("fedsdr.deployment.worker.work", work)
    monkeypatch.setattr(node.subprocess, "Popen", start)
    with pytest.raises(SystemExit):
        run_node(node_file)
    assert str(node_file.parent) in seen.read_text()
    assert not [word for word in commands if str(node_file.parent) in word or "bank" in word]


def test_a_client_with_another_base_model_rewrites_nothing_and_both_sides_are_told(
    ask: Callable[..., Message], tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    reply = ask(make_node(tmp_path, tiny_folder), identity="another")
    assert f"model = '{tiny_folder}' is not the server's base model" in capsys.readouterr().err
    assert reply.error.reason == "AnotherBaseModel, see node-error.txt at the client, in its folder"
    assert not list(tmp_path.glob("state/**/distilled*"))
