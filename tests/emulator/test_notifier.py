"""The notifier that wakes held polls."""

import asyncio

from emulator.notifier import Notifier


async def test_a_notification_wakes_every_waiter_whose_predicate_holds() -> None:
    notifier, happened = Notifier(), set[str]()
    waiters = {
        name: asyncio.create_task(notifier.wait_for(lambda name=name: name in happened))  # type: ignore[misc]
        for name in ("a", "b")
    }
    await asyncio.sleep(0)
    happened.add("a")
    notifier.notify()
    assert await waiters["a"] is True
    assert not waiters["b"].done()
    happened.add("b")
    notifier.notify()
    assert await waiters["b"] is True


async def test_a_predicate_that_holds_already_does_not_wait() -> None:
    assert await Notifier().wait_for(lambda: True, seconds=0)


async def test_a_wait_ends_in_false_when_its_time_is_up() -> None:
    assert not await Notifier().wait_for(lambda: False, seconds=0.01)


async def test_the_longest_waiting_is_served_first() -> None:
    notifier, goods, served = Notifier(), [1], list[str]()

    async def fetch(name: str) -> None:
        await notifier.wait_for(lambda: bool(goods) and was_notified)
        goods.pop()
        served.append(name)

    was_notified = False
    tasks = [asyncio.create_task(fetch(name)) for name in ("first", "second")]
    await asyncio.sleep(0)
    was_notified = True
    notifier.notify()
    await tasks[0]
    assert served == ["first"]
    tasks[1].cancel()


async def test_nothing_is_left_of_a_wait_that_was_cancelled_or_ended() -> None:
    notifier = Notifier()
    waiter = asyncio.create_task(notifier.wait(60))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait({waiter})
    await notifier.wait(0.01)
    assert not notifier._waiters
