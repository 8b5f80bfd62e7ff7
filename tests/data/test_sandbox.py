import shutil
import socket
import sys
import time

import pytest

from fedsdr.data import sandbox
from fedsdr.data.sandbox import run_python


@pytest.fixture(autouse=True, params=["bubblewrap", "limits alone"])
def with_and_without_bubblewrap(request, monkeypatch):
    """All laws hold in both; `_bubblewrap` is () where it does not work."""
    if request.param == "limits alone":
        monkeypatch.setattr(sandbox, "_bubblewrap", tuple)
    elif not sandbox._bubblewrap():
        pytest.skip("bubblewrap is not installed, or may not make a sandbox here")
    return request.param


def test_a_program_whose_assertions_hold_passes():
    assert run_python("def double(n):\n    return 2 * n\n\nassert double(4) == 8\nprint('done')")


@pytest.mark.parametrize(
    "source",
    [
        "assert 1 + 1 == 3",
        "def broken(:",
        "raise SystemExit(0)\nassert False",
        "import os\nos._exit(0)\nassert False",
        "input()",
        "import sys\nassert sys.stdin.read()",
        "text = '''never closed",
        "def again():\n    again()\nagain()",
        "block = bytearray(600_000_000)",
        "open('big', 'wb').write(bytes(5_000_000))",
        "open('/var/tmp/outside', 'w')",
        "import os\nos.remove('/nothing')",
        "import os\nos.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.kill(os.getppid(), 0)",
        "import socket\nsocket.create_connection(('localhost', 9))",
    ],
)
def test_what_fails_or_leaves_early_or_reaches_out_does_not_pass(source):
    assert not run_python(source)


@pytest.mark.parametrize("source", ["while True: pass", "import time\ntime.sleep(60)"])
def test_an_endless_program_is_ended_at_the_timeout(source):
    begun = time.monotonic()
    assert not run_python(source, timeout=0.5)
    assert time.monotonic() - begun < 5


def test_a_program_sees_no_environment_variable_of_its_parent(monkeypatch):
    monkeypatch.setenv("SECRET_WORD", "sesame")
    # Python itself sets LC_CTYPE where the environment names no language, and bubblewrap PWD.
    assert run_python("import os\nassert set(os.environ) <= {'LC_CTYPE', 'PWD'}")


def test_a_program_starts_in_an_empty_folder_in_which_it_may_write():
    source = "import os\nassert os.listdir() == []\nopen('a', 'w').write('b')\nassert open('a').read() == 'b'"
    assert run_python(source)
    assert run_python(source), "nothing of the first run is left"


def test_a_script_part_is_not_run():
    assert run_python("if __name__ == '__main__':\n    raise SystemExit(1)\nassert True")


def test_a_sandbox_that_cannot_start_is_an_error_and_no_score(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="did not start"):
        run_python("assert True")


# What goes round Python's audit hook, straight to the system.
WRITES = "import ctypes\nassert ctypes.CDLL(None).creat({path!r}, 0o600) != -1\n"
READS = "import ctypes\nassert ctypes.CDLL(None).access({path!r}, 4) == 0\n"
CONNECTS = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", {port}) + bytes([127, 0, 0, 1]) + bytes(8)
assert libc.connect(libc.socket(2, 1, 0), address, 16) == 0
"""


def test_a_hostile_program_reaches_files_and_network_without_bubblewrap_and_neither_with_it(
    tmp_path, with_and_without_bubblewrap
):
    """The second half checks the statement of docs/threat_model.md on what remains possible without bubblewrap."""
    is_hidden = with_and_without_bubblewrap == "bubblewrap"
    secret, planted = tmp_path / "patients.jsonl", tmp_path / "planted"
    secret.write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        attacks = (
            READS.format(path=bytes(secret)),
            WRITES.format(path=bytes(planted)),
            CONNECTS.format(port=port),
        )
        assert [run_python(source) for source in attacks] == 3 * [not is_hidden]
    assert planted.exists() is not is_hidden
    assert ("without network and files" in sandbox.isolation()) is is_hidden
