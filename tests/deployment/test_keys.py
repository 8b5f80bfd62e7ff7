"""Keys and names: who is let in, and who is taken off."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from fedsdr.deployment import keys as module
from fedsdr.deployment.certificates import node_key
from fedsdr.deployment.init import init
from fedsdr.deployment.keys import register, registry, status, take_peers
from fedsdr.errors import UserError
from fedsdr.recipe import check_settings
from fedsdr.server.registry import registered
from fedsdr.storage import write_json


def test_a_run_that_would_wait_for_clients_whose_keys_are_not_registered_is_refused_at_once(tmp_path: Path):
    """Node ids of Flower are numbers of 64 bits; with no registration at all names are not bound."""
    settings = check_settings({"federation": {"num_clients": 2}}, "test")
    assert registry(tmp_path, settings) == ""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/bank.pub").touch()
    with pytest.raises(UserError, match=r"0 keys are registered \(none\)"):  # not: names are believed
        registry(tmp_path, settings)
    with pytest.raises(UserError, match=r"and 1 more lie in .*keys: put the others there, then run `"):
        registry(tmp_path, settings)
    (tmp_path / "keys/hospital.pub").touch()
    with pytest.raises(UserError, match=r"and 2 more lie in .*keys: run `fedsdr deploy register .*`$"):
        registry(tmp_path, settings)
    (tmp_path / "keys/hospital.pub").unlink()
    write_json(tmp_path / "nodes/bank.json", {"key": "a", "node-id": 2**64 - 1})
    with pytest.raises(UserError, match=r"num_clients = 2, but 1 keys are registered \(bank\)"):
        registry(tmp_path, settings)
    write_json(tmp_path / "nodes/hospital.json", {"key": "b", "node-id": 7})
    assert registered(registry(tmp_path, settings)) == {"bank": (2**64 - 1, "a"), "hospital": (7, "b")}
    write_json(tmp_path / "nodes/hospital.json", ["b", 7])
    with pytest.raises(UserError, match=r"hospital\.json: no node-id"):
        registry(tmp_path, settings)


@cache
def public(name: object) -> str:
    """A node's public key; always the same one of a name."""
    return node_key()[1].decode()


@pytest.fixture
def superlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What a SuperLink has registered: node id -> key. It takes each key once, and that called bad never."""
    nodes: dict[int, str] = {}
    seen = {public("bad")}

    def flwr(server: Path, what: str, *words: str) -> dict[str, Any]:
        if what == "list":
            return {"nodes": [{"node-id": str(node), "status": "online"} for node in nodes]}
        if what == "unregister":
            del nodes[int(words[0])]
            return {}
        key = Path(words[0]).read_text()
        if key in seen:
            raise UserError("Public key already in use.")
        seen.add(key)
        nodes[2**63 + len(seen)] = key
        return {"node-id": 2**63 + len(seen)}

    monkeypatch.setattr(module, "call_flower", flwr)
    (tmp_path / "start.sh").touch()
    (tmp_path / "state.db").touch()
    (tmp_path / "keys").mkdir()
    for number, name in enumerate(("bank", "hospital")):
        (tmp_path / f"keys/{name}.pub").write_text(public(number))
    return nodes


def names(tmp_path: Path) -> dict[str, int]:
    return {client: node for client, (node, _) in registered(str(tmp_path / "nodes")).items()}


def test_a_name_is_bound_to_its_key_once_and_to_another_when_that_takes_its_place(
    tmp_path: Path, superlink: dict[int, str]
):
    register(tmp_path)
    first = names(tmp_path)
    assert sorted(first.values()) == sorted(superlink) and list(first) == ["bank", "hospital"]
    assert (tmp_path / "nodes/bank.json").stat().st_mode & 0o77 == 0
    register(tmp_path)
    assert names(tmp_path) == first
    (tmp_path / "keys/bank.pub").write_text(public(50))
    register(tmp_path)
    second = names(tmp_path)
    assert second["bank"] != first["bank"] and second["hospital"] == first["hospital"]
    assert sorted(superlink) == sorted(second.values())  # the old key is taken off


def test_a_client_whose_key_is_removed_is_taken_off(tmp_path: Path, superlink: dict[int, str]):
    register(tmp_path)
    (tmp_path / "keys/bank.pub").unlink()
    register(tmp_path)
    assert list(names(tmp_path)) == ["hospital"] and list(superlink.values()) == [public(1)]
    (tmp_path / "keys/hospital.pub").unlink()
    with pytest.raises(UserError, match="no client is admitted: put their keys into"):
        register(tmp_path)
    assert not superlink


def test_a_key_under_another_name_is_not_lost(tmp_path: Path, superlink: dict[int, str]):
    """Flower takes each key once."""
    register(tmp_path)
    first = names(tmp_path)
    (tmp_path / "keys/bank.pub").rename(tmp_path / "keys/savings-bank.pub")
    register(tmp_path)
    assert names(tmp_path) == {"hospital": first["hospital"], "savings-bank": first["bank"]}
    assert sorted(superlink) == sorted(first.values())
    (tmp_path / "keys/My Bank.pub").write_text(public(60))
    with pytest.raises(UserError, match="cannot name a folder"):
        register(tmp_path)


def test_a_key_that_was_saved_again_is_the_same_key(tmp_path: Path, superlink: dict[int, str]):
    """With another comment, or other line ends, as mail programs make them. Flower would refuse it as in use."""
    for text in (public("saved").strip() + " me@bank", public("saved").strip() + "\r\n"):
        (tmp_path / "keys/bank.pub").write_text(text)
        register(tmp_path)
        assert len(superlink) == 2
    assert names(tmp_path)["bank"] in superlink


def test_one_key_for_two_clients_is_refused_before_anything_is_done(
    tmp_path: Path, superlink: dict[int, str]
):
    (tmp_path / "keys/bank.pub").write_text(public(1).strip() + " again")
    (tmp_path / "keys/hospital.pub").write_text(public(1).strip() + " again\n")
    with pytest.raises(UserError, match=r"bank.pub and .*hospital.pub contain the same key"):
        register(tmp_path)
    assert not superlink and not names(tmp_path)


def test_whatever_else_was_registered_is_taken_off(tmp_path: Path, superlink: dict[int, str]):
    """By hand, or by a call that was killed before it wrote down the id."""
    superlink[5] = "orphan"
    register(tmp_path)
    assert sorted(superlink) == sorted(names(tmp_path).values())


def test_a_key_that_is_refused_costs_neither_its_predecessor_nor_the_others(
    tmp_path: Path, superlink: dict[int, str]
):
    (tmp_path / "keys/hospital.pub").rename(tmp_path / "later")
    register(tmp_path)
    first = names(tmp_path)
    (tmp_path / "keys/bank.pub").write_text(public("bad"))
    (tmp_path / "later").rename(tmp_path / "keys/hospital.pub")
    with pytest.raises(UserError, match=r"bank\.pub: Public key already in use"):
        register(tmp_path)
    assert names(tmp_path)["bank"] == first["bank"] in superlink
    assert "hospital" in names(tmp_path)


def test_a_damaged_file_of_a_key_is_named_before_any_key_is_taken_off(
    tmp_path: Path, superlink: dict[int, str]
):
    register(tmp_path)
    before = dict(superlink)
    for damaged in ('{"node-id": 7}', '{"node-'):
        (tmp_path / "nodes/bank.json").write_text(damaged)
        with pytest.raises(UserError, match=r"bank\.json: no node-id and key.* from a backup, or delete"):
            register(tmp_path)
    assert superlink == before


def test_a_key_whose_file_is_lost_is_told_to_be_in_use_and_what_would_do(
    tmp_path: Path, superlink: dict[int, str]
):
    register(tmp_path)
    (tmp_path / "nodes/bank.json").unlink()
    with pytest.raises(
        UserError, match=r"bank\.pub: Public key already in use\.; .* its client must create a new key"
    ):
        register(tmp_path)


def test_a_key_under_a_name_that_looks_like_another_clients_is_refused_before_anything_is_done(
    tmp_path: Path, superlink: dict[int, str]
):
    """Whoever reads the pages of a run would take one client for the other."""
    for name in ("hospita1", "b\u0430nk", "others"):
        (tmp_path / f"keys/{name}.pub").write_text(public(80))
        with pytest.raises(UserError, match=r"looks like|ASCII|cannot be named"):
            register(tmp_path)
        (tmp_path / f"keys/{name}.pub").unlink()
    assert not superlink


def test_a_public_key_under_the_name_that_ssh_keygen_gave_it_is_no_clients(
    tmp_path: Path, superlink: dict[int, str]
):
    (tmp_path / "keys/node.key.pub").write_text(public(70))
    with pytest.raises(UserError, match=r"node\.key\.pub: rename it to <client>\.pub"):
        register(tmp_path)
    assert not superlink


def test_keys_are_registered_anew_with_a_superlink_that_has_forgotten_them(
    tmp_path: Path, superlink: dict[int, str], monkeypatch: pytest.MonkeyPatch
):
    """Its database was removed."""
    register(tmp_path)
    before = names(tmp_path)
    monkeypatch.setattr(module, "_known", lambda server: set())
    monkeypatch.setattr(module, "call_flower", lambda *words: {"node-id": 77})
    register(tmp_path)
    assert list(names(tmp_path).values()) == [77, 77] != list(before.values())


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        ("private", "contains a private key.*delete it; the client makes a new one"),
        ("ed25519", "found no public key; expected the node.key.pub written by `ssh-keygen"),
        ("words", "found no public key; expected the node.key.pub written by `ssh-keygen"),
    ],
)
def test_a_file_that_holds_no_key_of_a_node_is_told_and_what_else_was_changed_holds(
    tmp_path: Path, superlink: dict[int, str], holds: str, told: str
):
    """A stolen key is taken off whatever else is wrong; the name of the bad file keeps the key that it had."""
    register(tmp_path)
    first = names(tmp_path)
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    wrong = {"private": node_key()[0], "ed25519": other.public_bytes(*form), "words": b"a key"}
    (tmp_path / "keys/hospital.pub").write_bytes(wrong[holds])
    (tmp_path / "keys/bank.pub").unlink()
    with pytest.raises(UserError, match=rf"hospital\.pub: .*{told}"):
        register(tmp_path)
    assert names(tmp_path) == {"hospital": first["hospital"]}
    assert list(superlink) == [first["hospital"]]


def test_a_superlink_that_was_never_started_is_told_without_flowers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "STARTED", 0.0)
    with pytest.raises(UserError, match=r"^run .*start\.sh first: it has never been started$"):
        module._known(tmp_path)


def test_the_status_names_each_client_with_what_the_superlink_says_of_its_node(
    tmp_path: Path, superlink: dict[int, str], monkeypatch: pytest.MonkeyPatch
):
    register(tmp_path)
    (tmp_path / "keys/office.pub").write_text(public(50))
    first = names(tmp_path)
    nodes = [{"node-id": str(first["bank"]), "status": "offline"},
             {"node-id": str(first["hospital"]), "status": "online"},
             {"node-id": "5", "status": "unregistered"}]  # fmt: skip
    monkeypatch.setattr(module, "call_flower", lambda *words: {"nodes": nodes})
    assert status(tmp_path) == {
        "bank": "offline",
        "hospital": "online",
        "office": f"not admitted yet; run `fedsdr deploy register {tmp_path}`",
    }


def test_a_client_takes_the_keys_of_the_others_and_sees_what_ssh_keygen_shows_of_each(tmp_path: Path):
    server, bank, _ = init(tmp_path / "all", ["bank", "hospital"], "localhost:8443", "any")
    assert (bank / "peers/hospital.pub").read_bytes() == (server / "keys/hospital.pub").read_bytes()
    (bank / "data").mkdir()
    (bank / "peers/hospital.pub").unlink()
    found = take_peers(bank / "node.toml", server / "keys")
    assert [path.name for path in (bank / "peers").iterdir()] == ["hospital.pub"]  # not its own
    for client in ("bank", "hospital"):
        shown = subprocess.run(
            ["ssh-keygen", "-lf", server / f"keys/{client}.pub"], capture_output=True, text=True, check=True
        )
        assert shown.stdout.split()[1] == found[client]


def test_a_key_that_was_withdrawn_is_trusted_no_more(tmp_path: Path, capsys):
    """Say, one that the clients found to be of none of them."""
    server, bank, _ = init(tmp_path / "all", ["bank", "hospital"], "localhost:8443", "any")
    (bank / "data").mkdir()
    (bank / "peers/mallory.pub").write_bytes((server / "keys/bank.pub").read_bytes())
    take_peers(bank / "node.toml", server / "keys")
    assert [path.name for path in (bank / "peers").iterdir()] == ["hospital.pub"]
    assert "mallory: is removed" in capsys.readouterr().err


def test_one_key_under_two_names_is_no_second_client(tmp_path: Path):
    """A server could sum one client with itself."""
    server, bank, _ = init(tmp_path / "all", ["bank", "hospital"], "localhost:8443", "any")
    (bank / "data").mkdir()
    (server / "keys/office.pub").write_bytes((server / "keys/hospital.pub").read_bytes())
    with pytest.raises(UserError, match=r"office\.pub: another client in .* has this key"):
        take_peers(bank / "node.toml", server / "keys")
    (bank / "node.toml").write_text((bank / "node.toml").read_text().replace("peers = ", "# peers = "))
    with pytest.raises(UserError, match=r'add peers = "peers" under \[node\]'):
        take_peers(bank / "node.toml", server / "keys")
