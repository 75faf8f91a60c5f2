"""What processes cost, read from the system, and on which cores they run."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from scripts.processes import LAUNCHER

_SCHEDULED_TIME: Final = 2
"""Linux's CPUCLOCK_SCHED: what the scheduler counts of a process, in nanoseconds."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """The CPU time that these processes have used so far."""
    return sum(map(_cpu_seconds, pids))


def memory_bytes(pids: Iterable[int]) -> int:
    """The memory that these processes have for themselves."""
    return sum(map(_own_bytes, pids))


def _cpu_seconds(pid: int) -> float:
    """By the clock of its CPU time, as clock_getcpuclockid(3) names it: of all its threads.

    /proc/PID/stat would tell ticks of ten milliseconds, /proc/PID/schedstat its first thread alone.
    """
    try:
        return time.clock_gettime(~pid << 3 | _SCHEDULED_TIME)
    except OSError:  # it has ended
        return 0.0


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def programs_below(pid: int) -> tuple[int, ...]:
    """The processes below a launcher, without those that only hold them together."""
    return tuple(
        one.pid for one in psutil.Process(pid).children(recursive=True) if _is_program(one)
    )


def _is_program(process: psutil.Process) -> bool:
    try:
        return str(LAUNCHER) not in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


class Cores:
    """Which cores the target under test has, and which all the others."""

    def __init__(self) -> None:
        usable = sorted(os.sched_getaffinity(0))
        self.target = {usable[0]}
        self.others = set(usable[1:]) or self.target
        """On one core alone nothing can be told apart."""

    @contextmanager
    def for_target(self) -> Iterator[None]:
        """What is started meanwhile runs on the target's core."""
        os.sched_setaffinity(0, self.target)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.others)
