"""Whatever clients, workers and time do to a queue, and in whatever order, its books balance."""

import contextlib
from collections.abc import Callable

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from emulator.errors import EmulatorError
from emulator.settings import EndpointSettings
from emulator.work.job import Job, Policy, Status
from emulator.work.queue import MAX_RETRIES, Queue
from tests.emulator.clock import FakeClock

WORKERS = st.sampled_from(["w1", "w2", "w3"])
SETTINGS = EndpointSettings(id="e", lease_seconds=20, retention_seconds=50, stop_repeat_seconds=1)


class QueueMachine(RuleBasedStateMachine):
    """Clients, three workers and a clock, all acting at random."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue = Queue(SETTINGS, self.clock)
        self.over: dict[str, Status] = {}

    @rule(target=jobs, ttl=st.integers(10, 100), timeout=st.integers(5, 50))
    def submit(self, ttl: int, timeout: int) -> Job:
        return self.queue.submit({"a": 1}, Policy(timeout, ttl))

    @rule(job=jobs)
    def cancel(self, job: Job) -> None:
        self._try(lambda: self.queue.cancel(job.id))

    @rule(job=consumes(jobs), target=jobs)
    def retry(self, job: Job) -> Job:
        if not job.is_forgotten and job.status in (Status.FAILED, Status.TIMED_OUT):
            self.over.pop(job.id, None)
        self._try(lambda: self.queue.retry(job.id))
        return job

    @rule()
    def purge(self) -> None:
        self.queue.purge()

    @rule(worker_id=WORKERS, limit=st.integers(1, 3), arrives=st.booleans())
    def take(self, worker_id: str, limit: int, arrives: bool) -> None:
        jobs = self.queue.take(self.queue.register(worker_id), limit)
        if not arrives:
            self.queue.give_back(jobs)

    @rule(worker_id=WORKERS, job=jobs, output=st.integers())
    def chunk(self, worker_id: str, job: Job, output: int) -> None:
        self._try(lambda: self.queue.add_chunk(worker_id, job.id, output))

    @rule(worker_id=WORKERS, job=jobs, fails=st.booleans())
    def finish(self, worker_id: str, job: Job, fails: bool) -> None:
        result = {"error": "boom"} if fails else {"output": 1}
        self._try(lambda: self.queue.finish(worker_id, job.id, result))

    @rule(worker_id=WORKERS)
    def stops(self, worker_id: str) -> None:
        self.queue.take_stops(self.queue.register(worker_id))

    @rule(worker_id=WORKERS, listed=st.lists(jobs, max_size=3))
    def ping(self, worker_id: str, listed: list[Job]) -> None:
        self.queue.ping(worker_id, [job.id for job in listed])

    @rule(worker_id=WORKERS)
    def lose_worker(self, worker_id: str) -> None:
        self.queue.lose_worker(worker_id)

    @rule(worker_id=WORKERS)
    def drain(self, worker_id: str) -> None:
        self.queue.drain(worker_id)

    @rule(seconds=st.floats(0.1, 30))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def _try(self, act: Callable[[], object]) -> None:
        """Refusals are fine, anything else is not."""
        with contextlib.suppress(EmulatorError):
            act()

    @invariant()
    def every_job_is_where_its_status_says(self) -> None:
        queue = self.queue
        for job in queue.jobs.values():
            assert (job.id in queue.waiting) == (job.status is Status.IN_QUEUE)
            assert (job.id in queue.running) == (job.status is Status.IN_PROGRESS)
            assert not job.is_forgotten
        assert queue.waiting.keys() | queue.running.keys() <= queue.jobs.keys()

    @invariant()
    def a_running_job_is_in_its_workers_hands_and_not_to_be_stopped(self) -> None:
        for job in self.queue.running.values():
            worker = self.queue.workers[job.worker_id or ""]
            assert job.id in worker.held
            assert job.id not in worker.orders

    @invariant()
    def what_a_worker_is_to_stop_is_in_its_hands(self) -> None:
        for worker in self.queue.workers.values():
            assert worker.orders.keys() <= worker.held.keys()

    @invariant()
    def a_job_that_is_over_stays_as_it_is(self) -> None:
        for job in self.queue.jobs.values():
            if job.status.is_terminal:
                assert self.over.setdefault(job.id, job.status) is job.status
            else:
                assert job.id not in self.over

    @invariant()
    def no_job_is_handed_out_more_than_twice(self) -> None:
        assert all(job.retries <= MAX_RETRIES for job in self.queue.jobs.values())

    @invariant()
    def every_job_has_one_deadline(self) -> None:
        timers = [job.timer for job in self.queue.jobs.values()]
        assert all(timer in self.clock.pending() for timer in timers)

    def teardown(self) -> None:
        """In the end nothing is kept."""
        self.clock.advance(1000)
        assert not self.queue.jobs
        assert not self.queue.waiting
        assert not self.queue.running


TestQueue = QueueMachine.TestCase
TestQueue.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
