"""How long a job waited and how long a worker has had it."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from proxy.backends.runpod import job_clock
from proxy.backends.runpod.endpoint import JobState, JobStatus
from proxy.backends.runpod.job_clock import JobClock

Pass = Callable[[float], None]


@pytest.fixture
def let_pass(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Turns the hands of the clock; servers of other tests go on by their own."""
    now = 1000.0
    monkeypatch.setattr(job_clock, "time", SimpleNamespace(monotonic=lambda: now))

    def let_pass(seconds: float) -> None:
        nonlocal now
        now += seconds

    return let_pass


def times(clock: JobClock) -> tuple[float | None, float]:
    return clock.queue_seconds, clock.worker_seconds


def test_a_job_that_waits_has_cost_no_worker_anything(let_pass: Pass) -> None:
    clock = JobClock()
    let_pass(9)
    clock.note_waiting()
    assert (clock.is_taken, *times(clock)) == (False, None, 0.0)


def test_a_worker_has_the_job_from_when_runpod_says_so(let_pass: Pass) -> None:
    clock = JobClock()
    let_pass(10)
    clock.note_taken(is_seen=True)
    let_pass(2)
    clock.note_taken(is_seen=False)
    clock.note_head(None, has_met_start=False)
    let_pass(1)
    assert times(clock) == (10, 3)


def test_a_worker_that_tells_when_it_took_the_job_is_believed(let_pass: Pass) -> None:
    clock = JobClock()
    let_pass(10)
    clock.note_taken(is_seen=False)
    clock.note_head(8.0, has_met_start=True)
    let_pass(1)
    assert times(clock) == (2, 9)


def test_no_worker_has_had_it_since_before_it_was_there(let_pass: Pass) -> None:
    clock = JobClock()
    let_pass(10)
    clock.note_taken(is_seen=False)
    clock.note_head(1e9, has_met_start=False)
    assert times(clock) == (0, 10)


def test_the_time_at_a_worker_that_lost_it_counts_too(let_pass: Pass) -> None:
    clock = JobClock()
    clock.note_taken(is_seen=True)
    let_pass(5)
    clock.note_waiting()
    let_pass(5)
    clock.note_taken(is_seen=False)
    clock.note_head(1.0, has_met_start=False)
    assert times(clock) == (0, 10)


def test_of_a_worker_that_tells_nothing_the_job_was_taken_when_it_waited_last(
    let_pass: Pass,
) -> None:
    clock = JobClock()
    let_pass(10)
    clock.note_waiting()
    let_pass(4)
    clock.note_taken(is_seen=False)
    clock.note_head(None, has_met_start=False)
    assert times(clock) == (10, 4)


def test_the_time_of_a_start_is_none_of_the_jobs(let_pass: Pass) -> None:
    clock = JobClock()
    let_pass(9)
    clock.note_taken(is_seen=False)
    clock.note_head(None, has_met_start=True)
    assert times(clock) == (9, 0)


def test_what_runpod_tells_goes_before_what_was_seen(let_pass: Pass) -> None:
    clock = JobClock()
    let_pass(10)
    clock.note_taken(is_seen=False)
    clock.note_state(JobState(JobStatus.IN_PROGRESS, delay_ms=3000, execution_ms=1))
    assert (*times(clock), clock.execution_seconds) == (3, 0, None)
    clock.note_state(JobState(JobStatus.COMPLETED, delay_ms=3000, execution_ms=6500))
    assert (*times(clock), clock.execution_seconds) == (3, 6.5, 6.5)
