"""The launcher ends everything a worker has started, whatever way the end comes."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from emulator.fleet import launcher
from tests.emulator.running import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="orphans are only adopted on Linux"),
]

Launched = subprocess.Popen[bytes]


class Launch:
    """Starts commands below a launcher and ends them after the test."""

    def __init__(self) -> None:
        self.processes: list[Launched] = []

    def __call__(self, *command: str) -> Launched:
        """A launcher that runs this command."""
        process = subprocess.Popen(
            [sys.executable, "-I", launcher.__file__, *command],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def launch() -> Iterator[Launch]:
    starter = Launch()
    yield starter
    for process in starter.processes:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.close()
        process.wait(60)
        process.stderr.close()


def family(process: Launched, size: int) -> list[psutil.Process]:
    """The keeper, and below it the worker with its children once there are so many of those."""
    launcher = psutil.Process(process.pid)
    eventually(lambda: len(launcher.children(recursive=True)) == 1 + size)
    return launcher.children(recursive=True)


def end_of(process: Launched, members: list[psutil.Process]) -> None:
    """Return when they are gone; those that would be left are ended all the same."""
    try:
        process.wait(60)
        eventually(lambda: all_gone(members))
    finally:
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


# A worker with a child in its own session, like a server started by `start_new_session`.
FAMILY = "setsid sleep 300 & sleep 300 & wait"


def test_the_exit_code_is_the_workers(launch: Launch) -> None:
    assert launch("sh", "-c", "exit 7").wait(60) == 7


def test_a_worker_that_dies_of_a_signal_gives_128_plus_its_number(launch: Launch) -> None:
    assert launch("sh", "-c", "kill -KILL $$").wait(60) == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_is_said_so(launch: Launch) -> None:
    process = launch("/no/such/command")
    assert process.wait(60) == 127
    assert process.stderr is not None
    assert b"cannot start /no/such/command" in process.stderr.read()


def test_a_closed_pipe_kills_the_worker_and_all_its_children(launch: Launch) -> None:
    process = launch("sh", "-c", FAMILY)
    members = family(process, 3)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)
    assert all_gone(members)


def test_a_launcher_that_is_killed_leaves_nothing_behind(launch: Launch) -> None:
    process = launch("sh", "-c", FAMILY)
    members = family(process, 3)
    process.kill()
    end_of(process, members)


def test_a_keeper_that_is_killed_leaves_nothing_behind(launch: Launch) -> None:
    process = launch("sh", "-c", FAMILY)
    members = family(process, 3)
    [keeper] = psutil.Process(process.pid).children()
    keeper.kill()
    end_of(process, members)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_launcher_that_is_killed_with_its_process_group_leaves_nothing_behind(
    launch: Launch,
) -> None:
    process = launch("sh", "-c", FAMILY)
    members = family(process, 3)
    os.killpg(process.pid, signal.SIGKILL)
    end_of(process, members)


def test_a_worker_dies_with_its_launcher_and_its_keeper(launch: Launch) -> None:
    process = launch("sleep", "300")
    members = family(process, 1)
    [keeper] = psutil.Process(process.pid).children()
    keeper.suspend()
    process.kill()
    keeper.kill()
    end_of(process, members)


def test_what_a_worker_leaves_behind_is_killed(launch: Launch, tmp_path: Path) -> None:
    leave = f"sh -c 'echo $$ > {tmp_path}/%d; exec sleep 300' &"
    until_both = f"until test -s {tmp_path}/1 -a -s {tmp_path}/2; do sleep 0.02; done"
    process = launch("sh", "-c", f"setsid {leave % 1} {leave % 2} {until_both}")
    assert process.wait(60) == 0
    pids = [int((tmp_path / name).read_text()) for name in ("1", "2")]
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_sigterm_reaches_a_worker_that_is_just_being_started(launch: Launch) -> None:
    process = launch("sleep", "300")
    eventually(psutil.Process(process.pid).children)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def test_sigterm_reaches_the_worker_and_only_it(launch: Launch, tmp_path: Path) -> None:
    """Like in a container: the children work on until the worker has drained."""
    told = tmp_path / "told"
    child = f"trap 'touch {tmp_path}/child' TERM; sleep 300 & wait"
    worker = f'sh -c "{child}" & trap "touch {told}; exit 0" TERM; touch {tmp_path}/up; wait'
    process = launch("sh", "-c", worker)
    eventually((tmp_path / "up").exists)
    members = family(process, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert told.exists()
    assert not (tmp_path / "child").exists()
    assert all_gone(members)
