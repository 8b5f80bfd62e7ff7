"""Run a short Python program written by a model, and report whether it ran to its end.

Input: source code that ends with assertions. Output: True or False. Where bubblewrap (`bwrap`) works, a
program has no network, and sees only the files of the system, of Python and of its own empty folder.
Elsewhere the limits prevent accidents only (an endless loop, a full disk, a flood of processes): a malicious
program can escape, for example through `ctypes`. In both cases programs run only with the user's consent
(`eval.run_programs`). POSIX only, because the limits use `setrlimit`.
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
_MEMORY_BYTES = 512 * 2**20  # of address space; Python itself needs about 20 MB

# Runs before the program, in the program's own process: setting limits here needs no code between fork and
# exec in the parent, which is unsafe with torch's threads. The program is read from standard input to its
# end, so the program itself finds that closed. It is not "__main__": a script's main part does not run.
# RLIMIT_NPROC counts all processes of a user and does not bind root, hence the audit hook.
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
    """Command prefix that runs a command without network and files; () if that does not work here.

    The file system contains only the system's programs and libraries, and Python's own: no data, no user
    files, nothing of /etc, /var, /proc and /tmp. Further options name the working folder.
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
    """The base interpreter behind a virtual environment, with the standard library only."""
    return os.path.realpath(sys.executable), "-I", "-S", "-c"


def isolation() -> str:
    """Describe to the user how programs run on this machine."""
    if _bubblewrap():
        return "in bubblewrap, without network and files"
    return (
        "with this account's rights, so a malicious one can read its files and use the network: bubblewrap"
        " (bwrap), which prevents this, is not installed or not permitted"
    )


def run_python(source: str, timeout: float = 5.0) -> bool:
    """Run a program and return whether it reached its last line without an error.

    It runs in an empty folder that is deleted afterwards, with an empty environment, no input, discarded
    output and only the standard library. Creating processes or connections, deleting files and writing
    outside the folder are refused, which counts as an error.

    Args:
        source: The program with its tests at the end. Exiting early, as by ``sys.exit(0)``, does not pass.
        timeout: Time limit in seconds, of wall-clock time and (rounded up) of CPU time.

    Raises:
        RuntimeError: The program did not start, for example because the system refused a limit.
    """
    nonce = secrets.token_hex(16)  # the program cannot report by accident that it reached its end
    with tempfile.TemporaryFile() as report, tempfile.TemporaryDirectory() as folder:
        driver = _DRIVER.format(
            memory=_MEMORY_BYTES,
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
