"""The parent of one worker, and what a container is on RunPod: when it ends, all in it ends.

Run as a script by the emulator, as `python launcher.py COMMAND...`, with a pipe on stdin:

- SIGTERM asks the worker, and only it, to stop (its children keep running, as in a container);
- when the pipe closes, because the emulator wants it or because the emulator died, everything
  the worker has started is killed, and so is the worker;
- when the worker exits, everything it left behind is killed, and its exit code is ours.

On Linux the launcher adopts orphans (PR_SET_CHILD_SUBREAPER), so a process that hid in a session
of its own is found too; elsewhere only the worker's process group is. Standard library only, and
nothing of the emulator: it starts in some tens of milliseconds.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run the command until it exits or stdin closes; its exit code, or 128 + signal number."""
    _adopt_orphans()
    stop_asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop_asked.set())
    try:
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error}\n")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: _send(worker.pid, signal.SIGTERM))
    if stop_asked.is_set():
        _send(worker.pid, signal.SIGTERM)
    threading.Thread(target=_kill_when_stdin_closes, args=(worker.pid,), daemon=True).start()
    code = _reap_until(worker.pid)
    _kill_group(worker.pid)
    _kill_descendants()
    return code if code >= 0 else 128 - code


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_when_stdin_closes(worker_pid: int) -> None:
    while os.read(0, 1024):
        pass
    _kill_group(worker_pid)


def _reap_until(worker_pid: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == worker_pid:
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
