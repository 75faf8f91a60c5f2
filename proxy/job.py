"""One job in flight: followed to its end, poll by poll, under its deadlines."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.endpoint import JobState, JobStatus, StreamPage
from proxy.errors import (
    ColdStartTimeout,
    FirstTokenTimeout,
    IdleTimeout,
    JobNotFound,
    NotSent,
    ProxyError,
    Stopping,
    TotalTimeout,
    UpstreamBusy,
    UpstreamUnavailable,
    WorkerFailed,
)

if TYPE_CHECKING:
    from proxy.jobs import Jobs

SHORTEST_EXECUTION_MS = 5_000
"""RunPod's lower limit of policy.executionTimeout; that of policy.ttl is twice as long."""
TTL_MARGIN_SECONDS = 60
RETRY_AFTER_COLD_START_SECONDS = 30
LONGEST_PAUSE_SECONDS = 5.0
LATE_SECONDS = 0.5
"""How much longer than asked for a poll may take before its reader is told that nothing came."""
RESULT_TRIES = 4


@dataclass(frozen=True, slots=True)
class Terms:
    """How long each part of a job may take, in seconds, and what RunPod is told of it."""

    connect: float
    queue: float
    first_token: float
    idle: float
    total: float
    poll: float
    """How long RunPod may hold a poll, so how often the caller is back at work."""
    low_priority: bool = False

    @property
    def policy(self) -> dict[str, int | bool]:
        """RunPod's own limits for the job, in ms, so that one we lose sight of ends by itself."""
        execution_ms = max(SHORTEST_EXECUTION_MS, round(self.total * 1000))
        ttl_ms = round((self.queue + self.total + TTL_MARGIN_SECONDS) * 1000)
        limits: dict[str, int | bool] = {"executionTimeout": execution_ms, "ttl": ttl_ms}
        return limits | ({"lowPriority": True} if self.low_priority else {})


class Job:
    """One job in flight. Whoever holds it calls `close` in the end, whatever happens."""

    def __init__(self, job_id: str, jobs: "Jobs", terms: Terms) -> None:
        self.id = job_id
        self.status = JobStatus.IN_QUEUE
        self.has_ended = False
        """Nothing is left to cancel: RunPod says so, or the answer is complete."""
        self.has_lost_a_poll = False
        """The answer of a poll broke; it may have handed outputs out."""
        self._jobs = jobs
        self._terms = terms
        self._submitted = self._moved = time.monotonic()
        self._taken: float | None = None
        self._has_output = False
        self._is_closed = False
        self._polling: asyncio.Task[StreamPage] | None = None

    @property
    def poll_seconds(self) -> float:
        """See Terms: nobody who waits for this job hears nothing for longer."""
        return self._terms.poll

    @property
    def worker_seconds(self) -> float:
        """How long a worker has had the job so far, as seen from here."""
        return 0.0 if self._taken is None else time.monotonic() - self._taken

    async def follow(self) -> AsyncGenerator[list[Any]]:
        """Yield the outputs of each poll until the job has ended and all of them have come.

        A turn in which nothing came yields an empty list, so the caller is back at work at least
        every `Terms.poll` seconds or so. A poll that fails is repeated until a deadline.

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
            wait_seconds = min(self._terms.poll, self._seconds_left(failure))
            if self._polling is None:
                asked = time.monotonic()
            try:
                page = await self._poll(wait_seconds)
            except JobNotFound:
                self.has_ended = True
                raise WorkerFailed("RunPod has forgotten the job before it was done.") from None
            except UpstreamUnavailable as exc:
                failures, failure = failures + 1, exc
                self.has_lost_a_poll |= not isinstance(exc, NotSent | UpstreamBusy)
                yield []
                # A longer pause that RunPod asks for is kept by the budget of all calls.
                await asyncio.sleep(min(pause(failures), wait_seconds))
                continue
            if page is None:
                yield []
                continue
            failures, failure = 0, None
            self._note(page.status, page.outputs)
            handed_out = time.monotonic()
            yield page.outputs
            self._moved += time.monotonic() - handed_out  # our reader's pause, not the worker's
            if page.outputs:
                quick_returns = 0
            elif self.has_ended:
                return
            elif time.monotonic() - asked < wait_seconds / 2:
                # A platform that does not hold the call must not make us spin.
                quick_returns += 1
                await asyncio.sleep(min(pause(quick_returns - 2), 1.0))

    async def result(self) -> JobState:
        """What RunPod says of the ended job, with its aggregate output."""
        for attempt in range(RESULT_TRIES):
            is_last = attempt == RESULT_TRIES - 1
            try:
                state = await self._jobs.endpoint.status(self.id)
            except JobNotFound:
                raise WorkerFailed("RunPod has forgotten the job's result.") from None
            except UpstreamUnavailable:
                if is_last:
                    raise
            else:
                if state.status.is_terminal or is_last:  # it can lag behind what /stream said
                    return state
            await asyncio.sleep(pause(attempt))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Give the job up: it is cancelled unless it has ended. Closing twice does nothing."""
        if not self._is_closed:
            self._is_closed = True
            if self._polling is not None:
                self._polling.cancel()
                self._polling.add_done_callback(lambda poll: poll.cancelled() or poll.exception())
            self._jobs.release(self, is_running=self._has_output)

    async def _poll(self, wait_seconds: float) -> StreamPage | None:
        """What the poll under way hands out, or a new one; None if that takes too long.

        It may have to wait for its turn, or RunPod be slow. It goes on then: what it hands out
        would not be given again.
        """
        if self._polling is None:
            self._polling = asyncio.create_task(
                self._jobs.endpoint.stream(
                    self.id, wait_seconds=wait_seconds, urgent=not self._has_output
                )
            )
        await asyncio.wait({self._polling}, timeout=wait_seconds + LATE_SECONDS)
        if not self._polling.done():
            return None
        poll, self._polling = self._polling, None
        return poll.result()

    def _note(self, status: JobStatus, outputs: list[Any]) -> None:
        now = time.monotonic()
        if outputs or status != self.status:
            self._moved = now
        if self._taken is None and (outputs or status is JobStatus.IN_PROGRESS):
            self._taken = now
            self._jobs.watch.note_answer()
        self._has_output = self._has_output or bool(outputs)
        self.status = status
        self.has_ended = self.has_ended or status.is_terminal
        if status is JobStatus.IN_QUEUE:
            self._jobs.watch.touch()

    def _seconds_left(self, failure: UpstreamUnavailable | None) -> float:
        """Until the next deadline; raises the error that belongs to one that has passed."""
        now = time.monotonic()
        if (stop_left := self._jobs.stops_at - now) <= 0:
            raise Stopping("The proxy is shutting down. Please send the request again.")
        if (left := self._submitted + self._terms.total - now) <= 0:
            raise failure or TotalTimeout()
        limit, error = self._limit()
        if (phase_left := self._moved + limit - now) <= 0:
            raise failure or error
        return min(stop_left, left, phase_left)

    def _limit(self) -> tuple[float, ProxyError]:
        """The limit of the part the job is in, and the error for passing it."""
        if self._has_output:
            return self._terms.idle, IdleTimeout()
        if self.status is JobStatus.IN_QUEUE:
            return self._terms.queue, ColdStartTimeout(
                f"No worker took the job in time: {self._jobs.watch.why_nobody_answers}. "
                "Try again in a while.",
                retry_after_seconds=RETRY_AFTER_COLD_START_SECONDS,
            )
        return self._terms.first_token, FirstTokenTimeout()


def pause(attempt: int) -> float:
    """Growing pauses with jitter: about 0.2, 0.4, 0.8 ... seconds, and a cap."""
    longest = min(LONGEST_PAUSE_SECONDS, 0.2 * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
