"""Waiting for something to come about, instead of for a time to pass."""

import asyncio
import time
from collections.abc import Callable

import httpx


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Return once `condition` holds; fail if that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def leaving_after(seconds: float) -> httpx.Timeout:
    """Of a client that leaves when nothing has come for so long; to connect it may take longer."""
    return httpx.Timeout(30, read=seconds)


async def until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """The same in a loop whose other tasks bring it about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing rings for whatever it is
            await asyncio.sleep(0.005)
