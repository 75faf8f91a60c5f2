"""Runs vLLM: when the worker or vLLM ends, everything below this process is ended too.

vLLM is a tree of processes (API server, engine core, one process per GPU) that does not notice when
the worker is killed with SIGKILL, and whose branches do not always notice when its root is. A
process left behind would hold the GPU's memory. So this small parent stands between the worker and
vLLM. It asks twice a second whether the worker is still its parent, which works however the worker
ended, and it adopts vLLM's orphans (`PR_SET_CHILD_SUBREAPER`), so that it finds them wherever they
are. `PR_SET_PDEATHSIG` would reach vLLM's root only, and a pipe that closes with the worker would
be held open by the process that RunPod's SDK forks for its pings (runpod 1.12, `rp_ping.py`).

Run as a script: `launcher.py WORKER_PID FOLDER COMMAND...`. The folder is vLLM's own for temporary
files, removed in the end, since vLLM leaves its sockets behind. SIGTERM goes on to vLLM; SIGUSR1
means that everything shall be killed now. It ends as vLLM ended: with its exit code, or by its
signal.
"""

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
PARENT_CHECK_SECONDS = 0.5


def adopt_orphans() -> None:
    """Make orphaned descendants our children. Linux only; elsewhere they are lost to us."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def signal_pipe() -> int:
    """A file descriptor from which the numbers of arriving signals can be read."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    return readable


def follow(vllm_pid: int, worker_pid: int, signals: int) -> int:
    """Wait until vLLM ends and return its wait status; 0 when the worker wants or is an end."""
    while os.getppid() == worker_pid:
        if (status := reap(vllm_pid)) is not None:
            return status
        select.select([signals], [], [], PARENT_CHECK_SECONDS)
        with contextlib.suppress(BlockingIOError):
            arrived = os.read(signals, 4096)
            if signal.SIGUSR1 in arrived:
                break
            if signal.SIGTERM in arrived:
                os.kill(vllm_pid, signal.SIGTERM)
    os.kill(vllm_pid, signal.SIGKILL)  # the one child that is known where there is no /proc
    return 0


def reap(vllm_pid: int) -> int | None:
    """Collect children that have ended; vLLM's wait status if it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == vllm_pid:
            return status
        if pid == 0:
            return None


def children() -> Iterator[int]:
    """The process ids of our children, orphans included; none where there is no /proc."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold anything; the parent's id is second after it.
            if int(entry.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(entry.parent.name)


def kill_everything_below() -> None:
    """SIGKILL all descendants: each killed child hands its own children to us."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def end_like(status: int) -> None:
    """End this process the way that wait status says."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


def main() -> None:
    """Run the command until it or the worker ends."""
    worker_pid, folder, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    adopt_orphans()
    signals = signal_pipe()
    try:
        vllm = subprocess.Popen(command)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(f"cannot start vLLM: {error}")
    status = follow(vllm.pid, worker_pid, signals)
    kill_everything_below()
    shutil.rmtree(folder, ignore_errors=True)
    end_like(status)


if __name__ == "__main__":
    main()
