"""Waiting for one of several things that may come about, without a task for each."""

import asyncio


class AutoResetEvent:
    """An event that one waits for, and that each wait uses up."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake the one who waits, or let the next wait be none."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Forget that it was set: whoever waits has seen by itself what came about."""
        self._is_set = False

    async def wait(self, seconds: float) -> None:
        """Wait until it is set, and no longer than so many seconds."""
        if not self._is_set:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(seconds, self.set)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._is_set = False
