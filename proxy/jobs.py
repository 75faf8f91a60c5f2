"""The life of a job: submitted, followed to its end, and cancelled if its end is not awaited."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.breaker import Breaker
from proxy.cancellation import Canceller
from proxy.endpoint import Endpoint, JobState, JobStatus
from proxy.errors import (
    ColdStartTimeout,
    DeadlinePassed,
    EndpointOverloaded,
    JobNotFound,
    NotSent,
    ProxyError,
    Stopping,
    UpstreamBusy,
    UpstreamMisconfigured,
    UpstreamUnavailable,
    WorkerFailed,
)
from proxy.journal import Journal

SHORTEST_EXECUTION_MS = 5_000
"""RunPod's lower limit of policy.executionTimeout; that of policy.ttl is twice as long."""
TTL_MARGIN_SECONDS = 60
RETRY_AFTER_COLD_START_SECONDS = 30
RETRY_AFTER_OVERLOAD_SECONDS = 5
LONGEST_PAUSE_SECONDS = 5.0
REPEATS = 2
"""How often a submission that did not reach RunPod is repeated."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each part of a job may take, in seconds."""

    queue: float
    first_token: float
    idle: float
    total: float

    @property
    def policy(self) -> dict[str, int]:
        """RunPod's own limits for the job, in ms, so that one we lose sight of ends by itself."""
        execution_ms = max(SHORTEST_EXECUTION_MS, round(self.total * 1000))
        ttl_ms = round((self.queue + self.total + TTL_MARGIN_SECONDS) * 1000)
        return {"executionTimeout": execution_ms, "ttl": ttl_ms}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many jobs this proxy may have at a time."""

    live: int
    waiting: int
    """Of them, how many may wait for a worker."""


class Jobs:
    """The jobs of one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        deadlines: Deadlines,
        bounds: Bounds,
        poll_seconds: float,
        canceller: Canceller,
        journal: Journal,
    ) -> None:
        self.endpoint = endpoint
        self.deadlines = deadlines
        self.poll_seconds = poll_seconds
        self.stops_at = math.inf
        """When jobs still running are given up (monotonic clock): after `drain`."""
        self._bounds = bounds
        self._canceller = canceller
        self._journal = journal
        self._breaker = Breaker()
        self._submitting = 0
        self._live: set[Job] = set()

    async def submit(self, job_input: Mapping[str, Any]) -> "Job":
        """Queue a job.

        A submission that cannot have started a job is repeated; any other is not. Cancelling this
        call does not lose the job: if RunPod has taken it, it is cancelled.

        Raises:
            EndpointOverloaded: too many jobs are under way.
            UpstreamUnavailable, UpstreamMisconfigured, WorkerFailed: see Endpoint.run; at once,
                if the last submissions failed as well.
        """
        self._check_bounds()
        self._breaker.check()
        job = orjson.dumps({"input": job_input, "policy": self.deadlines.policy})
        submission = asyncio.ensure_future(self._run(job))
        self._submitting += 1
        submission.add_done_callback(self._submitted)
        try:
            job_id = await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(self._cancel_late)
            raise
        job_in_flight = Job(job_id, self)
        self._live.add(job_in_flight)
        return job_in_flight

    def release(self, job: "Job", *, is_running: bool) -> None:
        """Nobody waits for this job any more; unless it has ended it is cancelled."""
        self._live.discard(job)
        if job.has_ended:
            self._journal.remove(job.id)
        else:
            self._canceller.cancel(self.endpoint, job.id, is_running=is_running)

    def drain(self, seconds: float) -> None:
        """Let jobs go on for this long; those that have not ended then raise Stopping."""
        self.stops_at = time.monotonic() + seconds

    async def _run(self, job: bytes) -> str:
        give_up = time.monotonic() + self.deadlines.queue
        for attempt in itertools.count():
            try:
                job_id = await self.endpoint.run(job)
            except (NotSent, UpstreamBusy) as exc:  # neither can have started a job
                pause = exc.retry_after_seconds or _pause(attempt)
                is_last = attempt >= REPEATS and isinstance(exc, NotSent)
                if is_last or time.monotonic() + pause > give_up:
                    self._breaker.failed(exc)
                    raise
                await asyncio.sleep(pause)
            except (UpstreamUnavailable, UpstreamMisconfigured) as exc:
                self._breaker.failed(exc)
                raise
            else:
                self._breaker.succeeded()
                self._journal.add(self.endpoint.url, job_id)
                return job_id
        raise AssertionError("unreachable")

    def _check_bounds(self) -> None:
        live = len(self._live) + self._submitting
        waiting = self._submitting + sum(job.status is JobStatus.IN_QUEUE for job in self._live)
        if live >= self._bounds.live or waiting >= self._bounds.waiting:
            raise EndpointOverloaded(
                "Too many requests are under way or waiting for a worker. Try again in a while.",
                retry_after_seconds=RETRY_AFTER_OVERLOAD_SECONDS,
            )

    def _submitted(self, submission: asyncio.Future[str]) -> None:
        self._submitting -= 1

    def _cancel_late(self, submission: asyncio.Future[str]) -> None:
        if not submission.cancelled() and submission.exception() is None:
            self._canceller.cancel(self.endpoint, submission.result(), is_running=False)


class Job:
    """One job in flight. Whoever holds it calls `close` in the end, whatever happens."""

    def __init__(self, job_id: str, jobs: Jobs) -> None:
        self.id = job_id
        self.status = JobStatus.IN_QUEUE
        self.has_ended = False
        """Nothing is left to cancel: RunPod says so, or the answer is complete."""
        self.has_lost_a_poll = False
        """The answer of a poll broke; it may have handed outputs out."""
        self._jobs = jobs
        self._submitted = self._moved = time.monotonic()
        self._has_output = False
        self._is_closed = False

    async def follow(self) -> AsyncGenerator[list[Any]]:
        """Yield the outputs of each poll until the job has ended and all of them have come.

        A turn in which nothing came yields an empty list, so the caller is back at work at least
        every `Jobs.poll_seconds` or so. A poll that fails is repeated until a deadline.

        Raises:
            ColdStartTimeout, DeadlinePassed: a deadline passed.
            UpstreamUnavailable: it passed while RunPod could not be reached.
            Stopping: the proxy is shutting down.
            UpstreamMisconfigured: RunPod refuses our key.
            WorkerFailed: RunPod has forgotten the job.
        """
        failures = quick_returns = 0
        failure: UpstreamUnavailable | None = None
        while True:
            wait_seconds = min(self._jobs.poll_seconds, self._seconds_left(failure))
            asked = time.monotonic()
            try:
                page = await self._jobs.endpoint.stream(
                    self.id, wait_seconds=wait_seconds, urgent=not self._has_output
                )
            except JobNotFound:
                self.has_ended = True
                raise WorkerFailed("RunPod has forgotten the job before it was done.") from None
            except UpstreamUnavailable as exc:
                failures, failure = failures + 1, exc
                self.has_lost_a_poll |= not isinstance(exc, NotSent | UpstreamBusy)
                yield []
                await asyncio.sleep(exc.retry_after_seconds or _pause(failures))
                continue
            failures, failure = 0, None
            self._note(page.status, page.outputs)
            yield page.outputs
            if page.outputs:
                quick_returns = 0
            elif self.has_ended:
                return
            elif time.monotonic() - asked < wait_seconds / 2:
                # A platform that does not hold the call must not make us spin.
                quick_returns += 1
                await asyncio.sleep(min(_pause(quick_returns - 2), 1.0))

    async def result(self) -> JobState:
        """What RunPod says of the ended job, with its aggregate output."""
        for attempt in range(4):
            try:
                return await self._jobs.endpoint.status(self.id)
            except JobNotFound:
                raise WorkerFailed("RunPod has forgotten the job's result.") from None
            except UpstreamUnavailable as exc:
                if attempt == 3:
                    raise
                await asyncio.sleep(exc.retry_after_seconds or _pause(attempt))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Give the job up: it is cancelled unless it has ended. Closing twice does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.release(self, is_running=self._has_output)

    def _note(self, status: JobStatus, outputs: list[Any]) -> None:
        if outputs or status != self.status:
            self._moved = time.monotonic()
        self._has_output = self._has_output or bool(outputs)
        self.status = status
        self.has_ended = self.has_ended or status.is_terminal

    def _seconds_left(self, failure: UpstreamUnavailable | None) -> float:
        """Until the next deadline; raises the error that belongs to one that has passed."""
        now = time.monotonic()
        deadlines = self._jobs.deadlines
        if (stop_left := self._jobs.stops_at - now) <= 0:
            raise Stopping("The proxy is shutting down. Please send the request again.")
        if (left := self._submitted + deadlines.total - now) <= 0:
            raise failure or DeadlinePassed("The request took longer than it may in total.")
        limit, error = self._limit(deadlines)
        if (phase_left := self._moved + limit - now) <= 0:
            raise failure or error
        return min(stop_left, left, phase_left)

    def _limit(self, deadlines: Deadlines) -> tuple[float, ProxyError]:
        """The limit of the part the job is in, and the error for passing it."""
        if self._has_output:
            return deadlines.idle, DeadlinePassed("The worker fell silent.")
        if self.status is JobStatus.IN_QUEUE:
            return deadlines.queue, ColdStartTimeout(
                "No worker took the job in time: the endpoint may be starting, or out of GPUs. "
                "Try again in a while.",
                retry_after_seconds=RETRY_AFTER_COLD_START_SECONDS,
            )
        return deadlines.first_token, DeadlinePassed("The worker took too long to begin.")


def _pause(attempt: int) -> float:
    """Growing pauses with jitter: about 0.2, 0.4, 0.8 ... seconds, and a cap."""
    longest = min(LONGEST_PAUSE_SECONDS, 0.2 * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
