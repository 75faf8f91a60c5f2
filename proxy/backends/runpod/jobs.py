"""The jobs of one endpoint: submitted within bounds, known while they run, cancelled if left."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from proxy.api.answer import Course
from proxy.api.call import OnSpent, Work
from proxy.backends.admission import Admission
from proxy.backends.deadlines import Deadlines, Shutdown, Terms, pause
from proxy.backends.fair_turns import NOT_ITS_TURN, FairTurns, Place
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.runpod.breaker import Breaker
from proxy.backends.runpod.cancellation import Canceller
from proxy.backends.runpod.direct.road import Invitation
from proxy.backends.runpod.endpoint import Endpoint, JobStatus
from proxy.backends.runpod.job import Job
from proxy.backends.runpod.job_input import inviting
from proxy.backends.runpod.journal import Journal
from proxy.errors import (
    NotSent,
    ProxyError,
    RequestTooLarge,
    UpstreamBusy,
    UpstreamMisconfigured,
    UpstreamUnavailable,
)
from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from proxy.backends.runpod.sealing import Seal

log = logging.getLogger(__name__)

MAX_JOB_BYTES = 10_000_000
"""What /run takes: docs.runpod.io/serverless/endpoints/operation-reference."""
MIN_EXECUTION_MS = 5_000
"""RunPod's lower limit of policy.executionTimeout; that of policy.ttl is twice as long."""
TTL_MARGIN_SECONDS = 60
REPEATS = 2
"""How often a submission that did not reach RunPod is repeated."""
NOT_ACCEPTED = "RunPod has not accepted the job"


@dataclass(slots=True)
class _Submission:
    place: Place
    """Before the endpoint's queue; the job has it as long as it is live."""
    on_spent: OnSpent
    invitation: Invitation | None = None
    seal: "Seal | None" = None
    is_calling: bool = False
    """A call of /run is under way, so there may be a job already."""
    is_left: bool = False
    """The request that it was for has ended."""
    reason: str = NOT_ACCEPTED
    """Why no worker has the job, for the error of the queue deadline."""

    def begin(self) -> None:
        """The call of /run goes out now."""
        self.is_calling = True


class Jobs:
    """The jobs of one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        admission: Admission,
        shutdown: Shutdown,
        monitor: HealthMonitor,
        canceller: Canceller,
        journal: Journal,
        metrics: Metrics,
        price_per_second: float = 0.0,
        invite: Callable[[], Invitation] | None = None,
        seal: "Callable[[], Seal] | None" = None,
        turns: FairTurns | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.monitor = monitor
        self.shutdown = shutdown
        self._admission = admission
        self._canceller = canceller
        self._journal = journal
        self._metrics = metrics
        self._price_per_second = price_per_second
        self._invite = invite
        """Makes an invitation for each job, where workers may send frames by a channel."""
        self._seal = seal
        """Makes a seal for each job, where RunPod is not to read them."""
        self._turns = turns or FairTurns()
        self._breaker = Breaker()
        self._submissions: set[asyncio.Task[Job]] = set()
        self._live: dict[Job, Place] = {}

    @property
    def live(self) -> int:
        """How many jobs are in flight."""
        return len(self._live) + len(self._submissions)

    @property
    def waiting(self) -> int:
        """How many of them wait for a worker."""
        waiting = sum(job.status is JobStatus.IN_QUEUE for job in self._live)
        return len(self._submissions) + waiting

    @property
    def in_line(self) -> int:
        """How many of those are no jobs yet, as their turn has not come."""
        return self._turns.waiting

    async def submit(self, job_input: Mapping[str, Any], terms: Terms, on_spent: OnSpent) -> Job:
        """Queue a job, and tell in the end what it has cost.

        A submission that cannot have started a job is repeated; any other is not. Cancelling this
        call does not lose the job: if RunPod has taken it, it is cancelled.

        Raises:
            EndpointOverloaded: too many jobs are under way.
            ColdStartTimeout, TotalTimeout, Stopping: a deadline passed before RunPod took it, or
                before its turn came.
            InsufficientQuota: the endpoint's daily budget was spent before that.
            UpstreamUnavailable, UpstreamMisconfigured, WorkerFailed: as Endpoint.run; at once,
                if the last submissions failed as well.
        """
        self._admission.check(live=self.live, waiting=self.waiting)
        self._breaker.check()
        # A frame can come before RunPod has answered, so it is known by then whose it is.
        invitation = self._invite() if self._invite else None
        seal = self._seal() if self._seal else None
        job = _encoded(job_input, terms, invitation, seal)
        state = _Submission(self._turns.place(terms.flow), on_spent, invitation, seal)
        deadlines = Deadlines(terms, self.shutdown, lambda: state.reason)
        submission = asyncio.create_task(self._run(job, deadlines, state))
        self._submissions.add(submission)
        submission.add_done_callback(lambda done: self._submitted(done, state))
        try:
            return await deadlines.result(submission)
        except BaseException:
            state.is_left = True
            submission.add_done_callback(_close_late)
            if not state.is_calling:
                submission.cancel()
            raise

    async def settle(self, seconds: float) -> None:
        """Wait, at most this long, until each submission under way has led to a job or not."""
        if self._submissions:
            _, left = await asyncio.wait(self._submissions, timeout=seconds)
            if left:
                log.error(
                    "%d submissions to endpoint %s were not answered in %g s: jobs that came of "
                    "them end by themselves, by their executionTimeout",
                    *(len(left), self.endpoint.name, seconds),
                )

    def _release(self, job: Job, is_running: bool) -> None:
        """Let go of a job that was left or has been answered; cancel it unless it has ended."""
        if (place := self._live.pop(job, None)) is not None:
            place.leave()
        seconds = job.worker_seconds
        self._metrics.note_worker_seconds(self.endpoint.name, seconds, self._price_per_second)
        self.monitor.ceiling.note_job(seconds)
        job.on_spent(
            Work(
                self.endpoint.name,
                seconds,
                self._price_per_second,
                job.id,
                job.id,
                job.course,
                partial(_ended_course, self.endpoint, job.id),
            )
        )
        if (invitation := job.invitation) is not None and job.has_output:
            self._metrics.note_road(self.endpoint.name, invitation.road, invitation.reason)
            direct, polled = invitation.inbox.direct_frames, job.polled_outputs
            self._metrics.note_frames(self.endpoint.name, direct=direct, polled=polled)
        if job.has_ended:
            self._journal.remove(job.id)
        else:
            self._metrics.note_cancelled(self.endpoint.name)
            self._canceller.cancel(self.endpoint, job.id, is_running=is_running)

    async def _run(self, job: bytes, deadlines: Deadlines, state: _Submission) -> Job:
        if state.place.is_waiting:
            state.reason = NOT_ITS_TURN
            await state.place.turn()
            state.reason = NOT_ACCEPTED
        for attempt in itertools.count():
            self.monitor.ceiling.check()
            try:
                job_id = await self.endpoint.run(
                    job,
                    connect_seconds=deadlines.terms.connect_timeout_seconds,
                    on_turn=state.begin,
                )
            except (NotSent, UpstreamBusy, UpstreamMisconfigured) as exc:
                # None of them can have started a job.
                if state.is_left:
                    raise
                seconds = exc.retry_after_seconds or pause(attempt)
                if self._is_final(exc, attempt, is_late=seconds > deadlines.seconds_left()):
                    self._breaker.failed(exc)
                    raise
                state.is_calling = False
                state.reason = f"{NOT_ACCEPTED}: {exc.message}"
                await asyncio.sleep(seconds)
            except UpstreamUnavailable as exc:
                self._breaker.failed(exc)
                raise
            else:
                self._breaker.succeeded()
                self._journal.add(self.endpoint.url, job_id)
                deadlines.cold_start_reason = lambda: self.monitor.cold_start_reason
                return Job(
                    job_id,
                    self.endpoint,
                    self.monitor,
                    deadlines,
                    on_close=self._release,
                    on_spent=state.on_spent,
                    invitation=state.invitation,
                    seal=state.seal,
                )
        raise AssertionError("unreachable")

    def _is_final(self, failure: ProxyError, attempt: int, *, is_late: bool) -> bool:
        """Whether to give up a submission that failed so, now or as its next try would be late."""
        match failure:
            case UpstreamMisconfigured():  # or a gust of refusals at RunPod's edge
                return not self.endpoint.trust.outlasts_refusal()
            case NotSent():
                return is_late or attempt >= REPEATS
        return is_late

    def _submitted(self, submission: asyncio.Task[Job], state: _Submission) -> None:
        """Count it as live from the moment on that it is no longer being submitted."""
        self._submissions.discard(submission)
        if not submission.cancelled() and submission.exception() is None:
            self._live[submission.result()] = state.place
            return
        state.place.leave()
        if state.invitation is not None:
            state.invitation.close(has_ended=False)


async def _ended_course(endpoint: Endpoint, job_id: str) -> Course | None:
    state = await endpoint.status(job_id)
    return state.course if state.status.is_terminal else None


def _close_late(submission: asyncio.Task[Job]) -> None:
    if not submission.cancelled() and submission.exception() is None:
        submission.result().close()


def _encoded(
    job_input: Mapping[str, Any],
    terms: Terms,
    invitation: Invitation | None,
    seal: "Seal | None",
) -> bytes:
    if invitation is not None:
        job_input = inviting(job_input, invitation.told)
    if seal is not None:
        job_input = seal.input(job_input)
    job = msgspec.json.encode({"input": job_input, "policy": _policy(terms)})
    if len(job) > MAX_JOB_BYTES:
        if invitation is not None:
            invitation.close(has_ended=True)
        sealed = ", sealed, which makes it a third larger" if seal is not None else ""
        raise RequestTooLarge(f"The request is larger than a job of RunPod may be{sealed}.")
    return job


def _policy(terms: Terms) -> dict[str, int | bool]:
    """RunPod's own limits for the job, in ms, so that one we lose sight of ends by itself."""
    execution_ms = max(MIN_EXECUTION_MS, round(terms.total_timeout_seconds * 1000))
    ttl_ms = round(
        (terms.queue_timeout_seconds + terms.total_timeout_seconds + TTL_MARGIN_SECONDS) * 1000
    )
    limits: dict[str, int | bool] = {"executionTimeout": execution_ms, "ttl": ttl_ms}
    return limits | ({"lowPriority": True} if terms.low_priority else {})
