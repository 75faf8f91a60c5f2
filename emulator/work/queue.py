"""Queue: one endpoint's jobs, the workers that take them, and every change of state.

No HTTP and no processes here. Every method is synchronous and takes effect at once; a caller that
has to wait does so on a notifier: `arrivals`, `activity`, or `changed` of a job or a worker. One
timer per job ends its TTL, its execution timeout, its lease or its retention, whichever is next.
"""

import secrets
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final

from emulator.clock import Clock, LoopClock
from emulator.errors import NotFound, NotRetryable
from emulator.notifier import Notifier
from emulator.settings import EndpointSettings
from emulator.work.job import ABSENT, Job, Policy, Status
from emulator.work.workers import StopOrder, Worker

MAX_RETRIES: Final = 1
MAX_CHARACTER_BYTES: Final = 4
PING_LAG_SECONDS: Final = 1.0
"""A ping this soon after a take may have been written before the worker noted the job."""


class Queue:
    """The jobs of one endpoint."""

    def __init__(self, settings: EndpointSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or LoopClock()
        self.jobs: dict[str, Job] = {}
        self.waiting: OrderedDict[str, Job] = OrderedDict()
        self.running: dict[str, Job] = {}
        self.workers: dict[str, Worker] = {}
        self.ended: Counter[Status] = Counter()
        self.retried = 0
        self.arrivals = Notifier()
        """Notified when there may be a job to take."""
        self.activity = Notifier()
        """Notified when the need for workers may have changed."""
        self.when_over: Callable[[Job], None] = lambda _: None
        """Called with each job that has come to its end."""

    # What clients do

    def submit(
        self,
        job_input: dict[str, Any],
        policy: Policy | None = None,
        extras: dict[str, Any] | None = None,
        *,
        is_sync: bool = False,
        job_id: str = "",
    ) -> Job:
        """Queue a new job. `is_sync` gives it the id and the short retention of /runsync."""
        settings = self.settings
        job = Job(
            id=job_id or f"{'sync-' if is_sync else ''}{uuid.uuid4()}-u1",
            input=job_input,
            policy=policy or self.default_policy(),
            retention_seconds=(
                settings.sync_retention_seconds if is_sync else settings.retention_seconds
            ),
            created_at=self.clock.now(),
            extras=extras or {},
        )
        self.jobs[job.id] = job
        self._enqueue(job)
        return job

    def default_policy(self) -> Policy:
        """What a job without a `policy` gets."""
        return Policy(self.settings.execution_timeout_seconds, self.settings.ttl_seconds)

    def get(self, job_id: str) -> Job:
        """The job of this id; NotFound when it never was or is no longer kept."""
        try:
            return self.jobs[job_id]
        except KeyError:
            raise NotFound("job not found") from None

    def cancel(self, job_id: str) -> Job:
        """Mark the job CANCELLED at once; a worker that has it is told to stop.

        Chunks that no client has read yet stay readable. A job that is over stays as it is.
        """
        job = self.get(job_id)
        if not job.is_over:
            self._end(job, Status.CANCELLED, stop=True)
        return job

    def retry(self, job_id: str) -> Job:
        """Queue a FAILED or TIMED_OUT job again, from the beginning; else NotRetryable."""
        job = self.get(job_id)
        if job.status not in (Status.FAILED, Status.TIMED_OUT):
            raise NotRetryable("only a FAILED or TIMED_OUT job can be retried")
        job.created_at = self.clock.now()
        job.retries = 0
        job.chunks.clear()
        self.retried += 1
        self._enqueue(job)
        return job

    def keep_for(self, job: Job, seconds: float) -> None:
        """Forget the job so much later, whatever its TTL and its retention are."""
        job.expires_at = self.clock.now() + seconds
        self._set_timer(job)

    def purge(self) -> int:
        """Forget every job that no worker has taken; how many there were."""
        purged = list(self.waiting.values())
        for job in purged:
            self._forget(job)
        return len(purged)

    def reset(self) -> None:
        """Forget every job and every count; workers are told to stop what they run."""
        for job in list(self.jobs.values()):
            self._forget(job)
        self.ended.clear()
        self.retried = 0

    def notify_all(self) -> None:
        """Let every held call of this queue look again."""
        notifiers = [self.arrivals, self.activity]
        notifiers += [job.changed for job in self.jobs.values()]
        notifiers += [worker.changed for worker in self.workers.values()]
        for notifier in notifiers:
            notifier.notify()

    # What workers do

    def register(self, worker_id: str) -> Worker:
        """The worker of this id; one that asks for the first time becomes known here."""
        now = self.clock.now()
        worker = self.workers.get(worker_id)
        if worker is None:
            worker = self.workers[worker_id] = Worker(worker_id, seen_at=now, idle_since=now)
            self.activity.notify()
        worker.seen_at = now
        return worker

    def take(self, worker: Worker, limit: int = 1) -> list[Job]:
        """Hand the worker up to `limit` jobs, the oldest first; none to one that is draining."""
        if self.turns_away(worker):
            return []
        jobs = [self.waiting.popitem(last=False)[1] for _ in range(min(limit, len(self.waiting)))]
        for job in jobs:
            self._start(job, worker)
        return jobs

    def turns_away(self, worker: Worker) -> bool:
        """True for a worker that gets no jobs any more."""
        return worker.is_draining and not self.settings.stopping_workers_get_jobs

    def give_back(self, jobs: list[Job]) -> None:
        """Undo a take whose answer never left: the jobs are first in the queue again."""
        for job in reversed(jobs):
            if job.status is Status.IN_PROGRESS:
                self._detach(job)
                self._enqueue(job, is_back=True)

    def add_chunk(self, worker_id: str, job_id: str, output: Any) -> None:
        """One yield of the handler; ignored when the job is not (or no longer) on this worker."""
        job = self.get(job_id)
        if _is_on(job, worker_id):
            job.seen_at = self.clock.now()
            job.chunks += _cut(output, self.settings.max_chunk_bytes)
            job.changed.notify()

    def progress(self, worker_id: str, job_id: str, output: Any) -> None:
        """A progress update: shown as output until the job ends; ignored like a chunk."""
        job = self.get(job_id)
        may_reopen = self.settings.late_progress_reopens and job.status is Status.COMPLETED
        if may_reopen and job.worker_id == worker_id:
            job.status = Status.IN_PROGRESS
            self.running[job.id] = job
            self._set_timer(job)
        if _is_on(job, worker_id):
            job.seen_at = self.clock.now()
            job.output = output

    def finish(self, worker_id: str, job_id: str, result: dict[str, Any]) -> None:
        """The handler's result, as posted to job-done; a job that is over stays as it is."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.release(job_id, self.clock.now())
            worker.jobs_done += 1
            worker.is_spent = worker.is_spent or bool(result.get("stopPod"))
            self.activity.notify()
        job = self.get(job_id)
        if _is_on(job, worker_id):
            job.output = result.get("output", ABSENT)
            job.error = result.get("error") or ABSENT
            self._end(job, Status.COMPLETED if job.error is ABSENT else Status.FAILED)

    def take_stops(self, worker: Worker) -> list[str]:
        """The job ids the worker has to be told to stop now.

        Each is told again after a pause until a ping shows that the worker has let go of it: the
        SDK ignores a stop for a job it has taken and not yet begun.
        """
        due = [job_id for job_id, order in worker.orders.items() if order.is_due]
        for job_id in due:
            order = worker.orders[job_id]
            order.is_due = False
            order.is_delivered = True
            if self.settings.stop_delivery == "repeat":
                remind = partial(_remind, worker, order)
                self.clock.call_later(self.settings.stop_repeat_seconds, remind)
        return due

    def ping(self, worker_id: str, job_ids: Iterable[str], *, is_healthy: bool = True) -> None:
        """A sign of life that names the jobs in the worker's hands; it renews their leases."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        now = worker.seen_at = self.clock.now()
        worker.is_unhealthy = not is_healthy
        listed = set(job_ids)
        for job_id, taken_at in list(worker.held.items()):
            job = self.running.get(job_id)
            if job_id in listed and job is not None and _is_on(job, worker_id):
                job.seen_at = now
            elif job_id not in listed and now - taken_at >= PING_LAG_SECONDS:
                self._stop_has_worked(worker, job_id)

    # What becomes of workers

    def drain(self, worker_id: str) -> None:
        """Give the worker no more jobs; its held polls end."""
        worker = self.register(worker_id)
        worker.is_draining = True
        worker.changed.notify()
        self.arrivals.notify()

    def lose_worker(self, worker_id: str) -> None:
        """The worker is gone; its jobs are handed out once more, or fail."""
        self.workers.pop(worker_id, None)
        for job in [job for job in self.running.values() if job.worker_id == worker_id]:
            self._lose(job)

    def name_worker(self) -> str:
        """A new worker's id."""
        return secrets.token_hex(7)

    def prepare(self, worker_id: str) -> dict[str, str]:
        """Nothing: a worker makes itself known by its first call."""
        return {}

    def reason_to_replace(self, worker_id: str) -> str | None:
        """A handler may ask for a fresh worker (`refresh_worker`)."""
        worker = self.workers.get(worker_id)
        return "it asked to be replaced" if worker is not None and worker.is_spent else None

    # What asks for workers

    def urgent(self, enough: int) -> int:
        """How many waiting jobs ask for a worker; those of low priority do not."""
        return len(list(islice(self._urgent_jobs(), enough)))

    def longest_wait(self) -> float | None:
        """For how long the first job that asks for a worker has waited."""
        first = next(self._urgent_jobs(), None)
        return None if first is None else self.clock.now() - first.created_at

    def least_workers(self) -> int:
        """None: any worker may take any job."""
        return 0

    def _urgent_jobs(self) -> Iterator[Job]:
        return (job for job in self.waiting.values() if not job.policy.low_priority)

    # How jobs move

    def _enqueue(self, job: Job, *, is_back: bool = False) -> None:
        job.status = Status.IN_QUEUE
        job.worker_id = None
        job.output = job.error = ABSENT
        later = self._submitted_since(job) if is_back else []
        self.waiting[job.id] = job
        for job_id in later:
            self.waiting.move_to_end(job_id)
        self._set_timer(job)
        self.arrivals.notify()
        self.activity.notify()

    def _submitted_since(self, job: Job) -> list[str]:
        """The waiting jobs that one which comes back goes before; older ones may have come back."""
        return [one.id for one in self.waiting.values() if one.created_at >= job.created_at]

    def _start(self, job: Job, worker: Worker) -> None:
        now = self.clock.now()
        job.status = Status.IN_PROGRESS
        job.worker_id = worker.id
        job.started_at = job.seen_at = now
        worker.orders.pop(job.id, None)
        worker.held[job.id] = now
        self.running[job.id] = job
        self._set_timer(job)
        self.activity.notify()

    def _end(self, job: Job, status: Status, *, stop: bool = False) -> None:
        self._detach(job, stop=stop)
        job.status = status
        job.finished_at = self.clock.now()
        self.ended[status] += 1
        self._set_timer(job)
        job.changed.notify()
        self.activity.notify()
        self.when_over(job)

    def _detach(self, job: Job, *, stop: bool = False) -> None:
        """Take the job out of the queue and off its worker, which may have to stop it first."""
        self.waiting.pop(job.id, None)
        self.running.pop(job.id, None)
        worker = self.workers.get(job.worker_id or "")
        if worker is None or job.id not in worker.held:
            return
        if stop:
            worker.order_stop(job.id)
        else:
            worker.release(job.id, self.clock.now())

    def _lose(self, job: Job) -> None:
        """The worker no longer has the job: hand it out once more, then give up."""
        if job.retries >= MAX_RETRIES:
            job.error = f"job timed out after {job.retries} retries"
            self._end(job, Status.FAILED, stop=True)
            return
        self._detach(job, stop=True)
        job.retries += 1
        self.retried += 1
        self._enqueue(job, is_back=True)

    def _time_out(self, job: Job) -> None:
        self._end(job, Status.TIMED_OUT, stop=True)

    def _forget(self, job: Job) -> None:
        self._detach(job, stop=True)
        del self.jobs[job.id]
        if job.timer is not None:
            job.timer.cancel()
        job.is_forgotten = True
        job.changed.notify()
        self.activity.notify()

    def _stop_has_worked(self, worker: Worker, job_id: str) -> None:
        order = worker.orders.get(job_id)
        if order is not None and order.is_delivered:
            worker.release(job_id, self.clock.now())
            self.activity.notify()

    # Deadlines

    def _next_deadline(self, job: Job) -> tuple[float, Callable[[Job], None]]:
        if job.status.is_terminal:
            return job.expires_at or job.finished_at + job.retention_seconds, self._forget
        ttl = job.expires_at or job.created_at + job.policy.ttl_seconds
        deadlines = [(ttl, self._forget)]
        if job.status is Status.IN_PROGRESS:
            timeout = job.started_at + job.policy.execution_timeout_seconds
            lease = job.seen_at + self.settings.lease_seconds
            deadlines += [(timeout, self._time_out), (lease, self._lose)]
        return min(deadlines, key=lambda deadline: deadline[0])

    def _set_timer(self, job: Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
        moment, _ = self._next_deadline(job)
        seconds = max(0.0, moment - self.clock.now())
        job.timer = self.clock.call_later(seconds, partial(self._look_at, job))

    def _look_at(self, job: Job) -> None:
        """The job's timer went off: act, unless its deadline has moved since."""
        moment, action = self._next_deadline(job)
        if self.clock.now() < moment:
            self._set_timer(job)
        else:
            action(job)


def _cut(output: Any, max_bytes: int) -> list[Any]:
    """The output in pieces of so many bytes if it is text, and never inside a character."""
    if not isinstance(output, str) or len(output) * MAX_CHARACTER_BYTES <= max_bytes:
        return [output]
    data, pieces = output.encode(), []
    while data:
        piece = data[:max_bytes].decode(errors="ignore")
        pieces.append(piece)
        data = data[len(piece.encode()) :]
    return pieces


def _is_on(job: Job, worker_id: str) -> bool:
    return job.status is Status.IN_PROGRESS and job.worker_id == worker_id


def _remind(worker: Worker, order: StopOrder) -> None:
    order.is_due = True
    worker.changed.notify()
