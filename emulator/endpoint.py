"""Endpoint: one serverless endpoint of either kind, its work and its workers together."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from emulator.fleet.scaler import Scaler
from emulator.settings import EndpointSettings
from emulator.work.balancer import Balancer, Health
from emulator.work.batches import Batches
from emulator.work.job import Status
from emulator.work.queue import Queue
from emulator.work.webhooks import Webhooks
from emulator.work.workers import Worker


@dataclass(frozen=True, slots=True)
class Endpoint(ABC):
    """What belongs to one endpoint id, whatever its kind."""

    settings: EndpointSettings
    scaler: Scaler

    def health(self) -> dict[str, Any]:
        """What /health shows."""
        return {"jobs": self.count_jobs(), "workers": self.count_workers()}

    def metrics(self) -> dict[str, Any]:
        """What /metrics shows, as far as it is known."""
        return {"readyWorkers": self.scaler.ready_workers(), "workers": self.count_workers()}

    def count_workers(self) -> dict[str, int]:
        """How many workers are in each state. As on RunPod, `ready` counts the idle ones again."""
        states = self.scaler.count_states()
        return {
            "idle": states["idle"],
            "initializing": states["initializing"],
            "ready": states["idle"],
            "running": states["running"],
            "throttled": states["throttled"],
            "unhealthy": states["unhealthy"],
        }

    @abstractmethod
    def count_jobs(self) -> dict[str, int]:
        """How many jobs, or requests, are in each state."""

    @abstractmethod
    def inside(self) -> dict[str, Any]:
        """What only the control API shows."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was done and counted."""

    @abstractmethod
    def start(self) -> None:
        """The emulator runs: begin what needs an event loop."""

    @abstractmethod
    async def close(self) -> None:
        """The workers have gone: let every held call return."""


@dataclass(frozen=True, slots=True)
class QueueEndpoint(Endpoint):
    """An endpoint whose workers take jobs from a queue."""

    queue: Queue
    webhooks: Webhooks
    batches: Batches

    def count_jobs(self) -> dict[str, int]:
        """Jobs by state, those that are over since the start or the last reset."""
        ended = self.queue.ended
        return {
            "completed": ended[Status.COMPLETED],
            "failed": ended[Status.FAILED] + ended[Status.TIMED_OUT],
            "inProgress": len(self.queue.running),
            "inQueue": len(self.queue.waiting),
            "retried": self.queue.retried,
        }

    def inside(self) -> dict[str, Any]:
        """Every job with its input and its unread chunks, and what workers have in hand."""
        jobs = self.queue.jobs.values()
        return {
            "jobs": [{**job.view(), "input": job.input, "unread": len(job.chunks)} for job in jobs],
            "workers": _view(self.queue.workers.values()),
        }

    def reset(self) -> None:
        """Forget every job, every batch, every webhook and every count."""
        self.batches.forget()
        self.queue.reset()
        self.webhooks.forget()

    def start(self) -> None:
        """Send the webhooks of jobs that end."""
        self.queue.when_over = self.webhooks.send

    async def close(self) -> None:
        """End the held calls of clients and workers, and send no webhook any more."""
        self.queue.notify_all()
        await self.webhooks.close()


@dataclass(frozen=True, slots=True)
class BalancedEndpoint(Endpoint):
    """An endpoint that relays requests to its workers."""

    balancer: Balancer

    def count_workers(self) -> dict[str, int]:
        """As for a queue, but every healthy worker is ready.

        One that does not answer at its health port is running and not ready: this is how RunPod
        shows a wrong port.
        """
        counts = Endpoint.count_workers(self)
        silent = self.balancer.count_new(Health.SILENT)
        initializing = self.balancer.count_new(Health.INITIALIZING)
        without_process = max(0, counts["initializing"] - silent - initializing)
        counts["initializing"] = without_process + initializing
        counts["running"] += silent
        counts["ready"] = self.balancer.count_ready()
        return counts

    def count_jobs(self) -> dict[str, int]:
        """Requests in the places of jobs."""
        ended = self.balancer.ended
        return {
            "completed": ended["completed"],
            "failed": ended["failed"],
            "inProgress": len(self.balancer.running),
            "inQueue": len(self.balancer.waiting),
            "retried": 0,
        }

    def inside(self) -> dict[str, Any]:
        """How requests ended, and where workers listen."""
        return {
            "requests": dict(self.balancer.ended),
            "ports": self.balancer.ports(),
            "workers": _view(self.balancer.workers.values()),
        }

    def reset(self) -> None:
        """Forget every count."""
        self.balancer.reset()

    def start(self) -> None:
        """Look at the worker that was started by hand."""
        self.balancer.start()

    async def close(self) -> None:
        """Refuse the requests that wait for a worker."""
        await self.balancer.close()


def _view(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    return [
        {"id": worker.id, "jobs": list(worker.held), "stopping": list(worker.orders)}
        for worker in workers
    ]
