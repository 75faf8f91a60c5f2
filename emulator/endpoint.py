"""Endpoint: one serverless endpoint, its queue and its workers together."""

from dataclasses import dataclass
from typing import Any

from emulator.job import Status
from emulator.queue import Queue
from emulator.scaler import Scaler
from emulator.settings import EndpointSettings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Everything that belongs to one endpoint id."""

    settings: EndpointSettings
    queue: Queue
    scaler: Scaler

    def health(self) -> dict[str, Any]:
        """What /health shows. As on RunPod, `ready` counts the idle workers again."""
        return {"jobs": self._jobs(), "workers": self._workers()}

    def _jobs(self) -> dict[str, int]:
        ended = self.queue.ended
        return {
            "completed": ended[Status.COMPLETED],
            "failed": ended[Status.FAILED] + ended[Status.TIMED_OUT],
            "inProgress": len(self.queue.running),
            "inQueue": len(self.queue.waiting),
            "retried": self.queue.retried,
        }

    def _workers(self) -> dict[str, int]:
        states = self.scaler.count_states()
        return {
            "idle": states["idle"],
            "initializing": states["initializing"],
            "ready": states["idle"],
            "running": states["running"],
            "throttled": states["throttled"],
            "unhealthy": states["unhealthy"],
        }
