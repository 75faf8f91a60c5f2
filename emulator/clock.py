"""The clock the queue lives by, so that its tests can turn the hands themselves."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Never make the call; harmless when it was made already."""


class Clock(Protocol):
    """Monotonic seconds, and calls to be made later."""

    def now(self) -> float:
        """Seconds since some fixed moment."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `seconds`; it may come a millisecond early."""


class LoopClock:
    """The real clock: `time.monotonic` and the running event loop's timers."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `seconds`; needs a running event loop."""
        return asyncio.get_running_loop().call_later(seconds, callback)
