"""Cancelling jobs that nobody waits for any more, until RunPod says each has ended."""

import asyncio
import logging
from collections.abc import Callable

from proxy.endpoint import Endpoint, JobStatus
from proxy.errors import JobNotFound, ProxyError, UpstreamMisconfigured, WorkerFailed

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
RACE_SECONDS = 1.0
"""How long after a worker took a job its SDK may still overlook a request to stop it."""


class Canceller:
    """Sends /cancel for the jobs it is given, again and again until they have ended.

    A caller hands a job over and goes on; nothing is dropped while the proxy runs. `on_ended` is
    called with the id of each job once it needs no more cancelling.
    """

    def __init__(self, on_ended: Callable[[str], None]) -> None:
        self._on_ended = on_ended
        self._tasks: set[asyncio.Task[None]] = set()

    def cancel(self, endpoint: Endpoint, job_id: str, *, is_running: bool) -> None:
        """Take over a job; `is_running` says that a worker has put something out for it."""
        task = asyncio.create_task(self._until_ended(endpoint, job_id, is_running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, seconds: float) -> None:
        """Wait for the cancels under way, at most this long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()

    async def _until_ended(self, endpoint: Endpoint, job_id: str, is_running: bool) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not await self._try(endpoint, job_id):
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        log.info("cancelled job %s", job_id)
        if not is_running:
            # The worker may have taken the job a moment ago. RunPod's SDK drops a stop that comes
            # before the job's task exists, and RunPod is not known to repeat it.
            await asyncio.sleep(RACE_SECONDS)
            await self._try(endpoint, job_id)
        self._on_ended(job_id)

    async def _try(self, endpoint: Endpoint, job_id: str) -> bool:
        """Send one /cancel, and tell whether the job has ended."""
        try:
            return (await _state_after_cancel(endpoint, job_id)).is_terminal
        except JobNotFound:
            return True
        except UpstreamMisconfigured as exc:
            log.error("cannot cancel job %s: %s", job_id, exc)
            return True
        except ProxyError as exc:
            log.warning("cancel of job %s will be repeated: %s", job_id, exc)
            return False


async def _state_after_cancel(endpoint: Endpoint, job_id: str) -> JobStatus:
    try:
        return await endpoint.cancel(job_id)
    except WorkerFailed:  # refused, as it may be once the job has ended
        return (await endpoint.status(job_id)).status
