import shutil
import sys
import time

import pytest

from fedsdr.data.sandbox import run_python


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
    # Python itself sets LC_CTYPE where the environment names no language.
    assert run_python("import os\nassert set(os.environ) <= {'LC_CTYPE'}")


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
