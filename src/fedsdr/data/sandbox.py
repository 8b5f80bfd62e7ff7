"""Run a short Python program that a model wrote, and say whether it ran to its end.

Goes in: source code with assertions at its end. Comes out: True or False. The file knows nothing of
examples. Where bubblewrap (`bwrap`) works, a program has no network, and sees no files but those of the
system, of Python and of its own empty folder. Elsewhere what is prevented are accidents (an endless loop, a
full disk, a flood of processes), and a program that sets out to break free can, by `ctypes` for one.
Everywhere programs run only where the user consents (`eval.run_programs`). POSIX only, since the limits are
those of `setrlimit`.
"""

import functools
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
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


@functools.cache
def _bubblewrap() -> tuple[str, ...]:
    """Begin of the command that runs another without network and files; () where it does not work here.

    What is left of the file system is the system's programs and libraries, and Python's own: no data, no
    account's files, nothing of /etc, /var, /proc and /tmp. Further options name the folder to work in.
    """
    bwrap = shutil.which("bwrap")
    if not bwrap:
        return ()
    system = [path for path in ("/usr", "/lib", "/lib64", "/bin") if os.path.exists(path)]
    python = {os.path.realpath(path) for path in (sys.base_exec_prefix, sysconfig.get_path("stdlib"))}
    hidden = [path for path in sorted(python) if not path.startswith("/usr/") and path != "/usr"]
    binds = [word for path in (*system, *hidden) for word in ("--ro-bind", path, path)]
    command = (bwrap, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", *binds)
    tried = subprocess.run([*command, "--", *_python(), "pass"], capture_output=True, env={}, check=False)
    return command if tried.returncode == 0 else ()


def _python() -> tuple[str, ...]:
    """The interpreter, of which an environment's is a link, with the standard library alone."""
    return os.path.realpath(sys.executable), "-I", "-S", "-c"


def isolation() -> str:
    """How programs run on this machine, for the user to read."""
    if _bubblewrap():
        return "in bubblewrap, without network and files"
    return (
        "with the rights of this account, so hostile ones can read its files and use the network: bubblewrap"
        " (bwrap), whose sandbox prevents it, is not installed or not allowed here"
    )


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
        wrap = _bubblewrap()
        inside = (*wrap, "--bind", folder, folder, "--chdir", folder, "--") if wrap else ()
        process = subprocess.Popen(
            [*inside, *_python(), driver],
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
