"""Freezing: a worker's processes stop where they are, and go on later, as FlashBoot has them do.

Linux alone tells which processes a worker has; elsewhere there are none to stop.
"""

import contextlib
import os
import signal
from collections import defaultdict
from pathlib import Path


def freeze(launcher_pid: int) -> bool:
    """Stop all processes of the launcher's worker; False if it has none.

    The launcher and its keeper go on, so that the worker can be killed as ever.
    """
    stopped: set[int] = set()
    while fresh := _worker_pids(launcher_pid) - stopped:
        _send(fresh, signal.SIGSTOP)
        stopped |= fresh  # and look again: one may have been started meanwhile
    return bool(stopped)


def thaw(launcher_pid: int) -> None:
    """Let the processes of the launcher's worker go on."""
    _send(_worker_pids(launcher_pid), signal.SIGCONT)


def _worker_pids(launcher_pid: int) -> set[int]:
    """Everything below the launcher but its keeper."""
    children = _children()
    found: set[int] = set()
    below = [pid for keeper in children[launcher_pid] for pid in children[keeper]]
    while below:
        pid = below.pop()
        found.add(pid)
        below += children[pid]
    return found


def _children() -> dict[int, list[int]]:
    """The children of every process."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "pid (name) state parent ...", and the name may hold anything.
            parent = int(stat.read_bytes().rpartition(b")")[2].split()[1])
            children[parent].append(int(stat.parent.name))
    return children


def _send(pids: set[int], signal_number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)
