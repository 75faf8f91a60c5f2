"""The parent of one worker, and what a container is on RunPod: when it ends, all in it ends.

Run as a script by the emulator, as `python launcher.py COMMAND...`, with a pipe on stdin:

- SIGTERM asks the worker, and only it, to stop (its children keep running, as in a container);
- when the pipe closes, because the emulator wants it or because the emulator died, everything
  the worker has started is killed, and so is the worker;
- when the worker exits, everything it left behind is killed, and its exit code is ours.

It is two processes, so that SIGKILL of either leaves nothing behind: the keeper is the worker's
parent, and the launcher that the emulator knows is the keeper's. The keeper sees by a pipe that the
launcher has died; the launcher inherits what a dead keeper leaves.

On Linux both adopt orphans (PR_SET_CHILD_SUBREAPER), so a process that hid in a session of its own
is found too; elsewhere only the worker's process group is, and by the keeper alone. Standard
library only, and nothing of the emulator: it starts in some tens of milliseconds.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

STDIN = 0


def main(command: list[str]) -> int:
    """Run the command until it exits or stdin closes; its exit code, or 128 + signal number."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Until there is a child to pass it on to: a fork would lose it or have it passed on twice.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    launcher_lives, held_open = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(held_open)
        os.setsid()  # a SIGKILL for the launcher's process group is not for the keeper
        return _keep(command, launcher_lives)
    os.close(launcher_lives)
    return _wait_for(keeper)


def _keep(command: list[str], launcher_lives: int) -> int:
    """Be the worker's parent to its end."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_before_exec
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        return 127
    pipes = (STDIN, launcher_lives)
    threading.Thread(target=_kill_when_one_closes, args=(pipes, worker.pid), daemon=True).start()
    return _wait_for(worker.pid)


def _wait_for(child: int) -> int:
    """Pass SIGTERM on until the child exits, then kill what it left; its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: _send(child, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    code = _reap_until(child)
    _kill_group(child)
    _kill_descendants()
    return code if code >= 0 else 128 - code


def _before_exec() -> None:
    """The worker hears SIGTERM, and goes should both its ancestors be killed at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _kill_when_one_closes(pipes: tuple[int, ...], worker_pid: int) -> None:
    while all(os.read(pipe, 1024) for pipe in select.select(pipes, [], [])[0]):
        pass
    _kill_group(worker_pid)


def _reap_until(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _kill_descendants() -> None:
    """Kill our children and reap them, until those they leave to us are gone as well."""
    while children := _children():
        for pid in children:
            _send(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    """Our living children; none where there is no /proc."""
    own_pid = str(os.getpid()).encode()
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "pid (name) state parent ...", and the name may hold anything.
            parent = stat.read_bytes().rpartition(b")")[2].split()[1]
            if parent == own_pid:
                children.append(int(stat.parent.name))
    return children


def _send(pid: int, signal_number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal_number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
