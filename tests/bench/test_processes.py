"""What a process costs is told finely, and of all its threads."""

import os
import subprocess
import sys
import threading
import time

from tests.bench.processes import cpu_seconds


def spin(seconds: float) -> None:
    """Use so much CPU time in this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_less_than_a_tick_of_cpu_time_is_seen() -> None:
    for _ in range(5):
        before = cpu_seconds([os.getpid()])
        spin(0.001)
        assert cpu_seconds([os.getpid()]) - before >= 0.001


def test_threads_count_also_when_they_have_ended() -> None:
    before = cpu_seconds([os.getpid()])
    thread = threading.Thread(target=spin, args=(0.02,))
    thread.start()
    thread.join()
    assert cpu_seconds([os.getpid()]) - before >= 0.02


def test_a_process_that_has_ended_counts_for_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert cpu_seconds([ended.pid]) == 0.0
