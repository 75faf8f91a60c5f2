"""A worker's processes can be frozen; it goes on, stops or is killed all the same."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from emulator.fleet.worker_process import WorkerProcess
from tests.emulator.running import LIGHT, Client, eventually, one_endpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a worker's processes"),
]

FAMILY = ["sh", "-c", "setsid sleep 300 & sleep 300 & trap 'exit 5' TERM; wait"]


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    """A worker with two children, one in a session of its own."""
    process = await WorkerProcess.start(FAMILY, dict(os.environ), tmp_path / "w", tmp_path / "log")
    try:
        eventually(lambda: len(workers_processes(process.pid)) == 3)
        yield process
    finally:
        await process.kill()


def workers_processes(launcher_pid: int) -> list[psutil.Process]:
    return [
        process
        for keeper in psutil.Process(launcher_pid).children()
        for process in keeper.children(recursive=True)
    ]


def states(processes: list[psutil.Process]) -> set[str]:
    found: set[str] = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.status())
    return found


async def test_all_of_a_worker_stops_and_goes_on_but_nothing_above_it(
    process: WorkerProcess,
) -> None:
    inside = workers_processes(process.pid)
    above = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    assert process.freeze()
    eventually(lambda: states(inside) == {"stopped"})
    assert "stopped" not in states(above)
    process.thaw()
    eventually(lambda: "stopped" not in states(inside))


async def test_a_frozen_worker_is_killed_with_all_it_started(process: WorkerProcess) -> None:
    inside = workers_processes(process.pid)
    assert process.freeze()
    await process.kill()
    assert not [one for one in inside if one.is_running()]


async def test_a_frozen_worker_that_is_to_stop_hears_of_it(process: WorkerProcess) -> None:
    assert process.freeze()
    assert await process.stop(60) == 5


@contextlib.contextmanager
def one_light_worker() -> Iterator[tuple[Client, Callable[[], set[str]]]]:
    """An endpoint with an idle worker, and what tells the states of its processes."""
    with one_endpoint(worker=LIGHT, min_workers=1) as client:
        eventually(lambda: client.workers("idle") == 1)
        [launcher] = [
            child
            for child in psutil.Process().children()
            if any("launcher.py" in word for word in child.cmdline())
        ]
        yield client, lambda: states(workers_processes(launcher.pid))


def test_a_worker_is_frozen_for_as_long_as_it_is_said() -> None:
    with one_light_worker() as (client, now):
        began = time.monotonic()
        [worker_id] = client.control("POST", "/ep/freeze", {"seconds": 0.5})["frozen"]
        eventually(lambda: now() == {"stopped"})
        eventually(lambda: now() != {"stopped"})
        assert time.monotonic() - began >= 0.5
        assert client.control("POST", "/ep/freeze", {"seconds": 600, "worker": "x"})["frozen"] == []
        again = client.control("POST", "/ep/freeze", {"seconds": 600, "worker": worker_id})
        assert again["frozen"] == [worker_id]
        eventually(lambda: now() == {"stopped"})
        client.control("DELETE", "/ep/freeze")
        eventually(lambda: now() != {"stopped"})
        assert client.result(client.run({"a": 1}))["status"] == "COMPLETED"


def test_a_worker_that_is_frozen_when_the_emulator_ends_stops_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "emulator")
    with one_light_worker() as (client, now):
        client.control("POST", "/ep/freeze", {"seconds": 600})
        eventually(lambda: now() == {"stopped"})
    assert "stopped (SIGTERM)" in caplog.text


def test_a_crash_kills_a_frozen_worker(caplog: pytest.LogCaptureFixture) -> None:
    with one_light_worker() as (client, now):
        client.control("POST", "/ep/freeze", {"seconds": 600})
        eventually(lambda: now() == {"stopped"})
        client.control("POST", "/ep/crash")
        eventually(lambda: "died (SIGKILL)" in caplog.text)
