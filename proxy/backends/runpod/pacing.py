"""The call budget: every call to RunPod waits here for its turn.

RunPod limits each operation of an endpoint twice: so many calls in ten seconds, so many at once
(https://docs.runpod.io/serverless/endpoints/send-requests#rate-limits). All requests to an
endpoint share one budget for each operation. As long as there is room a call goes out at once;
then turns are given evenly, first come first served, so that every stream gets as many polls as
the next one, and each poll brings more chunks. Urgent calls (a stream that has shown nothing yet)
go first, but get no more than every other turn, since hundreds of them may wait for a worker. A 429
slows all of them down for a while; no request fails by it.

Copies of the proxy share each budget: every one keeps to its part of it.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

from proxy.config.limits import WINDOW_SECONDS, CallLimit

HEADROOM = 0.95
"""The share of RunPod's limit that is used: its clock is not ours."""
BURST = 0.05
"""The share of it that may go out without any spacing after a quiet time."""
CANCEL_BURST = 0.3
"""The same for cancels, which come in volleys: what waits in RunPod's queue starts workers."""
SLOWER, FASTER = 1.5, 0.8
"""What a 429 does to the interval between calls, and every window without one after it."""
MAX_SLOWNESS = 10.0
"""So many times the usual interval at most: it must shrink again in reasonable time."""
CANCEL_SLOWNESS = 1.0
"""The same for cancels, which only pause: polls that come later bring as much, but the jobs of
cancels that wait run on, and when some of them are refused all along, ever more would wait."""
PAUSE_SECONDS = 1.0
"""How long all calls pause after a 429 that does not say."""


class Shares:
    """The parts of all budgets that one of so many copies keeps to by itself."""

    def __init__(self, copies: int) -> None:
        self.copies = copies

    def hold(self, limiter: "CallLimiter", name: str) -> None:
        """Have the limiter of a budget of this name keep to this copy's part."""
        if self.copies > 1:
            limiter.hold_to(*self.fixed(limiter))

    def fixed(self, limiter: "CallLimiter") -> tuple[float, int]:
        """The part of calls, and how many at once, of a copy that knows nothing of the others."""
        return 1 / self.copies, max(1, limiter.limit.at_once // self.copies)

    async def close(self) -> None:
        """Nothing is to be let go of."""


class CallLimiter:
    """The turns of one operation of one endpoint."""

    def __init__(
        self, limit: CallLimit, *, burst: float = BURST, max_slowness: float = MAX_SLOWNESS
    ) -> None:
        self.limit = limit
        self.on_use: Callable[[], None] = lambda: None
        """Called for each call, before it waits for its turn."""
        self.in_flight = self.most_wanted = 0
        self._at_once = limit.at_once
        self._whole_interval = self._base_interval = WINDOW_SECONDS / (
            limit.calls * (HEADROOM - burst)
        )
        self._burst_seconds = limit.calls * burst * self._whole_interval
        self._due = 0.0
        """When the next call would go out if all went out evenly."""
        self._slowness, self._max_slowness = 1.0, max_slowness
        self._slowed = 0.0
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._last_was_urgent = False
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def for_cancels(cls, limit: CallLimit) -> Self:
        """That of /cancel."""
        return cls(limit, burst=CANCEL_BURST, max_slowness=CANCEL_SLOWNESS)

    @property
    def is_crowded(self) -> bool:
        """Whether a call that is held for long would keep others from being made."""
        return self.wanted > self._at_once / 2 > 0

    @property
    def wanted(self) -> int:
        """How many calls are under way, or wait for their turn."""
        return self.in_flight + len(self._waiting) + len(self._urgent)

    def hold_to(self, share: float, at_once: int, *, rested: bool = True) -> None:
        """Use this part of the calls in ten seconds, and so many at once; with 0, none for now.

        A part that others may have used just now is not `rested`: nothing of it goes out without
        spacing.
        """
        self._at_once = at_once if share > 0 else 0
        if share > 0:
            self._base_interval = self._whole_interval / share
        if not rested:
            self._due = max(self._due, _now() + self._burst_seconds)
        self._admit()

    @property
    def _interval(self) -> float:
        return self._base_interval * self._slowness

    def seconds_for(self, calls: int) -> float:
        """How long so many calls take from now on, if none of them is slow."""
        return max(0.0, self._due - _now()) + calls * self._interval

    @asynccontextmanager
    async def turn(self, *, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for a turn, and hold a place among the calls at once while inside."""
        self.on_use()
        if not self._urgent and not self._waiting and self._seconds_until_free() <= 0:
            self._spend()
        else:
            await self._wait(self._urgent if urgent else self._waiting)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._admit()

    def slow_down(self, retry_after_seconds: float | None) -> None:
        """RunPod answered 429: everybody pauses, then goes on more slowly for a while."""
        now = _now()
        pause = PAUSE_SECONDS if retry_after_seconds is None else retry_after_seconds
        self._due = max(self._due, now + pause + self._burst_seconds)
        if now - self._slowed > PAUSE_SECONDS:  # one step for a volley of refusals
            self._slowness = min(self._slowness * SLOWER, self._max_slowness)
            self._slowed = now

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        self.most_wanted = max(self.most_wanted, self.wanted)
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the turn came as the caller left
                self.in_flight -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        """Give turns to those who wait, as far as the budget goes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while queue := self._next_queue():
            if queue[0].done():  # its caller has left
                queue.popleft()
                continue
            if self.in_flight >= self._at_once:
                return  # whoever ends next calls this again
            if (seconds := self._seconds_until_free()) > 0:
                # uvloop takes whole milliseconds, and rounds: a rest would come back at once.
                milliseconds = math.ceil(seconds * 1000)
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(milliseconds / 1000, self._admit)
                return
            self._spend()
            self._last_was_urgent = queue is self._urgent
            queue.popleft().set_result(None)

    def _next_queue(self) -> deque[asyncio.Future[None]]:
        if self._last_was_urgent:
            return self._waiting or self._urgent
        return self._urgent or self._waiting

    def _seconds_until_free(self) -> float:
        if self.in_flight >= self._at_once:
            return float("inf")
        return self._due - self._burst_seconds - _now()

    def _spend(self) -> None:
        now = _now()
        if self._slowness > 1 and now - self._slowed > WINDOW_SECONDS:
            self._slowness = max(1.0, self._slowness * FASTER)
            self._slowed = now
        self._due = max(self._due, now) + self._interval
        self.in_flight += 1
        self.most_wanted = max(self.most_wanted, self.in_flight)


def _now() -> float:
    return asyncio.get_running_loop().time()
