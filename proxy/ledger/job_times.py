"""How long jobs took, asked of RunPod when they have ended, in the background and within bounds."""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.api.answer import Course
from proxy.errors import JobNotFound, ProxyError

PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Before each time that RunPod is asked of a job: its state can lag behind the answer."""
MAX_JOBS: Final = 1_000
"""How many may wait; of more nothing is asked."""
SHARE: Final = 0.1
"""How much of RunPod's limit for /status is used for it at most."""
MAX_CALLS_PER_SECOND: Final = 5.0
"""A call costs the proxy about a tenth of what a whole plain request does.

Those of a second are made one after the other: a call that wakes a proxy up is dearer than one
whose code the processor has just had.
"""
PATIENCE_SECONDS: Final = 30.0

Ask = Callable[[], Awaitable[Course | None]]
OnTold = Callable[[Course], None]


class JobTimes:
    """Asks of one job after the other, a few in a row."""

    def __init__(self, calls_per_second: float) -> None:
        rate = min(SHARE * calls_per_second, MAX_CALLS_PER_SECOND)
        self._together = max(1, int(rate))
        """How many calls are made one after the other, before the next pause."""
        self._pause_seconds = self._together / rate
        self._due: list[tuple[float, int, int, Ask, OnTold]] = []
        """When, a number that no other has, which time it is, and of what; a heap."""
        self._numbers = itertools.count()
        self._asking: asyncio.Task[None] | None = None

    def ask(self, ask: Ask, on_told: OnTold) -> None:
        """Ask until the job has ended, and tell how it went; perhaps never."""
        if len(self._due) < MAX_JOBS:
            self._plan(0, ask, on_told)
            if self._asking is None:
                self._asking = asyncio.create_task(self._go_on())

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    def _plan(self, turn: int, ask: Ask, on_told: OnTold) -> None:
        due = asyncio.get_running_loop().time() + PAUSES[turn]
        heapq.heappush(self._due, (due, next(self._numbers), turn, ask, on_told))

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        while self._due:
            await asyncio.sleep(self._pause_seconds)
            if (wait_seconds := self._due[0][0] - loop.time()) > 0:
                # Not longer than until one that is added meanwhile can be due.
                await asyncio.sleep(min(wait_seconds, PAUSES[0]))
                continue
            for _ in range(self._together):
                if self._due and self._due[0][0] <= loop.time():
                    await self._ask_first()
        self._asking = None

    async def _ask_first(self) -> None:
        """Ask of the job that is due, and plan to ask again unless it has ended."""
        _, _, turn, ask, on_told = heapq.heappop(self._due)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                course = await ask()
        except JobNotFound:
            return
        except (ProxyError, TimeoutError):
            course = None
        if course is not None:
            on_told(course)
        elif turn + 1 < len(PAUSES):
            self._plan(turn + 1, ask, on_told)
