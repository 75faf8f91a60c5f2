"""The call limiter: inside RunPod's limits, fair, quick while there is room, slower after a 429."""

import asyncio
import random
from collections import Counter

import pytest
import uvloop

from proxy.backends.runpod.pacing import HEADROOM, CallLimiter
from proxy.config.limits import WINDOW_SECONDS, CallLimit
from tests.virtual_time import run_virtually

LIMIT = CallLimit(calls=200, at_once=40)


class Log:
    """What calls were made, in virtual time."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.callers: Counter[int] = Counter()
        self.at_once = self.most_at_once = 0

    async def call(
        self, limiter: CallLimiter, caller: int, seconds: float, urgent: bool = False
    ) -> None:
        """One call that takes some time."""
        async with limiter.turn(urgent=urgent):
            self.times.append(asyncio.get_running_loop().time())
            self.callers[caller] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(seconds)
            self.at_once -= 1

    def most_in_a_window(self) -> int:
        """The most calls in any ten seconds."""
        return max(
            sum(start <= time < start + WINDOW_SECONDS for time in self.times)
            for start in self.times
        )


async def poll_for(
    limiter: CallLimiter, log: Log, caller: int, *, seconds: float, each: float
) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await log.call(limiter, caller, each)


@pytest.mark.parametrize("streams", [1, 10, 39, 100, 400])
def test_no_window_holds_more_calls_than_the_limit(streams: int) -> None:
    async def run() -> Log:
        limiter, log = CallLimiter(LIMIT), Log()
        async with asyncio.TaskGroup() as group:
            for caller in range(streams):
                group.create_task(poll_for(limiter, log, caller, seconds=60, each=0.05))
        return log

    log = run_virtually(run())
    assert log.most_in_a_window() <= LIMIT.calls
    assert log.most_at_once <= LIMIT.at_once
    if streams >= 10:
        assert len(log.times) > 0.85 * LIMIT.calls * 60 / WINDOW_SECONDS


def test_streams_get_equal_shares() -> None:
    async def run() -> Log:
        limiter, log = CallLimiter(LIMIT), Log()
        async with asyncio.TaskGroup() as group:
            for caller in range(50):
                each = 0.01 if caller % 2 else 1.0
                group.create_task(poll_for(limiter, log, caller, seconds=120, each=each))
        return log

    shares = run_virtually(run()).callers.values()
    assert max(shares) <= 1.5 * min(shares)


def test_a_call_with_room_goes_out_at_once() -> None:
    async def run() -> Log:
        limiter, log = CallLimiter(LIMIT), Log()
        for _ in range(5):
            await log.call(limiter, 0, 0)
        return log

    assert run_virtually(run()).times == [0.0] * 5


def test_an_urgent_call_goes_before_those_who_wait() -> None:
    async def run() -> list[int]:
        limiter, log = CallLimiter(LIMIT), Log()
        order: list[int] = []

        async def call(caller: int, urgent: bool) -> None:
            await log.call(limiter, caller, 0, urgent)
            order.append(caller)

        async with asyncio.TaskGroup() as group:
            for caller in range(100):
                group.create_task(call(caller, urgent=False))
            await asyncio.sleep(0.2)
            group.create_task(call(1000, urgent=True))
        return order

    order = run_virtually(run())
    assert order.index(1000) < 20
    assert len(order) == 101


def test_a_hundred_streams_are_polled_as_often_and_evenly_as_the_budget_allows() -> None:
    limit, streams = CallLimit(calls=2000, at_once=400), 100
    budget_gap = streams / (limit.calls * HEADROOM / WINDOW_SECONDS)
    network = random.Random(1)
    gaps: list[float] = []

    async def poll(limiter: CallLimiter, log: Log, caller: int) -> None:
        loop = asyncio.get_running_loop()
        last = None
        while loop.time() < 60:
            await log.call(limiter, caller, network.uniform(0.02, 0.04))
            if last is not None and loop.time() > 10:
                gaps.append(loop.time() - last)
            last = loop.time()

    async def run() -> None:
        limiter, log = CallLimiter(limit), Log()
        async with asyncio.TaskGroup() as group:
            for caller in range(streams):
                group.create_task(poll(limiter, log, caller))

    run_virtually(run())
    assert sorted(gaps)[len(gaps) * 99 // 100] <= 1.1 * budget_gap


def test_a_crowd_of_urgent_calls_leaves_turns_to_the_others() -> None:
    async def poll_urgently(limiter: CallLimiter, log: Log, caller: int) -> None:
        for _ in range(30):
            await log.call(limiter, caller, 1.0, urgent=True)

    async def run() -> Log:
        limiter, log = CallLimiter(LIMIT), Log()
        async with asyncio.TaskGroup() as group:
            for caller in range(100):
                group.create_task(poll_urgently(limiter, log, caller))
            for caller in range(100, 105):
                group.create_task(poll_for(limiter, log, caller, seconds=60, each=0.05))
        return log

    polls = run_virtually(run()).callers
    assert min(polls[caller] for caller in range(100, 105)) > 60


def test_an_hour_of_refusals_is_forgotten_in_minutes() -> None:
    async def poll_refused(limiter: CallLimiter, log: Log) -> None:
        while (now := asyncio.get_running_loop().time()) < 4000:
            await log.call(limiter, 0, 0.05)
            if now < 3600:
                limiter.slow_down(None)

    async def run() -> list[float]:
        limiter, log = CallLimiter(LIMIT), Log()
        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(poll_refused(limiter, log))
        return log.times

    times = run_virtually(run())
    assert sum(3800 <= time < 3810 for time in times) > 0.85 * LIMIT.calls


def test_a_refusal_pauses_everybody_and_slows_them_down_until_it_is_forgotten() -> None:
    async def run() -> list[float]:
        limiter, log = CallLimiter(LIMIT), Log()
        async with asyncio.TaskGroup() as group:
            for caller in range(30):
                group.create_task(poll_for(limiter, log, caller, seconds=100, each=0.05))
            await asyncio.sleep(20)
            for _ in range(10):
                limiter.slow_down(3.0)
        return log.times

    times = run_virtually(run())
    assert not [time for time in times if 20.0 < time < 23.0]
    slowed = sum(23 <= time < 33 for time in times)
    later = sum(80 <= time < 90 for time in times)
    assert slowed < 0.75 * LIMIT.calls
    assert later > 0.85 * LIMIT.calls


def test_cancels_of_which_some_are_refused_all_along_do_not_pile_up() -> None:
    async def cancel(limiter: CallLimiter, log: Log, caller: int) -> None:
        dice = random.Random(caller)
        await log.call(limiter, caller, 0.05)
        while dice.random() < 0.1:
            limiter.slow_down(None)
            await log.call(limiter, caller, 0.05)
        ended.append(asyncio.get_running_loop().time())

    async def run() -> None:
        limiter = CallLimiter.for_cancels(CallLimit(calls=100, at_once=20))
        async with asyncio.TaskGroup() as group:
            for caller in range(900):
                group.create_task(cancel(limiter, Log(), caller))
                await asyncio.sleep(0.5)

    ended: list[float] = []
    run_virtually(run())
    assert ended[-1] - 900 * 0.5 < 10


def test_callers_who_leave_hand_their_turns_on() -> None:
    async def run() -> int:
        limiter, log = CallLimiter(CallLimit(calls=200, at_once=1)), Log()
        tasks = [asyncio.create_task(log.call(limiter, i, 1.0)) for i in range(10)]
        await asyncio.sleep(0.5)
        for task in tasks[:8]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5):
            await log.call(limiter, 10, 0.0)
        return len(log.times)

    assert run_virtually(run()) == 4


def test_a_turn_that_comes_as_its_caller_leaves_is_not_lost() -> None:
    async def run() -> None:
        limiter, log = CallLimiter(CallLimit(calls=200, at_once=1)), Log()
        first = asyncio.create_task(log.call(limiter, 0, 1.0))
        await asyncio.sleep(0)
        second = asyncio.create_task(log.call(limiter, 1, 1.0))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)  # the turn is given to the second now, which is cancelled in it
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        async with asyncio.timeout(5):
            await log.call(limiter, 2, 0.0)

    run_virtually(run())


def test_it_is_crowded_when_held_calls_would_be_in_the_way() -> None:
    async def run() -> list[bool]:
        limiter, log = CallLimiter(LIMIT), Log()
        told = [limiter.is_crowded]
        tasks = [asyncio.create_task(log.call(limiter, i, 100.0)) for i in range(LIMIT.at_once)]
        await asyncio.sleep(10)
        told.append(limiter.is_crowded)
        await asyncio.gather(*tasks)
        told.append(limiter.is_crowded)
        return told

    assert run_virtually(run()) == [False, True, False]


def test_waiting_for_a_turn_does_not_spin() -> None:
    looks = 0

    class Counted(CallLimiter):
        def _admit(self) -> None:
            nonlocal looks
            looks += 1
            super()._admit()

    async def run() -> int:
        limiter, log = Counted(CallLimit(calls=2000, at_once=40)), Log()
        async with asyncio.TaskGroup() as group:
            for caller in range(20):
                group.create_task(poll_for(limiter, log, caller, seconds=0.2, each=0))
        return len(log.times)

    calls = uvloop.run(run())
    assert looks < 5 * calls
