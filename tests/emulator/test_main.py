"""`python -m emulator` as a process: what it prints, and what is left when it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.emulator.running import API_KEY, LIGHT, SCRIPTED, Client, eventually
from tests.servers import free_port

pytestmark = pytest.mark.slow


class Running:
    """An emulator in a process of its own."""

    def __init__(self, worker: str, log: Path, *more: str) -> None:
        port = free_port()
        self.log = log
        flags = [
            *more,
            "--port",
            str(port),
            "--api-key",
            API_KEY,
            "--endpoint",
            "ep",
            "--max-workers=1",
        ]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "emulator", *flags, "--worker", worker],
                cwd=Path(__file__).parents[2],
                stderr=file,
            )
        eventually(lambda: "ready: " in log.read_text())
        self.client = Client(f"http://127.0.0.1:{port}", "ep")

    def family(self) -> list[psutil.Process]:
        """Every process below the emulator's."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def running(worker: str, log: Path, *more: str) -> Iterator[Running]:
    """An emulator with this worker, killed at the end if it still runs."""
    started = Running(worker, log, *more)
    try:
        yield started
    finally:
        started.client.http.close()
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait(60)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


def test_a_killed_emulator_leaves_no_worker(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with running(SCRIPTED, tmp_path / "log") as emulator:
        emulator.client.run({"steps": [["touch", str(begun)], ["wait", str(tmp_path / "never")]]})
        eventually(begun.exists)
        family = emulator.family()
        assert len(family) >= 3, "launcher, worker, heartbeat"
        os.kill(emulator.process.pid, signal.SIGKILL)
        eventually(lambda: gone(family))


def test_calls_that_are_held_end_quietly_with_the_emulator(tmp_path: Path) -> None:
    config = tmp_path / "counting.toml"
    config.write_text('endpoints = [{ id = "ep", rate_limits = true }]')
    with (
        running("", tmp_path / "log", "--config", str(config)) as emulator,
        ThreadPoolExecutor() as pool,
    ):
        job_id = emulator.client.run({"a": 1})
        held = pool.submit(emulator.client.stream, job_id, 50_000)
        eventually(lambda: emulator.client.admitted("stream") == 1)
        emulator.process.terminate()
        assert held.result() == {"status": "IN_QUEUE", "stream": []}
        emulator.process.wait(60)
        assert emulator.log.read_text().count("\n") == 1, "the line that says ready"


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_emulator_that_is_told_to_stop_stops_its_workers(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    with running(LIGHT, tmp_path / "log") as emulator:
        emulator.client.result(emulator.client.run({"a": 1}))
        family = emulator.family()
        emulator.process.send_signal(signal_number)
        emulator.process.wait(60)
        assert gone(family)
        log = emulator.log.read_text()
    assert "started (pid" in log
    assert "ready after" in log
    assert "stopped (SIGTERM)" in log
    assert "Traceback" not in log


def test_a_second_ctrl_c_does_not_wait_for_running_jobs(tmp_path: Path) -> None:
    config, begun = tmp_path / "patient.toml", tmp_path / "begun"
    config.write_text('endpoints = [{ id = "ep", stop_grace_seconds = 600 }]')
    with running(SCRIPTED, tmp_path / "log", "--config", str(config)) as emulator:
        emulator.client.run({"steps": [["touch", str(begun)], ["wait", str(tmp_path / "never")]]})
        eventually(begun.exists)
        family = emulator.family()
        emulator.process.send_signal(signal.SIGINT)
        eventually(lambda: "stopping: the emulator stops" in emulator.log.read_text())
        emulator.process.send_signal(signal.SIGINT)
        assert emulator.process.wait(60) == 0
        assert gone(family)
        log = emulator.log.read_text()
    assert "stopped (SIGKILL)" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-workers", "3"], "min_workers is above max_workers"),
        (
            ["--worker", "sh -c 'unbalanced"],
            "endpoints.0.worker: No closing quotation",
        ),
        (["--config", "none.toml"], "none.toml: [Errno 2]"),
        (["--scenario", "none.toml"], "none.toml: [Errno 2]"),
        (["--scenario", "README.md"], "README.md: "),
        (["--scenario", "pyproject.toml"], ": there is no such field"),
    ],
)
def test_settings_that_make_no_sense_end_it_with_a_message(flags: list[str], message: str) -> None:
    wrong = [sys.executable, "-m", "emulator", *flags]
    root = Path(__file__).parents[2]
    ended = subprocess.run(wrong, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
