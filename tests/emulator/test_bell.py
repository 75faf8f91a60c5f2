"""The bell that wakes held polls."""

import asyncio

from emulator.bell import Bell


async def test_a_ring_wakes_everybody_whose_wish_has_come_true() -> None:
    bell, open_doors = Bell(), set[str]()
    waiters = {
        name: asyncio.create_task(bell.wait_for(lambda name=name: name in open_doors))  # type: ignore[misc]
        for name in ("a", "b")
    }
    await asyncio.sleep(0)
    open_doors.add("a")
    bell.ring()
    assert await waiters["a"] is True
    assert not waiters["b"].done()
    open_doors.add("b")
    bell.ring()
    assert await waiters["b"] is True


async def test_a_wish_that_is_true_already_does_not_wait() -> None:
    assert await Bell().wait_for(lambda: True, seconds=0)


async def test_a_wait_ends_in_false_when_its_time_is_up() -> None:
    assert not await Bell().wait_for(lambda: False, seconds=0.01)


async def test_the_longest_waiting_is_served_first() -> None:
    bell, goods, served = Bell(), [1], list[str]()

    async def fetch(name: str) -> None:
        await bell.wait_for(lambda: bool(goods) and bell_rang)
        goods.pop()
        served.append(name)

    bell_rang = False
    tasks = [asyncio.create_task(fetch(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    bell_rang = True
    bell.ring()
    await tasks[0]
    assert served == ["first"]
    tasks[1].cancel()


async def test_nothing_is_left_of_a_wait_that_was_cancelled_or_ended() -> None:
    bell = Bell()
    waiter = asyncio.create_task(bell.wait(60))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait({waiter})
    await bell.wait(0.01)
    assert not bell._waiters
