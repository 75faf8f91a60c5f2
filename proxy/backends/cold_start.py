"""An answer whose worker may have to be started first, and may not start at all."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from proxy.api.answer import Answer, Course, WrappedAnswer
from proxy.backends.health_monitor import HealthMonitor
from proxy.errors import JobNotFound, ModelStartFailed, ProxyError, SealingFailed, VLLMError

REQUEUED_LOOK_SECONDS = 1.0
WORKER_ID_SECONDS = 5.0


class ColdStartAnswer(WrappedAnswer):
    """An endpoint's answer; while it waits for a worker it ends when a start fails.

    `worker_of` tells which worker has a job, where that can be told.
    """

    def __init__(
        self,
        answer: Answer,
        monitor: HealthMonitor,
        worker_of: Callable[[str], Awaitable[str | None]] | None = None,
    ) -> None:
        self._answer = self.inner = answer
        self._monitor = monitor
        self._starts = monitor.starts
        self._worker_of = worker_of
        self._learning: asyncio.Task[None] | None = None
        self._was_cold: bool | None = None

    @property
    def course(self) -> Course:
        """The inner answer's course, and whether it began with a start."""
        return replace(self._answer.course, was_cold=self._was_cold)

    async def open(self) -> bytes:
        """Open the inner answer.

        Raises:
            InsufficientQuota: the endpoint has spent its daily budget.
            ModelStartFailed, SealingFailed: no worker of the endpoint could start, or could open
                the job; at once, without a job, while no further start is tried.
        """
        self._monitor.ceiling.check()
        if self._starts.failure is not None:
            self._monitor.request_updates()
            self._starts.check()
        began = time.monotonic()
        opening = asyncio.create_task(self._answer.open())
        with self._monitor.waiting():
            try:
                await self._wait_for(opening)
                first = opening.result()
            except VLLMError:
                self._note_answer()
                raise
            except (ModelStartFailed, SealingFailed) as exc:
                if opening.done():  # the worker of this very job has told its cause
                    self._starts.note_failure(exc, exits=False)
                raise
            finally:
                self._was_cold = self._monitor.clock.has_met_start(began)
                opening.cancel()
            self._note_answer()
            return first

    def close(self) -> None:
        """Close the inner answer."""
        self._starts.note_end(self)
        self._answer.close()

    async def _wait_for(self, opening: asyncio.Task[bytes]) -> None:
        """Wait for the answer; raises its error if a start fails while no worker has it."""
        while not opening.done():
            with self._starts.told() as failed:
                events: set[asyncio.Future[Any]] = {opening, failed}
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
                if not failed.done():
                    return
            while not self._answer.is_waiting and self._starts.failure:
                # A worker has the job; should it lose it, the job would wait for another in vain.
                if (await asyncio.wait({opening}, timeout=REQUEUED_LOOK_SECONDS))[0]:
                    return
            if self._answer.is_waiting and not opening.done():
                self._answer.close()
                failure = failed.result()
                raise type(failure)(failure.message)

    def _note_answer(self) -> None:
        if self.head is not None and not self.head.is_workers:
            return
        self._monitor.note_answer()
        self._starts.note_answer(self)
        if self._worker_of is not None and self._starts.workers.may_ask():
            self._learning = asyncio.create_task(self._learn(self._worker_of))

    async def _learn(self, worker_of: Callable[[str], Awaitable[str | None]]) -> None:
        """Note that the worker which has the job has answered, if RunPod tells which it is."""
        if (job_id := self._answer.job_id) is None:
            return
        with contextlib.suppress(ProxyError, JobNotFound, TimeoutError):
            async with asyncio.timeout(WORKER_ID_SECONDS):
                if (worker_id := await worker_of(job_id)) is not None:
                    self._starts.workers.note_answered(worker_id)
