"""What state an endpoint is in, from RunPod's /health, which costs no worker and no job.

It is asked in the background, and only while somebody wants to know: a client that lists models,
or a request that waits for a worker. One look tells whether workers are up; what one look cannot
tell (workers that crash again and again, an endpoint that may have no workers at all) shows in
several.

Source of the counters: https://docs.runpod.io/serverless/endpoints/operation-reference#health;
`ready` includes idle workers.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from proxy.errors import JobNotFound, ProxyError

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
WANTED_SECONDS = 60.0
"""How long one question keeps the looks going."""
FIRST_LOOK_SECONDS = 2.0
"""How long a request may wait for the first look."""
FAILED_STARTS = 2
"""So many starts that came to nothing are a crash loop."""
STARTLESS_SECONDS = 45.0
"""Jobs that wait so long without any worker being started wait in vain."""
FORGIVEN_SECONDS = 300.0
"""So long after the last job that waited, nobody knows any more whether workers would crash."""
OLD_SECONDS = 60.0
"""What was seen so long ago says nothing of today."""


class State(StrEnum):
    """An endpoint's state, as the list of models tells it."""

    UNKNOWN = "unknown"
    COLD = "cold"
    WARMING = "warming"
    READY = "ready"
    THROTTLED = "throttled"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Health:
    """The counters of /health."""

    up: int
    """Workers that take jobs."""
    initializing: int
    throttled: int
    unhealthy: int
    in_queue: int

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Health":
        """From RunPod's answer; a counter that is missing counts as 0."""
        workers, jobs = answer.get("workers"), answer.get("jobs")
        return cls(
            up=max(_count(workers, "ready"), _count(workers, "idle") + _count(workers, "running")),
            initializing=_count(workers, "initializing"),
            throttled=_count(workers, "throttled"),
            unhealthy=_count(workers, "unhealthy"),
            in_queue=_count(jobs, "inQueue"),
        )


REASONS = {
    State.UNKNOWN: "RunPod has not told lately how the endpoint is",
    State.COLD: "no worker is up; a request starts one",
    State.WARMING: "a worker is starting",
    State.READY: "workers are up",
    State.THROTTLED: "RunPod has no free GPU for the endpoint",
}
CRASHING = "the endpoint's workers crash; their log says why"
NO_WORKERS = "jobs wait and no worker is being started; the endpoint's maximum may be 0"
UNREACHABLE = "RunPod does not tell how the endpoint is"


class Watch:
    """Looks at one endpoint. `ask` calls its /health."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._state = State.UNKNOWN
        self._name = name
        self._ask = ask
        self._reason = REASONS[State.UNKNOWN]
        self._wanted_until = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._was_starting = False
        self._failed_starts = 0
        self._waiting_since: float | None = None
        self._noted = self._had_queue = self._told = self._looked = -math.inf
        self._has_looked = asyncio.Event()

    @property
    def state(self) -> State:
        """The state as it was last seen; unknown if that is too long ago."""
        return State.UNKNOWN if self._is_old else self._state

    @property
    def reason(self) -> str:
        """The state in a few words."""
        return REASONS[State.UNKNOWN] if self._is_old else self._reason

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._told > OLD_SECONDS

    @property
    def why_nobody_answers(self) -> str:
        """What to tell a client whose request no worker took."""
        match self.state:
            case State.UNKNOWN:
                return "the endpoint may be starting, or out of GPUs"
            case State.READY:
                return "all workers are busy"
        return self.reason

    def touch(self) -> None:
        """Somebody wants to know: look, now if it is time, and again for a while."""
        self._wanted_until = time.monotonic() + WANTED_SECONDS
        if self._looking is None or self._looking.done():
            self._has_looked.clear()
            self._looking = asyncio.create_task(self._look())

    def note_answer(self) -> None:
        """A worker has answered: whatever the last look said, one is up."""
        self._failed_starts = 0
        self._set(State.READY)

    async def current(self) -> State:
        """The state as of a moment ago; asks for it if the last look is older."""
        if time.monotonic() - self._looked > LOOK_SECONDS * 2:
            self.touch()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    await self._has_looked.wait()
        return self.state

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def note(self, health: Health, now: float) -> None:
        """Take one look's counters, seen at `now` (seconds, monotonic)."""
        before = self._state
        self._note_history(health, now)
        if health.up:
            self._set(State.READY)
        elif health.unhealthy or self._failed_starts >= FAILED_STARTS:
            self._set(State.UNHEALTHY, CRASHING)
        elif health.initializing:
            self._set(State.WARMING)
        elif health.throttled:
            self._set(State.THROTTLED)
        elif self._waiting_since is not None and now - self._waiting_since > STARTLESS_SECONDS:
            self._set(State.UNHEALTHY, NO_WORKERS)
        else:
            self._set(State.COLD)
        if self._state is not before:
            log.info("endpoint %s is %s: %s", self._name, self._state, self._reason)

    def _note_history(self, health: Health, now: float) -> None:
        if now - self._noted > OLD_SECONDS:  # nobody has seen what was in between
            self._was_starting, self._waiting_since = False, None
        self._noted = now
        if health.in_queue:
            self._had_queue = now
        is_starting = health.initializing > 0
        if health.up or now - self._had_queue > FORGIVEN_SECONDS:
            self._failed_starts = 0
        elif self._was_starting and not is_starting and health.in_queue:
            self._failed_starts += 1
        self._was_starting = is_starting
        has_workers = health.up or is_starting or health.throttled or health.unhealthy
        if has_workers or not health.in_queue:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now

    def _set(self, state: State, reason: str | None = None) -> None:
        self._state, self._reason = state, reason or REASONS[state]
        self._told = time.monotonic()

    async def _look(self) -> None:
        while time.monotonic() < self._wanted_until:
            try:
                self.note(Health.of(await self._ask()), time.monotonic())
            except (ProxyError, JobNotFound):
                self._set(State.UNKNOWN, UNREACHABLE)
            self._looked = time.monotonic()
            self._has_looked.set()
            await asyncio.sleep(LOOK_SECONDS)


def _count(counters: Any, name: str) -> int:
    value = counters.get(name) if isinstance(counters, dict) else None
    return value if isinstance(value, int) else 0
