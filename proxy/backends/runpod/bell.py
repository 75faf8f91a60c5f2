"""Waiting for one of several things that may come about, without a task for each."""

import asyncio


class Bell:
    """Rung by whatever has come about, and waited for by one."""

    def __init__(self) -> None:
        self._has_rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the one who waits, or let the next wait be none."""
        self._has_rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Forget that it has rung: whoever waits has seen by itself what came about."""
        self._has_rung = False

    async def wait(self, seconds: float) -> None:
        """Wait until it rings, and no longer than so many seconds."""
        if not self._has_rung:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(seconds, self.ring)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._has_rung = False
