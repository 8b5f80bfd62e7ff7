"""The executor of a SuperLink: starts a process for each run, which runs only the installed server app.

Flower's own executor passes each run's token as a command-line argument, which every user of the machine can
read, and runs any code that came with the run. Here tokens and secrets go through pipes, and `server_worker`
never unpacks code that came with a run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from flwr.supercore.constant import TaskType

from fedsdr.deployment.runtime import take_tasks
from fedsdr.deployment.superlink import end_with_parent


def start_executor(address: str, authority: Path, secret: bytes) -> subprocess.Popen[bytes]:
    """Start the executor of a SuperLink; it ends with this process.

    Args:
        address: Address of the SuperLink, host:port on this machine.
        authority: Certificate of the authority that signed the SuperLink's.
        secret: Secret by which the SuperLink authenticates its executor.
    """
    return _start("executor", address=address, authority=str(authority), secret=secret.hex())


def _start(module: str, **words: str) -> subprocess.Popen[bytes]:
    # -P: import nothing from the working directory.
    command = [sys.executable, "-P", "-m", f"fedsdr.deployment.{module}"]
    # In its own session: Ctrl-C stops the SuperLink, which stops it.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, preexec_fn=end_with_parent, start_new_session=True
    )
    assert process.stdin
    with process.stdin as pipe:
        pipe.write(json.dumps(words).encode())
    return process


def main() -> None:
    """Take the SuperLink's tasks and start a process for each, until the SuperLink ends."""
    given = json.load(sys.stdin)
    address, authority = given["address"], given["authority"]
    running: list[subprocess.Popen[bytes]] = []

    def do(token: str) -> None:
        running[:] = [process for process in running if process.poll() is None]  # reap finished processes
        running.append(_start("server_worker", address=address, authority=authority, token=token))

    secret, certificates = bytes.fromhex(given["secret"]), Path(authority).read_bytes()
    superlink = os.getppid()
    take_tasks(address, secret, TaskType.SERVER_APP, do, lambda: os.getppid() == superlink, certificates)


if __name__ == "__main__":
    main()
