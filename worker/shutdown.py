"""How the SDK's loop ends: on a signal after the running jobs, on vLLM's death with an error, or,
where the model did not start, when jobs have been refused for long enough.

The SDK alone would take up to 90 seconds to exit, since it does not cancel its pending polls, and
it knows nothing of vLLM. It offers no hook inside its loop either, except one: it calls the
concurrency modifier there, first when its own signal handlers are already in place. So the
modifier is where we come in, put our handlers over the SDK's, and begin to watch.

The SDK asks for as many jobs as are left of that number when those it has are subtracted
(`JobScaler.get_jobs`). A worker that is about to end names one of which nothing is ever left: so it
takes no new jobs, while the SDK goes on to start, finish and report those it has taken.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

from worker.answer import VLLMClient
from worker.direct.road import DirectRoad
from worker.errors import StartError

log = logging.getLogger(__name__)

JOBS_CHECK_SECONDS: Final = 0.05
REPORT_SECONDS: Final = 5.0
"""How long jobs that were broken off have to report their error."""


class NoneLeft(int):
    """A number of jobs of which nothing is left, however few the worker has."""

    def __sub__(self, other: int) -> int:
        return 0


class Shutdown:
    """Watches for a signal and for the failure that `fails` returns, then ends the SDK's loop."""

    def __init__(
        self,
        fails: Callable[[], Awaitable[StartError]],
        client: VLLMClient | None = None,
        road: DirectRoad | None = None,
        *,
        concurrency: int,
        grace_seconds: float,
    ) -> None:
        self.begun = False
        self.failure: StartError | None = None
        self._fails = fails
        self._client = client
        self._road = road
        self._concurrency = concurrency
        self._grace_seconds = grace_seconds
        self._signals = 0
        self._signalled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def concurrency_modifier(self, current: int) -> int:
        """For the SDK: how many jobs at a time, and no new ones once the end has begun."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._on_signal)
            self._task = loop.create_task(self._watch())
        return NoneLeft(self._concurrency) if self.begun else self._concurrency

    def _on_signal(self) -> None:
        self._signals += 1
        self._signalled.set()

    async def _watch(self) -> None:
        failed = asyncio.ensure_future(self._fails())
        signalled = asyncio.create_task(self._signalled.wait())
        either: set[asyncio.Future[Any]] = {failed, signalled}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        self.begun = True
        if failed.done():
            self.failure = failed.result()
            self._hurry()
            await self._jobs_end(REPORT_SECONDS)
        else:
            await self._finish_jobs()
        if self._client is not None:
            await self._client.close()
        if self._road is not None:
            await self._road.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    @staticmethod
    def _jobs_in_progress() -> int:
        from runpod.serverless.modules.worker_state import JobsProgress  # it takes seconds

        count: int = JobsProgress().get_job_count()
        return count

    async def _finish_jobs(self) -> None:
        jobs = self._jobs_in_progress()
        log.info("stopping: %d jobs may finish within %g seconds", jobs, self._grace_seconds)
        if not await self._jobs_end(self._grace_seconds):
            log.warning("stopping: %d jobs did not finish in time", self._jobs_in_progress())
            if self._client is not None:
                self._client.give_up()
            self._hurry()
            await self._jobs_end(REPORT_SECONDS)

    def _hurry(self) -> None:
        if self._road is not None:
            self._road.hurry()

    async def _jobs_end(self, seconds: float) -> bool:
        """Whether all jobs have ended and been reported. A second signal ends the wait."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        signals = self._signals
        while self._jobs_in_progress():
            if loop.time() > deadline or self._signals > signals:
                return False
            await asyncio.sleep(JOBS_CHECK_SECONDS)
        return True
