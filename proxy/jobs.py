"""The life of a job: submitted, followed to its end, and cancelled if its end is not awaited."""

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.cancellation import Canceller
from proxy.endpoint import Endpoint, JobState, JobStatus
from proxy.errors import (
    ColdStartTimeout,
    DeadlinePassed,
    JobNotFound,
    NotSent,
    ProxyError,
    Stopping,
    UpstreamBusy,
    UpstreamUnavailable,
    WorkerFailed,
)

SHORTEST_EXECUTION_MS = 5_000
"""RunPod's lower limit of policy.executionTimeout; that of policy.ttl is twice as long."""
TTL_MARGIN_SECONDS = 60
RETRY_AFTER_COLD_START_SECONDS = 30
LONGEST_PAUSE_SECONDS = 5.0


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


class Jobs:
    """The jobs of one endpoint."""

    def __init__(
        self, endpoint: Endpoint, deadlines: Deadlines, canceller: Canceller, poll_seconds: float
    ) -> None:
        self.endpoint = endpoint
        self.deadlines = deadlines
        self.poll_seconds = poll_seconds
        self.stops_at = math.inf
        """When jobs still running are given up (monotonic clock): after `drain`."""
        self._canceller = canceller

    async def submit(self, job_input: Mapping[str, Any]) -> "Job":
        """Queue a job.

        Cancelling this call does not lose the job: if RunPod has taken it, it is cancelled.
        """
        job = orjson.dumps({"input": job_input, "policy": self.deadlines.policy})
        submission = asyncio.ensure_future(self.endpoint.run(job))
        try:
            job_id = await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(self._cancel_late)
            raise
        return Job(job_id, self)

    def cancel(self, job_id: str, *, is_running: bool) -> None:
        """Have a job cancelled that nobody waits for; see Canceller."""
        self._canceller.cancel(self.endpoint, job_id, is_running=is_running)

    def drain(self, seconds: float) -> None:
        """Let jobs go on for this long; those that have not ended then raise Stopping."""
        self.stops_at = time.monotonic() + seconds

    def _cancel_late(self, submission: asyncio.Future[str]) -> None:
        if not submission.cancelled() and submission.exception() is None:
            self.cancel(submission.result(), is_running=False)


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
        """Cancel the job unless it has ended."""
        if not self.has_ended:
            self.has_ended = True
            self._jobs.cancel(self.id, is_running=self._has_output)

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
