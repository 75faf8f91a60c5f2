"""Cancelling jobs that no request waits for any more, until RunPod says each has ended."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.backends.refusals import Gust
from proxy.backends.runpod.endpoint import Endpoint, JobStatus
from proxy.errors import JobNotFound, ProxyError, UpstreamMisconfigured, WorkerFailed

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 10.0
MAX_REFUSED_PAUSE_SECONDS = 60.0
"""The longest pause while RunPod refuses our key: that may last, and be mended at any time."""
RACE_SECONDS = 1.0
"""How long after a worker took a job its SDK may still overlook a request to stop it."""
MAX_NAMED = 20
"""So many jobs that were left running are named in the log."""


@dataclass(slots=True)
class _Cancel:
    """One job that is being cancelled."""

    endpoint: Endpoint
    job_id: str
    is_running: bool
    gust: Gust = field(default_factory=lambda: Gust(2 * MAX_PAUSE_SECONDS))
    told: str = ""
    """The last failure that was logged."""

    async def attempt(self) -> bool:
        """Send one /cancel, and tell whether the job has ended.

        A job that RunPod does not know may be too new for it; when it has been so for a while, the
        job is gone.
        """
        try:
            status = await self._status_after_cancel()
        except JobNotFound:
            return self.gust.has_lasted()
        self.gust.end()
        return status.is_terminal

    async def _status_after_cancel(self) -> JobStatus:
        try:
            return await self.endpoint.cancel(self.job_id)
        except WorkerFailed:  # refused, as it may be once the job has ended
            return (await self.endpoint.status(self.job_id)).status

    def tell(self, failure: ProxyError) -> None:
        """Log a failure, unless it is the one that was logged before."""
        if failure.message != self.told:
            self.told = failure.message
            log.warning("the cancel of job %s is repeated: %s", self.job_id, failure)


class Canceller:
    """Sends /cancel for the jobs it is given, again and again until they have ended.

    A caller hands a job over and goes on; nothing is dropped while the proxy runs. `on_ended` is
    called with the id of each job once it needs no more cancelling.
    """

    def __init__(self, on_ended: Callable[[str], None]) -> None:
        self._on_ended = on_ended
        self._tasks: dict[asyncio.Task[None], _Cancel] = {}

    def cancel(self, endpoint: Endpoint, job_id: str, *, is_running: bool) -> None:
        """Take over a job; `is_running` says that a worker has put something out for it."""
        cancel = _Cancel(endpoint, job_id, is_running)
        task = asyncio.create_task(self._until_ended(cancel))
        self._tasks[task] = cancel
        task.add_done_callback(self._tasks.pop)

    async def drain(self, seconds: float) -> None:
        """Wait for the cancels under way: so long, and as long as RunPod's limit needs for them.

        What is left after that is logged.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds + self._seconds_needed())
        for endpoint, left in self._by_endpoint().items():
            ids = ", ".join(cancel.job_id for cancel in left[:MAX_NAMED])
            log.error(
                "%d jobs may still run at endpoint %s; POST %s/cancel/ID stops one: %s%s",
                *(len(left), endpoint.name, endpoint.url),
                *(ids, ", ..." if len(left) > MAX_NAMED else ""),
            )
        for task in self._tasks:
            task.cancel()

    def _seconds_needed(self) -> float:
        return max(
            endpoint.seconds_for_cancels(sum(1 if c.is_running else 2 for c in cancels))
            for endpoint, cancels in self._by_endpoint().items()
        )

    def _by_endpoint(self) -> dict[Endpoint, list[_Cancel]]:
        found = defaultdict[Endpoint, list[_Cancel]](list)
        for cancel in self._tasks.values():
            found[cancel.endpoint].append(cancel)
        return found

    async def _until_ended(self, cancel: _Cancel) -> None:
        await self._repeat(cancel)
        log.info("job %s has ended", cancel.job_id)
        if not cancel.is_running:
            # The worker may have taken the job a moment ago. RunPod's SDK drops a stop that comes
            # before the job's task exists, and RunPod is not known to repeat it.
            await asyncio.sleep(RACE_SECONDS)
            await self._repeat(cancel)
        self._on_ended(cancel.job_id)

    async def _repeat(self, cancel: _Cancel) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            longest = MAX_PAUSE_SECONDS
            try:
                if await cancel.attempt():
                    return
            except ProxyError as exc:
                cancel.tell(exc)
                if isinstance(exc, UpstreamMisconfigured):
                    longest = MAX_REFUSED_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)
