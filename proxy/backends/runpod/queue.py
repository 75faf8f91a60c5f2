"""A queue endpoint as a backend: every call becomes a job."""

import msgspec

from proxy.api.answer import Answer, Head, is_name
from proxy.api.call import Call
from proxy.backends.backend import InFlight
from proxy.backends.cold_start import ColdStartAnswer
from proxy.backends.deadlines import Terms
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.runpod.answer import JobAnswer
from proxy.backends.runpod.job_input import job_input
from proxy.backends.runpod.jobs import Jobs
from proxy.memory import Memory
from proxy.telemetry.metrics import Metrics

MAX_SERVED = 1_000
"""How many models an endpoint may be said to serve; a broken worker might tell ever new ones."""


class QueueBackend:
    """The Backend whose calls are jobs."""

    def __init__(self, jobs: Jobs, metrics: Metrics, memory: Memory) -> None:
        self.served: dict[str, int | None] = {}
        self._jobs = jobs
        self._metrics = metrics
        self._memory = memory

    @property
    def monitor(self) -> HealthMonitor:
        """What /health tells of the endpoint."""
        return self._jobs.monitor

    def ask(self, call: Call, served_as: str | None, terms: Terms) -> Answer:
        """A job's answer; the job is submitted when it is opened."""
        answer = JobAnswer(
            lambda: self._jobs.submit(job_input(call, served_as), terms, call.on_spent),
            wants_stream=call.wants_stream,
            ends=call.route.dialect.ends,
            endpoint=self._jobs.endpoint.name,
            metrics=self._metrics,
            memory=self._memory,
            on_head=self._learn,
        )
        return ColdStartAnswer(answer, self.monitor, self._worker_of)

    def in_flight(self) -> InFlight:
        """Jobs, and those still being submitted."""
        waiting = self._jobs.waiting
        return InFlight(waiting, self._jobs.live - waiting, self._jobs.in_line)

    async def close(self, seconds: float) -> None:
        """Ask for /health no more; wait for submissions, each of which may have become a job."""
        await self.monitor.close()
        await self._jobs.settle(seconds)

    async def _worker_of(self, job_id: str) -> str | None:
        return (await self._jobs.endpoint.status(job_id)).worker_id

    def _learn(self, head: Head, first: bytes) -> None:
        """Note what a worker serves: it says so itself, or at least its answer names its model."""
        for model in head.models:
            self._note(model["id"], model["max_model_len"])
        if self.served:
            return
        try:
            fields = msgspec.json.decode(first.removeprefix(b"data: ").partition(b"\n")[0])
        except (ValueError, RecursionError):
            return
        match fields:
            case {"model": name} if is_name(name):
                self._note(name, None)

    def _note(self, name: str, max_model_len: int | None) -> None:
        if name in self.served or len(self.served) < MAX_SERVED:
            self.served[name] = max_model_len
