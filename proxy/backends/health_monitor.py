"""What state an endpoint is in, from RunPod's /health, which costs no worker and no job.

It is asked in the background, and only while it is of use: to a client that lists models,
or a request that waits for a worker. One look tells whether workers are up; what one look cannot
tell (starts that fail, an endpoint that may have no workers at all) shows in several. While a
request waits and no worker is up, looks follow one another quickly, so that a worker which is
started anew between two of them does not hide that the first has failed.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from proxy.backends.ceiling import Ceiling
from proxy.backends.fair_turns import FairTurns
from proxy.backends.health import OLD_SECONDS, Health, StartHistory
from proxy.backends.start_clock import StartClock, StartTimes
from proxy.backends.start_progress import StartProgress
from proxy.backends.starts import UNKNOWN_CAUSE, Starts
from proxy.errors import JobNotFound, ModelStartFailed, ProxyError

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
QUICK_LOOK_SECONDS = 0.5
"""While a request waits and no worker is up. RunPod allows 200 calls a second."""
WANTED_SECONDS = 60.0
"""How long one question keeps the looks going."""
FIRST_LOOK_SECONDS = 2.0
"""How long a request may wait for the first look."""
UNSEEN_SECONDS = 15.0
"""When workers have not been counted for so long, no call waits for a turn among them."""
STARTLESS_SECONDS = 45.0
"""Jobs that wait so long without any worker being started wait in vain."""


class State(StrEnum):
    """An endpoint's state, as the list of models tells it."""

    UNKNOWN = "unknown"
    COLD = "cold"
    WARMING = "warming"
    READY = "ready"
    THROTTLED = "throttled"
    UNHEALTHY = "unhealthy"
    PAUSED = "paused"


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


class HealthMonitor:
    """Looks at one endpoint. `ask` calls its /health; `starts` hears of starts that failed.

    `clock` measures how long starts take; `progress` finds out what they do, where it may. `turns`
    are told how many workers there are, and the `ceiling` as well, which may pause the endpoint.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[], Awaitable[Mapping[str, Any]]],
        starts: Starts,
        clock: StartClock | None = None,
        progress: StartProgress | None = None,
        turns: FairTurns | None = None,
        ceiling: Ceiling | None = None,
    ) -> None:
        self.ceiling = ceiling or Ceiling(name)
        self._progress = progress
        self._turns = turns or FairTurns()
        self.starts = starts
        self.clock = clock or StartClock(name, "", StartTimes(None))
        self._state = State.UNKNOWN
        self._name = name
        self._ask = ask
        self._reason = REASONS[State.UNKNOWN]
        self._wanted_until = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._history = StartHistory()
        self._health: Health | None = None
        self._has_answered = False
        """A worker has, since one was seen to be up."""
        self._waiting = 0
        self._waiting_since: float | None = None
        self._noted = self._told = self._looked = -math.inf
        self._unseen_since = math.inf
        """When the first look was begun that failed, of those since the last that did not."""
        self._has_looked = asyncio.Event()
        self._is_urgent = asyncio.Event()

    @property
    def state(self) -> State:
        """The state as it was last seen; unknown if that is too long ago."""
        if self.ceiling.is_reached:
            return State.PAUSED
        if self.starts.failure is not None:
            return State.UNHEALTHY
        return State.UNKNOWN if self._is_old else self._state

    @property
    def reason(self) -> str:
        """The state in a few words."""
        if self.ceiling.is_reached:
            return self.ceiling.reason
        if (failure := self.starts.failure) is not None:
            return failure.message
        if self._is_old:
            return REASONS[State.UNKNOWN]
        if self._state is State.WARMING and (seconds := self.clock.elapsed_seconds) is not None:
            waited = self.clock.waited(seconds)
            return f"{self._reason}:{waited}" if waited else self._reason
        if self._state is State.COLD:
            return self._reason + self.clock.usually.replace(", usually", ", usually in")
        return self._reason

    @property
    def workers(self) -> Health | None:
        """The counters as they were last seen; None if that is too long ago."""
        return None if self._age > OLD_SECONDS else self._health

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._told > OLD_SECONDS

    @property
    def cold_start_reason(self) -> str:
        """What to tell a client whose request no worker took."""
        match self.state:
            case State.UNKNOWN:
                return "the endpoint may be starting, or out of GPUs"
            case State.READY:
                return "all workers are busy"
        return self.reason

    def request_updates(self) -> None:
        """Look, now if it is time, and again for a while."""
        self._wanted_until = time.monotonic() + WANTED_SECONDS
        if self._looking is None or self._looking.done():
            self._has_looked.clear()
            self._looking = asyncio.create_task(self._look())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Look more often meanwhile, unless workers are up and have room: a request waits."""
        self._waiting += 1
        self.clock.begin()
        self.request_updates()
        if self._waiting == 1 or not self._is_up or self._turns.waiting:
            self._is_urgent.set()
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._history.forget()
                self._leave_start()
                self.clock.give_up()

    def note_answer(self) -> None:
        """A worker has answered: whatever the last look said, one is up."""
        self._has_answered, self._noted = True, time.monotonic()
        self._history.note_answer()
        self._leave_start()
        self.clock.end()
        self._set(State.READY)

    def _follow_start(self, *, is_sure: bool) -> None:
        self.clock.confirm(is_sure=is_sure)
        if self._progress is not None:
            self._progress.begin()
            self.clock.phase = self._progress.phase

    def _leave_start(self) -> None:
        if self._progress is not None:
            self._progress.end()

    async def current_state(self) -> State:
        """The state as of a moment ago; asks for it if the last look is older."""
        if time.monotonic() - self._looked > LOOK_SECONDS * 2:
            self.request_updates()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LOOK_SECONDS):
                    await self._has_looked.wait()
        return self.state

    async def close(self) -> None:
        """Look no more."""
        self._leave_start()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def observe(self, health: Health, now: float) -> None:
        """Take one look's counters, seen at `now` (seconds, monotonic)."""
        before = self._state
        had_none = self._had_no_worker(now)
        self._unseen_since = math.inf
        if self.starts.has_just_answered:
            health = health.between_jobs()
        self._turns.note_workers(health.up + health.initializing)
        if now - self._noted > OLD_SECONDS or not health.up:
            self._has_answered = False
        if self._waiting and not self._has_answered:
            health = health.without_loading()
        self._health = health
        if self._waiting and not health.up:
            self._follow_start(is_sure=had_none or not health.busy)
        if self._history.note(health, now):
            self.starts.note_failure(ModelStartFailed(UNKNOWN_CAUSE), exits=True)
        self.starts.note_up(health.up)
        self._note_startless(health, now)
        if health.up:
            self._set(State.READY)
        elif health.unhealthy:
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

    def _had_no_worker(self, now: float) -> bool:
        """Whether the last look, a moment ago, saw none: one that is at work now has started."""
        last = self._health if now - self._noted < 2 * LOOK_SECONDS else None
        return last is not None and not (last.up or last.busy or last.initializing)

    def _note_startless(self, health: Health, now: float) -> None:
        if now - self._noted > OLD_SECONDS:  # what was in between has not been seen
            self._waiting_since = None
        self._noted = now
        has_workers = health.up or health.initializing or health.throttled or health.unhealthy
        if has_workers or not health.in_queue:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now

    def _set(self, state: State, reason: str | None = None) -> None:
        self._state, self._reason = state, reason or REASONS[state]
        self._told = time.monotonic()

    @property
    def _is_up(self) -> bool:
        return self._health is not None and self._health.up > 0

    @property
    def _age(self) -> float:
        return time.monotonic() - self._looked

    @property
    def _pause_seconds(self) -> float:
        """Until the next look."""
        health = self._health
        if self._turns.waiting:  # each worker that starts lets some of them through
            return QUICK_LOOK_SECONDS
        if not self._waiting or health is None or health.up:
            return LOOK_SECONDS
        is_throttled = health.throttled and not health.initializing
        return LOOK_SECONDS if is_throttled else QUICK_LOOK_SECONDS

    async def _look(self) -> None:
        while self._waiting or time.monotonic() < self._wanted_until:
            health, began = None, time.monotonic()
            try:
                health = Health.of(await self._ask())
                self.observe(health, time.monotonic())
            except (ProxyError, JobNotFound):
                self._health = None
                self._set(State.UNKNOWN, UNREACHABLE)
                self._unseen_since = min(self._unseen_since, began)
                if time.monotonic() - self._unseen_since > UNSEEN_SECONDS:
                    self._turns.note_workers(None)
            self._looked = time.monotonic()
            self._has_looked.set()
            self._is_urgent.clear()
            await self.ceiling.note_look(health, is_awaited=self._waiting > 0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds):
                    await self._is_urgent.wait()
            await asyncio.sleep(QUICK_LOOK_SECONDS - self._age)
