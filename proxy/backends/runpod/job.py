"""One job in flight: followed to its end, poll by poll, under its deadlines."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from proxy.backends.deadlines import Deadlines, pause
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.refusals import Gust
from proxy.backends.runpod.endpoint import Endpoint, JobState, JobStatus, StreamPage
from proxy.errors import (
    JobNotFound,
    NotSent,
    ProxyError,
    UpstreamBusy,
    UpstreamMisconfigured,
    UpstreamUnavailable,
    WorkerFailed,
)

LATE_SECONDS = 0.5
"""How much longer than asked for a poll may take before its reader is told that nothing came."""
RESULT_TRIES = 4
FORGOTTEN = "RunPod does not know the job (any more), though it has taken it."


class Job:
    """One job in flight. Its holder calls `close` in the end, whatever happens.

    `on_close` is told the job, and whether a worker is known to work on it.
    """

    def __init__(
        self,
        job_id: str,
        endpoint: Endpoint,
        monitor: HealthMonitor,
        deadlines: Deadlines,
        *,
        on_close: Callable[["Job", bool], None],
    ) -> None:
        self.id = job_id
        self.status = JobStatus.IN_QUEUE
        """As RunPod says; IN_QUEUE also while the worker that has it is not known to be up."""
        self.has_ended = False
        """Nothing is left to cancel: RunPod says so, or the answer is complete."""
        self.has_lost_a_poll = False
        """The answer of a poll broke; it may have handed outputs out."""
        self.deadlines = deadlines
        self._endpoint = endpoint
        self._monitor = monitor
        self._on_close = on_close
        self._taken: float | None = None
        self._worker_id: str | None = None
        """Of a worker that has the job and may still be loading its model."""
        self._has_output = False
        self._is_closed = False
        self._failures = 0
        """Of polls in a row."""
        self._failure: ProxyError | None = None
        """The last of them."""
        self._gust = Gust()
        self._polling: asyncio.Task[StreamPage] | None = None

    @property
    def keep_alive_seconds(self) -> float:
        """How long one turn of `follow` may take."""
        return self.deadlines.terms.keep_alive_seconds

    @property
    def worker_seconds(self) -> float:
        """How long a worker has had the job so far, as seen from here."""
        return 0.0 if self._taken is None else time.monotonic() - self._taken

    async def follow(self) -> AsyncGenerator[list[Any]]:
        """Yield the outputs of each poll until the job has ended and all of them have come.

        A turn in which nothing came yields an empty list, so the caller is back at work at least
        every `keep_alive_seconds` or so. A poll that fails is repeated until a deadline, one
        that is refused until that is to be believed.

        Raises:
            ColdStartTimeout, DeadlinePassed: a deadline passed.
            UpstreamUnavailable: it passed while RunPod could not be reached.
            Stopping: the proxy is shutting down.
            UpstreamMisconfigured: RunPod refuses our key.
            WorkerFailed: RunPod does not know the job.
        """
        quick_returns = 0
        while True:
            wait_seconds = min(self.keep_alive_seconds, self.deadlines.seconds_left(self._failure))
            if self._polling is None:
                asked = time.monotonic()
            try:
                page = await self._poll(wait_seconds)
            except (UpstreamUnavailable, UpstreamMisconfigured, JobNotFound) as exc:
                self._note_failure(exc)
                yield []
                # A longer pause that RunPod asks for is kept by the budget of all calls.
                await asyncio.sleep(min(pause(self._failures), wait_seconds))
                continue
            if page is None:
                yield []
                continue
            self._note(page.status, page.outputs)
            if page.status is JobStatus.IN_PROGRESS and self.status is JobStatus.IN_QUEUE:
                await self._ask_for_worker()
            handed_out = time.monotonic()
            yield page.outputs
            self.deadlines.exclude(time.monotonic() - handed_out)
            if page.outputs:
                quick_returns = 0
            elif self.has_ended:
                return
            elif time.monotonic() - asked < wait_seconds / 2:
                # A platform that does not hold the call must not make us spin. The first pause is
                # 0.1 s at most, since one quick return may be a change of the job's state.
                quick_returns += 1
                await asyncio.sleep(min(pause(quick_returns - 2), 1.0))

    async def result(self) -> JobState:
        """What RunPod says of the ended job, with its aggregate output.

        Raises UpstreamUnavailable, UpstreamMisconfigured and WorkerFailed, as `follow` does.
        """
        self.deadlines.note_ended()
        tries = 0
        for attempt in itertools.count():
            try:
                state = await self._endpoint.status(self.id)
            except (JobNotFound, UpstreamMisconfigured) as exc:
                self._refusal(exc)
            except UpstreamUnavailable:
                if (tries := tries + 1) == RESULT_TRIES:
                    raise
            else:
                # It can lag behind what /stream said.
                if state.status.is_terminal or (tries := tries + 1) == RESULT_TRIES:
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
            self._on_close(self, self._has_output)

    async def _poll(self, wait_seconds: float) -> StreamPage | None:
        """What the poll under way hands out, or a new one; None if that takes too long.

        It may have to wait for its turn, or RunPod be slow. It goes on then: what it hands out
        would not be given again.
        """
        if self._polling is None:
            self._polling = asyncio.create_task(
                self._endpoint.stream(
                    self.id, wait_seconds=wait_seconds, urgent=not self._has_output
                )
            )
        await asyncio.wait({self._polling}, timeout=wait_seconds + LATE_SECONDS)
        if not self._polling.done():
            return None
        poll, self._polling = self._polling, None
        return poll.result()

    def _note_failure(self, exc: UpstreamUnavailable | UpstreamMisconfigured | JobNotFound) -> None:
        """Keep what a poll failed with, for the deadline that may pass meanwhile."""
        self._failures += 1
        if isinstance(exc, UpstreamUnavailable):
            self._failure = exc
            self.has_lost_a_poll |= not isinstance(exc, NotSent | UpstreamBusy)
        else:
            self._failure = self._refusal(exc)

    def _refusal(self, exc: JobNotFound | UpstreamMisconfigured) -> ProxyError:
        """What a refused call means; raised once refusals have lasted so long as to be believed."""
        failure = WorkerFailed(FORGOTTEN) if isinstance(exc, JobNotFound) else exc
        if self._gust.has_lasted():
            raise failure from None
        return failure

    def _note(self, status: JobStatus, outputs: list[Any]) -> None:
        self._failures, self._failure = 0, None
        self._gust.end()
        if self._taken is None and (outputs or status is JobStatus.IN_PROGRESS):
            self._taken = time.monotonic()
        if outputs:
            self._has_output = True
            self.deadlines.note_output()
        elif status is JobStatus.IN_QUEUE:
            self._worker_id = None
            self.deadlines.note_requeued()
            self._monitor.request_updates()
        elif status.is_terminal or self._is_started:
            self.deadlines.note_started()
        else:
            status = JobStatus.IN_QUEUE
        self.status = status
        self.has_ended = self.has_ended or status.is_terminal

    @property
    def _is_started(self) -> bool:
        """Whether the worker that has the job is known to be up."""
        if self._has_output or self.status is not JobStatus.IN_QUEUE:
            return True
        workers = self._monitor.starts.workers
        return self._worker_id is not None and workers.has_answered(self._worker_id)

    async def _ask_for_worker(self) -> None:
        """Learn whether the worker that has the job, and has put nothing out yet, ever answered.

        Where RunPod does not say which worker it is, it counts as one that is up.
        """
        if self._worker_id is not None:
            return
        try:
            async with asyncio.timeout(self.deadlines.seconds_left()):
                state = await self._endpoint.status(self.id)
        except (ProxyError, JobNotFound, TimeoutError):
            return  # it is asked again after the next poll
        if state.status is JobStatus.IN_QUEUE:
            return
        self._worker_id = state.worker_id
        if state.worker_id is None or state.status.is_terminal or self._is_started:
            self.status = JobStatus.IN_PROGRESS
            self.deadlines.note_started()
