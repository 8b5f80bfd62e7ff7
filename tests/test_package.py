"""What importing the package does to a process."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["nothing set", "a spin count", "a wait policy"],
)
def test_waiting_threads_spin_shortly_unless_the_user_chose(own: dict[str, str], expected: str):
    """Beside other processes, threads that spin while they wait made a step ten times as slow and more."""
    plain = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    program = "import fedsdr, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=plain | own, capture_output=True, text=True)
    assert done.stdout.split() == [expected, "False"]
