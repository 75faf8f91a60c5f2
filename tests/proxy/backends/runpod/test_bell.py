"""Waiting for a bell, in virtual time."""

import asyncio

from proxy.backends.runpod.bell import Bell
from tests.virtual_time import run_virtually


async def waited(bell: Bell, seconds: float) -> float:
    """How long a wait of at most so many seconds took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await bell.wait(seconds)
    return loop.time() - began


def test_a_wait_ends_when_it_rings_and_in_any_case_after_its_time() -> None:
    async def scenario() -> None:
        bell = Bell()
        asyncio.get_running_loop().call_later(2, bell.ring)
        assert await waited(bell, 10) == 2
        assert await waited(bell, 10) == 10

    run_virtually(scenario())


def test_what_rang_before_the_wait_is_not_waited_for_unless_it_is_cleared() -> None:
    async def scenario() -> None:
        bell = Bell()
        bell.ring()
        bell.ring()
        assert await waited(bell, 10) == 0
        bell.ring()
        bell.clear()
        assert await waited(bell, 10) == 10

    run_virtually(scenario())


def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        bell = Bell()
        waiting = asyncio.create_task(bell.wait(10))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait({waiting})
        bell.ring()
        assert await waited(bell, 10) == 0

    run_virtually(scenario())
