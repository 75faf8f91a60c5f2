"""RunPod's /health: its counters, and what a series of them tells of workers that start.

Source of the counters: https://docs.runpod.io/serverless/endpoints/operation-reference#health;
`ready` includes idle workers. RunPod's own tools (runpod-mcp 4.0.0) say that a worker which crashes
again and again need not be counted as unhealthy: it may show as running or throttled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

OLD_SECONDS = 60.0
"""What was seen so long ago says nothing of today."""
GONE_SECONDS = 10.0
"""A start that has gone while jobs wait has failed if nothing takes its place for so long."""
ILL_SECONDS = 10.0
"""The same for workers that were unhealthy before we looked."""
ILL_AFTER_WORK_SECONDS = 45.0
"""The same for workers that were up before: RunPod may take a while to start others."""
VANISHED_STARTS = 2
"""So many starts that have gone, one after the other, have failed without waiting for that."""
THROTTLED_STARTS = 3
"""The same for starts that went back to being throttled, which now and then happens."""


@dataclass(frozen=True, slots=True)
class Health:
    """The counters of /health."""

    up: int
    """Workers that take jobs."""
    initializing: int
    """Those that start; also those that run, but have left all jobs in the queue."""
    throttled: int
    unhealthy: int
    in_queue: int
    running: int = 0
    """Those of `up` that are not called ready; a load balancer's stay ready while they work."""
    busy: int = 0
    """Those that run, as RunPod counts them: they have jobs, or load while jobs wait."""
    takes_nothing: bool = False
    """The workers that run have left all jobs in the queue: they load, or have died unnoticed."""

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Health":
        """From RunPod's answer; a counter that is missing counts as 0."""
        workers, jobs = answer.get("workers"), answer.get("jobs")
        idle = max(_count(workers, "ready"), _count(workers, "idle"))
        running, in_queue = _count(workers, "running"), _count(jobs, "inQueue")
        takes_nothing = not idle and in_queue > 0 and _has_none(jobs, "inProgress")
        up = 0 if takes_nothing else max(idle, _count(workers, "idle") + running)
        return cls(
            up=up,
            initializing=_count(workers, "initializing") + (running if takes_nothing else 0),
            throttled=_count(workers, "throttled"),
            unhealthy=_count(workers, "unhealthy"),
            in_queue=in_queue,
            running=max(0, up - idle),
            busy=running,
            takes_nothing=takes_nothing and running > 0,
        )

    def between_jobs(self) -> "Health":
        """The same, if those that take nothing neither load nor have died.

        A worker needs a moment between two jobs, and more where the last one was cancelled.
        """
        if not self.takes_nothing:
            return self
        starting = self.initializing - self.busy
        return replace(
            self, up=self.busy, running=self.busy, initializing=starting, takes_nothing=False
        )

    def without_loading(self) -> "Health":
        """The same, if workers that have jobs in hand are still loading their model.

        That is so where a request waits for its answer and no worker has given one, as `Workers`
        remembers.
        """
        if self.up > self.running:
            return self
        return replace(self, up=0, running=0, initializing=self.initializing + self.up)


class StartHistory:
    """Finds starts that failed in a series of looks.

    One has failed if a worker became unhealthy without having been up, or if a start is gone and
    nothing came of it, while jobs wait. No start has failed when workers go because no job waits
    for them, when they are throttled, or when those were lost that had been up.
    """

    def __init__(self) -> None:
        self._last: Health | None = None
        self._seen = -math.inf
        self._was_up = False
        self.forget()

    def forget(self) -> None:
        """No job waits any more: starts that go now are given up."""
        self._vanished = self._throttled = 0
        self._gone_since: float | None = None
        self._ill_since: float | None = None

    def note_answer(self) -> None:
        """A worker has answered: the one that the last look took for loading is up."""
        self.forget()
        self._was_up = True
        if self._last is not None:
            self._last = replace(self._last, up=max(self._last.up, 1), initializing=0)

    def note(self, health: Health, now: float) -> bool:
        """Take counters seen at `now` (seconds, monotonic); tell whether a start has failed."""
        last = self._last if now - self._seen <= OLD_SECONDS else None
        self._last, self._seen = health, now
        if last is None or health.up or not health.in_queue:
            self.forget()
        self._was_up = health.up > 0 or (self._was_up and not health.initializing)
        if health.up or not health.in_queue:
            return False
        was_starting = last is not None and not last.up and not last.takes_nothing
        fell_ill = was_starting and last is not None and health.unhealthy > last.unhealthy
        return fell_ill | self._is_gone(last, health, now) | self._stays_ill(health, now)

    def _is_gone(self, last: Health | None, health: Health, now: float) -> bool:
        if health.initializing:
            self._gone_since = None
            return False
        if last is not None and last.initializing and last.in_queue and not health.unhealthy:
            if health.throttled:
                self._throttled += 1
            else:
                self._vanished += 1
                self._gone_since = now
        if health.throttled:
            return self._throttled >= THROTTLED_STARTS
        is_late = self._gone_since is not None and now - self._gone_since >= GONE_SECONDS
        return is_late or self._vanished >= VANISHED_STARTS

    def _stays_ill(self, health: Health, now: float) -> bool:
        if not health.unhealthy or health.initializing or health.throttled:
            self._ill_since = None
            return False
        if self._ill_since is None:
            self._ill_since = now
        limit = ILL_AFTER_WORK_SECONDS if self._was_up else ILL_SECONDS
        return now - self._ill_since >= limit


def _count(counters: Any, name: str) -> int:
    value = counters.get(name) if isinstance(counters, dict) else None
    return value if isinstance(value, int) else 0


def _has_none(counters: Any, name: str) -> bool:
    """Whether the counter says 0, rather than nothing."""
    return isinstance(counters, dict) and name in counters and not _count(counters, name)
