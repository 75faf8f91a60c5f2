"""Workers come and go as jobs do, and nothing of them stays behind."""

import contextlib
import logging
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.emulator.running import LIGHT, SCRIPTED, eventually, one_endpoint

pytestmark = pytest.mark.slow


class Family:
    """The processes a test has started, apart from those of other tests' fixtures."""

    def __init__(self) -> None:
        self._strangers = set(psutil.Process().children(recursive=True))

    def all(self) -> list[psutil.Process]:
        """Launchers, workers, and what those have started."""
        return [one for one in psutil.Process().children(recursive=True) if self._is_ours(one)]

    def workers(self) -> list[int]:
        """The process ids of the workers' main processes."""
        pids = []
        for launcher in psutil.Process().children():
            if self._is_ours(launcher):
                with contextlib.suppress(psutil.NoSuchProcess):
                    keepers = launcher.children()
                    pids += [child.pid for keeper in keepers for child in keeper.children()]
        return pids

    def _is_ours(self, process: psutil.Process) -> bool:
        return process not in self._strangers


@pytest.fixture(autouse=True)
def family() -> Iterator[Family]:
    """Whatever a test does, no process it started outlives its emulator."""
    found = Family()
    yield found
    assert found.all() == []


def said(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    """The emulator's log lines that match."""
    messages = [record.getMessage() for record in caplog.records if record.name == "emulator"]
    return [message for message in messages if re.search(pattern, message)]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="emulator")
    return caplog


# Up


def test_a_job_wakes_a_worker_from_zero(family: Family) -> None:
    with one_endpoint(worker=LIGHT, idle_timeout_seconds=600) as client:
        assert family.all() == []
        job_id = client.run({"a": 1})
        assert client.result(job_id)["output"] == {"a": 1}
        assert client.workers("idle") == client.workers("ready") == 1


def test_a_starting_worker_counts_as_initializing() -> None:
    with one_endpoint(worker="sleep 300") as client:
        client.run({"a": 1})
        eventually(lambda: client.workers("initializing") == 1)


def test_the_cold_start_delay_is_part_of_the_delay_time() -> None:
    with one_endpoint(worker=LIGHT, cold_start_delay_seconds=0.7) as client:
        assert client.result(client.run({"a": 1}))["delayTime"] >= 700
        # A warm worker may be slow too, but not always.
        eventually(lambda: client.result(client.run({"a": 1}))["delayTime"] < 700)


def test_min_workers_are_up_without_a_job_and_stay(tmp_path: Path, family: Family) -> None:
    with one_endpoint(
        worker=LIGHT, min_workers=1, max_workers=2, scaler_value=1, idle_timeout_seconds=0.2
    ) as client:
        eventually(lambda: client.workers("idle") == 1)
        gate = tmp_path / "gate"
        for _ in range(2):
            client.run({"until": str(gate)})
        eventually(lambda: client.workers("running") == 2)
        gate.touch()
        eventually(lambda: len(family.workers()) == 1)
        eventually(lambda: client.workers("idle") == 1)


def test_jobs_per_worker_decide_how_many_workers_there_are(tmp_path: Path, family: Family) -> None:
    with one_endpoint(worker="sleep 300", max_workers=3, scaler_value=2) as client:
        for jobs, workers in [(2, 1), (1, 2), (1, 2), (6, 3)]:
            for _ in range(jobs):
                client.run({"a": 1})
            eventually(lambda: len(family.workers()) == workers)  # noqa: B023  # used at once
            assert client.workers("initializing") == workers


@pytest.mark.parametrize("scaler", ["request_count", "queue_delay"])
def test_there_are_never_more_workers_than_allowed(
    tmp_path: Path, scaler: str, family: Family
) -> None:
    with one_endpoint(worker=LIGHT, max_workers=1, scaler=scaler, scaler_value=0.3) as client:
        begun, gate = tmp_path / "begun", tmp_path / "gate"
        client.run({"begun": str(begun), "until": str(gate)})
        eventually(begun.exists)
        waiting = client.run({"a": 1})
        assert client.stream(waiting, 1000)["status"] == "IN_QUEUE"
        assert len(family.workers()) == 1
        gate.touch()
        assert client.result(waiting)["status"] == "COMPLETED"


def test_a_worker_that_takes_long_to_stop_is_one_of_those_allowed(
    tmp_path: Path, log: pytest.LogCaptureFixture, family: Family
) -> None:
    stopping, gate = tmp_path / "stopping", tmp_path / "gate"
    leave = f"touch {stopping}; until test -e {gate}; do sleep 0.05; done; kill $!; exit"
    slow = f"sh -c 'trap \"{leave}\" TERM; {LIGHT} & wait'"
    with one_endpoint(worker=slow, idle_timeout_seconds=0.2, stop_grace_seconds=30) as client:
        client.result(client.run({"n": 1}))
        eventually(stopping.exists)
        waiting = client.run({"n": 2})
        assert client.stream(waiting, 1000)["status"] == "IN_QUEUE"
        assert len(family.workers()) == 1
        gate.touch()
        assert client.result(waiting)["output"] == {"n": 2}


def test_jobs_of_low_priority_start_no_worker(
    log: pytest.LogCaptureFixture, family: Family
) -> None:
    with one_endpoint(worker=LIGHT) as client:
        patient = client.run({"n": 1}, policy={"lowPriority": True})
        assert client.stream(patient, 1000)["status"] == "IN_QUEUE"
        assert family.workers() == []
        client.run({"n": 2})
        assert client.result(patient)["output"] == {"n": 1}


def test_a_job_that_waits_too_long_brings_one_more_worker(tmp_path: Path, family: Family) -> None:
    with one_endpoint(
        worker=LIGHT,
        max_workers=3,
        scaler="queue_delay",
        scaler_value=0.5,
        idle_timeout_seconds=600,
    ) as client:
        client.run({"begun": str(tmp_path / "begun"), "until": str(tmp_path / "never")})
        eventually((tmp_path / "begun").exists)
        second = client.run({"a": 1})
        assert client.result(second)["delayTime"] >= 500
        assert len(family.workers()) == 2


def test_while_a_worker_starts_no_further_one_is_brought() -> None:
    with one_endpoint(
        worker="sleep 300", max_workers=3, scaler="queue_delay", scaler_value=0.1
    ) as client:
        job_id = client.run({"a": 1})
        client.stream(job_id, 1000)
        client.run({"a": 1})
        assert client.workers("initializing") == 1


# Down


def test_an_idle_endpoint_scales_to_zero_and_leaves_no_process(
    tmp_path: Path, family: Family
) -> None:
    """The SDK's worker has a second process, for its pings."""
    gate = tmp_path / "gate"
    with one_endpoint(worker=SCRIPTED, idle_timeout_seconds=1) as client:
        job_id = client.run({"steps": [["yield", 1], ["wait", str(gate)]]})
        client.news(job_id)
        assert len(family.all()) >= 3, "launcher, worker, heartbeat"
        gate.touch()
        client.outputs(job_id)
        eventually(lambda: family.all() == [])
        eventually(lambda: set(client.health()["workers"].values()) == {0})


def test_a_busy_worker_is_not_idle(tmp_path: Path) -> None:
    with one_endpoint(worker=LIGHT, idle_timeout_seconds=0.2) as client:
        gate = tmp_path / "gate"
        job_id = client.run({"until": str(gate)})
        eventually(lambda: client.status(job_id)["status"] == "IN_PROGRESS")
        assert client.stream(job_id, 1000)["status"] == "IN_PROGRESS"
        gate.touch()
        assert "retries" not in client.result(job_id)


def test_a_job_that_meets_a_stopping_worker_waits_for_the_next(
    log: pytest.LogCaptureFixture,
) -> None:
    """The SDK would take it on its last poll and never run it."""
    with one_endpoint(worker=SCRIPTED, idle_timeout_seconds=0.5) as client:
        first = client.run({"steps": [["yield", 1]]})
        client.outputs(first)
        eventually(lambda: said(log, "stopping: it was idle"))
        second = client.run({"steps": [["yield", 2]]})
        assert client.outputs(second) == [2]
        view = client.status(second)
        assert view["workerId"] != client.status(first)["workerId"]
        assert "retries" not in view


def test_a_stopping_emulator_lets_running_jobs_finish(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    gate = tmp_path / "gate"

    def open_gate() -> None:
        eventually(lambda: said(log, "stopping: the emulator stops"))
        gate.touch()

    with ThreadPoolExecutor() as pool:
        # With limits, so that calls are counted.
        with one_endpoint(worker=SCRIPTED, stop_grace_seconds=50, rate_limits=True) as client:
            job_id = client.run({"steps": [["yield", 1], ["wait", str(gate)], ["yield", 2]]})
            assert client.news(job_id)["stream"] == [{"output": 1}]
            call = pool.submit(client.result, job_id)
            eventually(lambda: client.admitted("status") == 1)
            pool.submit(open_gate)
        assert call.result()["status"] == "COMPLETED"
        assert call.result()["output"] == [1, 2]


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace_time(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    deaf = tmp_path / "deaf"
    stubborn = f"sh -c 'trap \"\" TERM; touch {deaf}; while true; do sleep 300; done'"
    with one_endpoint(worker=stubborn, min_workers=1, stop_grace_seconds=0.3):
        eventually(deaf.exists)
    assert said(log, "stopped .SIGKILL")


# Crashes


def test_a_worker_killed_mid_job_hands_the_job_to_the_next_one(
    tmp_path: Path, family: Family
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    with one_endpoint(worker=LIGHT) as client:
        job_id = client.run({"begun": str(begun), "until": str(gate)})
        eventually(begun.exists)
        first = client.status(job_id)
        [pid] = family.workers()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: client.status(job_id).get("retries") == 1)
        gate.touch()
        last = client.result(job_id)
        assert last["status"] == "COMPLETED"
        assert last["workerId"] != first["workerId"]
        assert last["delayTime"] > first["delayTime"]
        assert client.health()["jobs"]["retried"] == 1


def test_a_job_that_kills_its_worker_twice_fails() -> None:
    with one_endpoint(worker=LIGHT) as client:
        view = client.result(client.run({"exit": 1}))
        assert view["status"] == "FAILED"
        assert view["error"] == "job timed out after 1 retries"
        assert view["retries"] == 1


def test_a_worker_that_keeps_crashing_is_started_ever_more_rarely(
    log: pytest.LogCaptureFixture,
) -> None:
    with one_endpoint(worker="sh -c 'echo out of memory >&2; exit 3'") as client:
        client.run({"a": 1})
        eventually(lambda: len(said(log, "died")) >= 2)
        eventually(lambda: client.workers("unhealthy") == 1)
    first, second, *_ = said(log, "died")
    assert "died (exit code 3), last lines:\nout of memory\nnext start in 1 s" in first
    assert "next start in 2 s" in second


def test_a_command_that_does_not_exist_is_said_so(log: pytest.LogCaptureFixture) -> None:
    with one_endpoint(worker="/no/such/command") as client:
        client.run({"a": 1})
        eventually(lambda: client.workers("unhealthy") == 1)
    assert said(log, "cannot start /no/such/command")


def test_a_worker_that_leaves_without_having_worked_has_crashed() -> None:
    with one_endpoint(worker="true") as client:
        client.run({"a": 1})
        eventually(lambda: client.workers("unhealthy") == 1)


def test_a_worker_recovers_when_its_crashes_end(tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    with one_endpoint(worker=f"sh -c 'test -e {healed} && exec {LIGHT}'") as client:
        job_id = client.run({"a": 1})
        eventually(lambda: client.workers("unhealthy") == 1)
        healed.touch()
        assert client.result(job_id)["output"] == {"a": 1}
        assert client.workers("unhealthy") == 0
