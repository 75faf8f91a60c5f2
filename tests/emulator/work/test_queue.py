"""The queue's state machine, without HTTP, processes or a real clock."""

import re
from typing import Any

import pytest

from emulator.errors import NotFound, NotRetryable
from emulator.settings import EndpointSettings
from emulator.work.job import Job, Policy, Status
from emulator.work.queue import Queue
from emulator.work.workers import Worker
from tests.emulator.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(clock: FakeClock) -> Queue:
    return make_queue(clock)


def make_queue(clock: FakeClock, **settings: Any) -> Queue:
    return Queue(EndpointSettings(id="e", **settings), clock)


@pytest.fixture
def worker(queue: Queue) -> Worker:
    return queue.register("w1")


def started(queue: Queue, worker: Worker) -> Job:
    """A job in this worker's hands."""
    job = queue.submit({"a": 1})
    assert queue.take(worker) == [job]
    return job


# The road of a job that goes well


def test_a_new_job_waits_in_the_queue(queue: Queue) -> None:
    job = queue.submit({"a": 1})
    assert job.view() == {"id": job.id, "status": "IN_QUEUE"}


def test_job_ids_look_like_runpods(queue: Queue) -> None:
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    assert re.fullmatch(f"{uuid}-u1", queue.submit({}).id)
    assert re.fullmatch(f"sync-{uuid}-u1", queue.submit({}, is_sync=True).id)


def test_jobs_are_taken_in_the_order_they_came(queue: Queue, worker: Worker) -> None:
    jobs = [queue.submit({"n": n}) for n in range(3)]
    assert queue.take(worker, limit=2) == jobs[:2]
    assert queue.take(worker, limit=2) == jobs[2:]
    assert queue.take(worker, limit=2) == []


def test_a_taken_job_shows_its_worker_and_how_long_it_waited(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = queue.submit({"a": 1})
    clock.advance(1.5)
    queue.take(worker)
    assert list(job.view().items()) == [
        ("delayTime", 1500),
        ("id", job.id),
        ("status", "IN_PROGRESS"),
        ("workerId", "w1"),
    ]


def test_a_finished_job_shows_output_and_execution_time_in_alphabetical_order(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    clock.advance(0.25)
    queue.finish("w1", job.id, {"output": {"z": 1, "a": 2}})
    assert list(job.view()) == [
        "delayTime",
        "executionTime",
        "id",
        "output",
        "status",
        "workerId",
    ]
    assert job.view()["executionTime"] == 250
    assert job.view()["status"] == "COMPLETED"
    assert list(job.view()["output"]) == ["z", "a"], "the output itself is not touched"


@pytest.mark.parametrize("output", [None, False, 0, [], ""])
def test_an_output_may_be_any_json_value(queue: Queue, worker: Worker, output: Any) -> None:
    job = started(queue, worker)
    queue.finish("w1", job.id, {"output": output})
    assert job.view()["output"] == output
    assert job.status is Status.COMPLETED


def test_a_result_without_output_completes_the_job_without_output(
    queue: Queue, worker: Worker
) -> None:
    job = started(queue, worker)
    queue.finish("w1", job.id, {})
    assert job.status is Status.COMPLETED
    assert "output" not in job.view()


def test_a_result_with_an_error_fails_the_job(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.finish("w1", job.id, {"error": "boom", "output": {"rest": 1}})
    assert job.status is Status.FAILED
    assert job.view()["error"] == "boom"
    assert job.view()["output"] == {"rest": 1}


def test_an_empty_input_does_not_reach_the_worker(queue: Queue, worker: Worker) -> None:
    empty, full = queue.submit({}), queue.submit({"a": 1}, extras={"webhook": "http://x"})
    queue.take(worker, limit=2)
    assert empty.for_worker() == {"id": empty.id}
    assert full.for_worker() == {"id": full.id, "input": {"a": 1}, "webhook": "http://x"}


# Chunks


def test_chunks_are_handed_out_once(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.add_chunk("w1", job.id, "a")
    queue.add_chunk("w1", job.id, {"b": None})
    assert job.drain() == [{"output": "a"}, {"output": {"b": None}}]
    assert job.drain() == []


def test_unread_chunks_outlive_the_end_of_the_job(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.add_chunk("w1", job.id, "last")
    queue.finish("w1", job.id, {"output": ["last"]})
    assert job.drain() == [{"output": "last"}]


def test_chunks_from_a_worker_that_does_not_have_the_job_are_ignored(
    queue: Queue, worker: Worker
) -> None:
    job = started(queue, worker)
    queue.add_chunk("w2", job.id, "stranger")
    assert job.drain() == []


def test_posts_for_a_job_that_is_over_are_ignored(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.cancel(job.id)
    queue.add_chunk("w1", job.id, "late")
    queue.progress("w1", job.id, "late")
    queue.finish("w1", job.id, {"output": "late"})
    assert job.status is Status.CANCELLED
    assert "output" not in job.view()
    assert job.drain() == []


@pytest.mark.parametrize(
    ("output", "chunks"),
    [("abcdefgh", ["abcde", "fgh"]), ("aäöüß", ["aäö", "üß"]), ("🙂🙂", ["🙂", "🙂"]), ("", [""])],
)
def test_a_text_above_the_limit_becomes_several_chunks(
    clock: FakeClock, output: str, chunks: list[str]
) -> None:
    queue = make_queue(clock, max_chunk_bytes=5)
    job = queue.submit({"a": 1})
    queue.take(queue.register("w1"))
    queue.add_chunk("w1", job.id, output)
    queue.add_chunk("w1", job.id, {"an": "object of any size"})
    assert job.chunks == [*chunks, {"an": "object of any size"}]


def test_progress_is_the_output_until_the_job_ends(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.progress("w1", job.id, "half way")
    assert job.view()["output"] == "half way"
    assert job.status is Status.IN_PROGRESS
    queue.finish("w1", job.id, {"output": "done"})
    assert job.view()["output"] == "done"


def test_late_progress_reopens_a_finished_job_only_when_asked_to(clock: FakeClock) -> None:
    for reopens, status in [(False, Status.COMPLETED), (True, Status.IN_PROGRESS)]:
        queue = make_queue(clock, late_progress_reopens=reopens)
        job = started(queue, queue.register("w1"))
        queue.finish("w1", job.id, {"output": "done"})
        queue.progress("w1", job.id, "late")
        assert job.status is status


# Cancel and stop


def test_a_cancelled_job_leaves_the_queue(queue: Queue, worker: Worker) -> None:
    job = queue.submit({"a": 1})
    queue.cancel(job.id)
    assert job.view() == {"id": job.id, "status": "CANCELLED"}
    assert queue.take(worker) == []
    assert queue.take_stops(worker) == []


def test_cancelling_a_running_job_tells_its_worker_to_stop(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.add_chunk("w1", job.id, "unread")
    queue.cancel(job.id)
    assert job.status is Status.CANCELLED
    assert queue.take_stops(worker) == [job.id]
    assert job.drain() == [{"output": "unread"}]


def test_a_finished_job_cannot_be_cancelled(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.finish("w1", job.id, {"output": 1})
    assert queue.cancel(job.id).status is Status.COMPLETED
    assert queue.take_stops(worker) == []


def test_a_stop_is_repeated_until_a_ping_no_longer_lists_the_job(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    clock.advance(2)
    queue.cancel(job.id)
    assert queue.take_stops(worker) == [job.id]
    assert queue.take_stops(worker) == [], "not again at once"
    queue.ping("w1", [job.id])
    clock.advance(queue.settings.stop_repeat_seconds)
    assert queue.take_stops(worker) == [job.id]
    queue.ping("w1", [])
    clock.advance(10)
    assert queue.take_stops(worker) == []


def test_a_ping_from_before_the_take_does_not_end_the_stops(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    queue.cancel(job.id)
    queue.take_stops(worker)
    queue.ping("w1", [])
    clock.advance(queue.settings.stop_repeat_seconds)
    assert queue.take_stops(worker) == [job.id]


def test_an_undelivered_stop_survives_a_ping_without_the_job(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    clock.advance(2)
    queue.cancel(job.id)
    queue.ping("w1", [])
    assert queue.take_stops(worker) == [job.id]


def test_a_stop_can_be_sent_only_once(clock: FakeClock) -> None:
    queue = make_queue(clock, stop_delivery="once")
    worker = queue.register("w1")
    job = started(queue, worker)
    queue.cancel(job.id)
    assert queue.take_stops(worker) == [job.id]
    queue.ping("w1", [job.id])
    clock.advance(10)
    assert queue.take_stops(worker) == []


def test_a_worker_is_busy_until_a_stopped_job_is_really_gone(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    queue.cancel(job.id)
    queue.take_stops(worker)
    assert worker.held
    clock.advance(2)
    queue.ping("w1", [])
    assert not worker.held
    assert worker.idle_since == clock.now()


def test_a_result_in_spite_of_a_stop_ends_the_stops(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    queue.cancel(job.id)
    queue.take_stops(worker)
    queue.finish("w1", job.id, {"output": 1})
    clock.advance(10)
    assert queue.take_stops(worker) == []
    assert not worker.held


# Lost workers


def test_a_job_of_a_lost_worker_is_handed_out_once_more(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    waiting = queue.submit({"n": 2})
    clock.advance(3)
    queue.lose_worker("w1")
    assert job.view() == {"id": job.id, "retries": 1, "status": "IN_QUEUE"}
    assert queue.take(queue.register("w2"), limit=2) == [job, waiting], "it goes first"
    assert job.view()["delayTime"] == 3000, "recomputed for the second attempt"
    assert queue.retried == 1


def test_a_job_that_loses_its_worker_twice_fails(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.lose_worker("w1")
    queue.take(queue.register("w2"))
    queue.lose_worker("w2")
    assert job.status is Status.FAILED
    assert job.view()["error"] == "job timed out after 1 retries"
    assert job.view()["retries"] == 1
    assert job.view()["workerId"] == "w2"


def test_a_job_absent_from_the_pings_is_handed_out_again_after_its_lease(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    for _ in range(4):
        clock.advance(queue.settings.lease_seconds / 4)
        queue.ping("w1", [])
    assert job.status is Status.IN_QUEUE
    assert job.retries == 1


@pytest.mark.parametrize("how", ["its process ended", "its leases ended"])
def test_jobs_of_a_lost_worker_keep_their_order(
    queue: Queue, worker: Worker, clock: FakeClock, how: str
) -> None:
    jobs = []
    for number in range(4):
        jobs.append(queue.submit({"n": number}))
        clock.advance(1)
    queue.take(worker, limit=3)
    if how == "its process ended":
        queue.lose_worker("w1")
    else:
        clock.advance(queue.settings.lease_seconds)
    assert queue.take(queue.register("w2"), limit=4) == jobs


def test_pings_and_chunks_renew_the_lease(queue: Queue, worker: Worker, clock: FakeClock) -> None:
    job = started(queue, worker)
    for _ in range(3):
        clock.advance(queue.settings.lease_seconds - 1)
        queue.ping("w1", [job.id])
        clock.advance(queue.settings.lease_seconds - 1)
        queue.add_chunk("w1", job.id, "x")
    assert job.status is Status.IN_PROGRESS
    assert job.retries == 0


def test_the_former_holder_of_a_job_is_stopped_and_no_longer_heard(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    clock.advance(queue.settings.lease_seconds)
    queue.take(queue.register("w2"))
    queue.add_chunk("w1", job.id, "from the dead")
    queue.finish("w1", job.id, {"output": "from the dead"})
    assert job.status is Status.IN_PROGRESS
    assert job.drain() == []
    queue.finish("w2", job.id, {"output": "right"})
    assert job.view()["output"] == "right"


def test_a_worker_that_gets_its_lost_job_again_is_not_told_to_stop_it(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = started(queue, worker)
    clock.advance(queue.settings.lease_seconds)
    assert worker.has_due_orders()
    assert queue.take(worker) == [job]
    assert queue.take_stops(worker) == []


def test_a_take_that_did_not_arrive_is_undone(queue: Queue, worker: Worker) -> None:
    first, second = queue.submit({"n": 1}), queue.submit({"n": 2})
    queue.give_back(queue.take(worker, limit=2))
    assert not worker.held
    assert first.view() == {"id": first.id, "status": "IN_QUEUE"}, "this is not a retry"
    assert queue.take(worker, limit=2) == [first, second]


def test_a_draining_worker_gets_no_jobs(queue: Queue, worker: Worker) -> None:
    job = queue.submit({"a": 1})
    queue.drain("w1")
    assert queue.take(worker) == []
    assert queue.take(queue.register("w2")) == [job]


def test_a_draining_worker_gets_jobs_when_the_lost_job_is_wanted(clock: FakeClock) -> None:
    queue = make_queue(clock, stopping_workers_get_jobs=True)
    worker = queue.register("w1")
    queue.drain("w1")
    job = queue.submit({"a": 1})
    assert queue.take(worker) == [job]
    queue.lose_worker("w1")
    assert (job.status, job.retries) == (Status.IN_QUEUE, 1)


def test_a_worker_told_to_stop_before_its_first_call_gets_no_jobs(queue: Queue) -> None:
    queue.drain("early")
    queue.submit({"a": 1})
    assert queue.take(queue.register("early")) == []


# Time


def test_a_job_vanishes_when_its_ttl_ends_even_mid_run(queue: Queue, clock: FakeClock) -> None:
    worker = queue.register("w1")
    policy = Policy(execution_timeout_seconds=600, ttl_seconds=30)
    running, queued = [queue.submit({"n": n}, policy) for n in range(2)]
    queue.take(worker)
    clock.advance(30)
    for job in (running, queued):
        assert job.is_over
        with pytest.raises(NotFound):
            queue.get(job.id)
    assert queue.take_stops(worker) == [running.id]
    assert queue.take(worker) == []


def test_a_job_is_forgotten_when_a_reader_says_so(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    finished, waiting = [queue.submit({"n": n}) for n in range(2)]
    queue.take(worker)
    queue.finish(worker.id, finished.id, {"output": 1})
    clock.advance(20)
    for job in (finished, waiting):
        queue.keep_for(job, 6)
    clock.advance(5)
    assert [job.is_forgotten for job in (finished, waiting)] == [False, False]
    clock.advance(1)
    assert [job.is_forgotten for job in (finished, waiting)] == [True, True]


def test_jobs_of_low_priority_ask_for_no_worker(queue: Queue, clock: FakeClock) -> None:
    patient = Policy(execution_timeout_seconds=600, ttl_seconds=3600, low_priority=True)
    queue.submit({"n": 1}, patient)
    clock.advance(5)
    assert (queue.urgent(9), queue.longest_wait()) == (0, None)
    queue.submit({"n": 2})
    clock.advance(5)
    assert (queue.urgent(9), queue.longest_wait()) == (1, 5)


def test_a_result_for_a_vanished_job_is_refused(
    queue: Queue, worker: Worker, clock: FakeClock
) -> None:
    job = queue.submit({"n": 1}, Policy(execution_timeout_seconds=600, ttl_seconds=30))
    queue.take(worker)
    clock.advance(30)
    with pytest.raises(NotFound):
        queue.finish("w1", job.id, {"output": 1})
    assert not worker.held, "and yet the worker is free again"


def test_a_job_that_runs_too_long_is_timed_out_and_stopped(queue: Queue, clock: FakeClock) -> None:
    worker = queue.register("w1")
    job = queue.submit({"a": 1}, Policy(execution_timeout_seconds=8, ttl_seconds=600))
    clock.advance(20)
    queue.take(worker)
    clock.advance(7)
    assert not job.is_over, "waiting in the queue does not count"
    clock.advance(1)
    assert job.status is Status.TIMED_OUT
    assert queue.take_stops(worker) == [job.id]


@pytest.mark.parametrize(("is_sync", "kept"), [(False, 1800), (True, 60)])
def test_a_finished_job_is_kept_for_its_retention(
    queue: Queue, worker: Worker, clock: FakeClock, is_sync: bool, kept: float
) -> None:
    job = queue.submit({"a": 1}, is_sync=is_sync)
    queue.take(worker)
    queue.finish("w1", job.id, {"output": 1})
    clock.advance(kept - 1)
    assert queue.get(job.id) is job
    clock.advance(1)
    with pytest.raises(NotFound):
        queue.get(job.id)


def test_nothing_is_left_of_forgotten_jobs(queue: Queue, worker: Worker, clock: FakeClock) -> None:
    for _ in range(20):
        job = started(queue, worker)
        queue.finish("w1", job.id, {"output": 1})
        queue.cancel(queue.submit({"a": 1}).id)
    clock.advance(queue.settings.retention_seconds)
    assert not queue.jobs
    assert not queue.running
    assert not queue.waiting
    assert not worker.held
    assert not clock.pending()


# Retry and purge


def test_a_failed_job_can_be_queued_again(queue: Queue, worker: Worker) -> None:
    job = started(queue, worker)
    queue.add_chunk("w1", job.id, "old")
    queue.finish("w1", job.id, {"error": "boom"})
    queue.retry(job.id)
    assert job.view() == {"id": job.id, "status": "IN_QUEUE"}
    assert queue.take(worker) == [job]
    assert job.drain() == []


def test_only_failed_and_timed_out_jobs_can_be_retried(queue: Queue, worker: Worker) -> None:
    queued = queue.submit({"a": 1})
    with pytest.raises(NotRetryable):
        queue.retry(queued.id)
    queue.take(worker)
    queue.finish("w1", queued.id, {"output": 1})
    with pytest.raises(NotRetryable):
        queue.retry(queued.id)


def test_a_purge_removes_queued_jobs_and_leaves_running_ones(queue: Queue, worker: Worker) -> None:
    running = started(queue, worker)
    queued = [queue.submit({"n": n}) for n in range(2)]
    assert queue.purge() == 2
    assert queue.get(running.id).status is Status.IN_PROGRESS
    for job in queued:
        with pytest.raises(NotFound):
            queue.get(job.id)


def test_nothing_is_left_of_purged_jobs(queue: Queue, clock: FakeClock) -> None:
    queue.submit({"a": 1})
    queue.purge()
    assert not queue.jobs
    assert not clock.pending()


def test_an_unknown_job_is_not_found(queue: Queue) -> None:
    for operation in (queue.get, queue.cancel, queue.retry):
        with pytest.raises(NotFound):
            operation("nope-u1")
