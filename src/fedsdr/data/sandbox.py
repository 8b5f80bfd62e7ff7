"""Run a short Python program that a model wrote, and say whether it ran to its end.

Goes in: source code with assertions at its end. Comes out: True or False. The file knows nothing of
examples. What it prevents are accidents (an endless loop, a full disk, a flood of processes); it is
no security boundary: a program that sets out to break free can. Use a container or a virtual machine
for programs that you do not trust. POSIX only, since the limits are those of `setrlimit`.
"""

import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile

_FILE_BYTES = 1_000_000

# Runs before the program, in the program's own process: limits set here need no code between fork
# and exec in the parent, which is unsafe beside torch's threads. The program is the whole of standard
# input, so the program itself finds that closed. It is not "__main__": a script's main part is not run.
# RLIMIT_NPROC counts all processes of a user and does not bind root, hence the audit hook instead.
_DRIVER = """
import os, resource, signal, sys
for limit, value in (("AS", {memory}), ("CPU", {seconds}), ("FSIZE", {file_bytes}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
signal.alarm({seconds} + 1)  # ends the program even if its parent is gone
source, folder = sys.stdin.buffer.read(), os.path.realpath(".")
refused = ("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "subprocess.",
           "pty.", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown",
           "shutil.", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto")
def hook(event, args, inside=os.path.realpath, writing=os.O_WRONLY | os.O_RDWR | os.O_CREAT):
    if event.startswith(refused):
        raise PermissionError(event)
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & writing:
        if not inside(os.fsdecode(args[0])).startswith(folder + os.sep):
            raise PermissionError(event)
sys.addaudithook(hook)
os.write({report}, b"started")
exec(compile(source, "program", "exec"), {{"__name__": "program"}})
os.write({report}, b"{nonce}")
"""


def run_python(source: str, timeout: float = 5.0, memory_mb: int = 512) -> bool:
    """Run a program and say whether it reached its last line without an error.

    It runs by itself in an empty folder that is deleted afterwards, with an empty environment, no
    input, its output discarded and the standard library alone. New processes, connections, deleting
    files and writing outside the folder are refused, which counts as an error.

    Args:
        source: The program, its tests at the end. Leaving early, as by ``sys.exit(0)``, does not pass.
        timeout: Seconds that it may take, of the clock and (rounded up) of the processor.
        memory_mb: Megabytes of address space; Python itself needs about 20.

    Raises:
        RuntimeError: The program was not even begun, for instance since the system refuses a limit.
    """
    nonce = secrets.token_hex(16)  # the program cannot pretend by accident that its tests were reached
    with tempfile.TemporaryFile() as report, tempfile.TemporaryDirectory() as folder:
        driver = _DRIVER.format(
            memory=memory_mb * 2**20,
            seconds=math.ceil(timeout),
            file_bytes=_FILE_BYTES,
            report=report.fileno(),
            nonce=nonce,
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", driver],
            cwd=folder,
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(report.fileno(),),
            start_new_session=True,
        )
        try:
            process.communicate(source.encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        report.seek(0)
        written = report.read().decode()
    if not written.startswith("started"):
        raise RuntimeError(f"the sandbox did not start: Python ended with code {process.returncode}")
    return process.returncode == 0 and written == "started" + nonce
