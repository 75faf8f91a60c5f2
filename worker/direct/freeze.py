"""Noticing that the container stood still: RunPod freezes idle ones, and sockets die meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

TICK_SECONDS: Final = 1.0
FROZEN_SECONDS: Final = 3.0
"""How late a tick may be before the container was frozen, and not only busy."""


wall_clock = time.time


class Clocks:
    """The two clocks, either of which may have gone on during a freeze."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clocks = (monotonic, wall)
        self._last = self._now()

    def seconds_since_last(self) -> float:
        """How long the last call is ago, by the clock that has gone further."""
        now = self._now()
        elapsed = max(after - before for before, after in zip(self._last, now, strict=True))
        self._last = now
        return elapsed

    def _now(self) -> tuple[float, ...]:
        return tuple(clock() for clock in self._clocks)


async def watch_for_freezes(thawed: Callable[[], Awaitable[None]]) -> None:
    """Call `thawed` after each freeze, for ever."""
    clocks = Clocks(time.monotonic, wall_clock)
    while True:
        await asyncio.sleep(TICK_SECONDS)
        if clocks.seconds_since_last() > TICK_SECONDS + FROZEN_SECONDS:
            await thawed()
            clocks.seconds_since_last()
