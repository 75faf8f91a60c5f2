"""How long to wait for a database or a Redis that does not answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

TICK_SECONDS: Final = 0.05


async def is_done_within(task: asyncio.Future[Any], seconds: float) -> bool:
    """Whether it is done within this time, counted in turns of the event loop.

    By the clock, an answer that has long been there would be too late where the loop has had no
    time to read it.
    """
    for _ in range(max(1, round(seconds / TICK_SECONDS))):
        await asyncio.wait({task}, timeout=TICK_SECONDS)
        if task.done():
            return True
    return False


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What it returns; raises TimeoutError, and waits no longer, if it is not done by then."""
    task = asyncio.ensure_future(work)
    try:
        if not await is_done_within(task, seconds):
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()
