"""Waiting for an event, in virtual time."""

import asyncio

from proxy.backends.auto_reset_event import AutoResetEvent
from tests.virtual_time import run_virtually


async def waited(event: AutoResetEvent, seconds: float) -> float:
    """How long a wait of at most so many seconds took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await event.wait(seconds)
    return loop.time() - began


def test_a_wait_ends_when_it_is_set_and_in_any_case_after_its_time() -> None:
    async def scenario() -> None:
        event = AutoResetEvent()
        asyncio.get_running_loop().call_later(2, event.set)
        assert await waited(event, 10) == 2
        assert await waited(event, 10) == 10

    run_virtually(scenario())


def test_what_was_set_before_the_wait_is_not_waited_for_unless_it_is_cleared() -> None:
    async def scenario() -> None:
        event = AutoResetEvent()
        event.set()
        event.set()
        assert await waited(event, 10) == 0
        event.set()
        event.clear()
        assert await waited(event, 10) == 10

    run_virtually(scenario())


def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        event = AutoResetEvent()
        waiting = asyncio.create_task(event.wait(10))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait({waiting})
        event.set()
        assert await waited(event, 10) == 0

    run_virtually(scenario())
