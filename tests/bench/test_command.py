"""`make bench`, in short: it starts everything itself, and leaves nothing behind."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scripts.processes import ROOT
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

LAUNCHED = 3
"""The processes of one program: its launcher, the launcher's keeper, and the program."""


@contextmanager
def bench(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of it; what it says goes to the log."""
    command = [sys.executable, "-m", "tests.bench", *arguments]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def test_a_short_run_tells_its_figures(tmp_path: Path) -> None:
    log = tmp_path / "log"
    limits = ("--streams", "2", "--rounds", "1", "--seconds", "0.5")
    with bench("--only", "relay,queue", *limits, log=log) as process:
        assert process.wait(100) == 0, log.read_text()
    text = log.read_text()
    assert "**2 streams**, in ms" in text
    for title in ("queue, 20 ms of network", "load-balancing relay"):
        rows = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
        assert any(row.endswith("| 0, 0, 0 |") for row in rows)  # lost, repeated, failed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing_running(number: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with bench("--only", "queue", "--streams", "2", "--seconds", "60", log=log) as process:
        wait_until(lambda: "starting queue" in log.read_text())
        wait_until(lambda: len(below(process)) > LAUNCHED)
        there = below(process)
        process.send_signal(number)
        assert process.wait(60) == 130
    assert "nothing was written" in log.read_text()
    wait_until(lambda: not any(one.is_running() for one in there))


def below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Everything that it has started and that still runs."""
    return psutil.Process(process.pid).children(recursive=True)


def test_a_target_that_nobody_knows_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with bench("--only", "nonsense", log=log) as process:
        assert process.wait(60) == 1
    assert "no such target: nonsense; there are chain-channel, " in log.read_text()
