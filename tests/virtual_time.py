"""An event loop whose clock jumps to the next timer, so that a test of minutes takes no time."""

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time stands still while anything is ready to run, then jumps to the next timer."""

    _virtual_now = 0.0

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._virtual_now

    def _run_once(self) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if timers and not self._ready:  # type: ignore[attr-defined]
            self._virtual_now = max(self._virtual_now, timers[0]._when)
        super()._run_once()  # type: ignore[misc]


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing but timers and itself."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
