"""Notifier: wakes the coroutines that hold a long poll, at once and without polling."""

import asyncio
from collections.abc import Callable


class Notifier:
    """Wakes every coroutine that waits now; remembers nothing.

    A waiter names what it waits for as a predicate, so a wake-up that changes nothing for it is
    harmless. There is no `await` between a predicate that came true and the return to the caller:
    what the predicate saw is still there.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[None], None] = {}

    def notify(self) -> None:
        """Let every waiter look at its predicate again, the longest-waiting first."""
        for waiter in self._waiters:
            _wake(waiter)

    async def wait_for(self, predicate: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until the predicate holds; False when `seconds` passed first."""
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while not predicate():
            remaining = None if deadline is None else deadline - loop.time()
            if remaining is not None and remaining <= 0:
                return False
            await self.wait(remaining)
        return True

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for the next notification, at most so long."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _wake, waiter)
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            del self._waiters[waiter]
            if timer is not None:
                timer.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
