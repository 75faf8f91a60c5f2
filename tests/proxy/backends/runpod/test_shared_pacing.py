"""RunPod's call budgets over two copies with a real Redis: together inside the limits, and fair."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.backends.runpod import shared_pacing
from proxy.backends.runpod.pacing import BURST, HEADROOM, CallLimiter
from proxy.backends.runpod.shared_pacing import SharedShares
from proxy.config.limits import WINDOW_SECONDS, CallLimit
from proxy.storage.shared_state import SharedState
from tests.proxy.access.conftest import FRAME
from tests.proxy.backends.runpod.test_pacing import Log
from tests.proxy.conftest import chat
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.redis_server import RedisServer
from tests.waiting import until, wait_until

LIMIT = CallLimit(calls=400, at_once=40)


@asynccontextmanager
async def two_copies(
    redis: RedisServer, limit: CallLimit = LIMIT
) -> AsyncIterator[tuple[CallLimiter, CallLimiter]]:
    """The limiters of two copies for the same calls."""
    states = [SharedState(redis.url) for _ in range(2)]
    copies = [SharedShares(state, copies=2) for state in states]
    limiters = [CallLimiter(limit) for _ in copies]
    for copy, limiter in zip(copies, limiters, strict=True):
        copy.hold(limiter, "ep/stream")
    try:
        yield limiters[0], limiters[1]
    finally:
        for copy, state in zip(copies, states, strict=True):
            await copy.close()
            await state.close()


@pytest.mark.slow
async def test_two_copies_together_stay_inside_the_limit_and_both_make_calls(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pacing, "RENEW_SECONDS", 0.1)
    dice, log, loop = random.Random(1), Log(), asyncio.get_running_loop()

    async def poll(limiter: CallLimiter, caller: int) -> None:
        while len(log.times) < 150:
            await log.call(limiter, caller, dice.uniform(0.05, 1.5))

    async with two_copies(redis) as (one, other), asyncio.TaskGroup() as group:
        began = loop.time()
        for _ in range(60):
            group.create_task(poll(one, 1))
        await asyncio.sleep(0.5)
        for _ in range(60):
            group.create_task(poll(other, 2))
    assert log.most_at_once <= LIMIT.at_once
    for number, at in enumerate(log.times, start=1):
        seconds = at - began
        assert number <= 1 + LIMIT.calls * (BURST + HEADROOM * seconds / WINDOW_SECONDS)
    assert min(log.callers.values()) > 0.25 * len(log.times)


async def test_a_copy_that_begins_need_not_wait_for_one_that_has_all(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pacing, "RENEW_SECONDS", 1000)
    stop = asyncio.Event()

    async def hold(limiter: CallLimiter) -> None:
        async with limiter.turn():
            await stop.wait()

    async with two_copies(redis, CallLimit(100_000, 40)) as (one, other):
        held = [asyncio.create_task(hold(one)) for _ in range(100)]
        await until(lambda: one.in_flight == 36)
        held += [asyncio.create_task(hold(other)) for _ in range(100)]
        await until(lambda: other.in_flight == 4)
        for _ in range(100):
            await asyncio.sleep(0)
            assert one.in_flight + other.in_flight <= 40
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_while_redis_is_away_each_copy_keeps_to_its_share(redis: RedisServer) -> None:
    redis.stop()
    stop = asyncio.Event()

    async def hold(limiter: CallLimiter) -> None:
        async with limiter.turn():
            await stop.wait()

    async with two_copies(redis, CallLimit(100_000, 40)) as copies, asyncio.TaskGroup() as group:
        for limiter in copies:
            for _ in range(100):
                group.create_task(hold(limiter))
        await until(lambda: [limiter.in_flight for limiter in copies] == [20, 20])
        for _ in range(100):
            await asyncio.sleep(0)
            assert [limiter.in_flight for limiter in copies] == [20, 20]
        stop.set()


async def test_calls_cost_no_question_each(redis: RedisServer) -> None:
    asked, log = 0, Log()
    run = SharedState.run

    async def counted(state: SharedState, *arguments: object) -> object:
        nonlocal asked
        asked += 1
        return await run(state, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedState, "run", counted)
        async with two_copies(redis, CallLimit(100_000, 40)) as (one, _):
            began = asyncio.get_running_loop().time()
            for _ in range(200):
                await log.call(one, 1, 0)
            seconds = asyncio.get_running_loop().time() - began
    assert 1 <= asked <= 1 + seconds / shared_pacing.RENEW_SECONDS


@pytest.mark.slow
def test_two_proxies_submit_no_more_at_once_than_runpod_takes(
    redis: RedisServer,
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
) -> None:
    runpod.run_hold = threading.Event()
    runpod.script = [Page("COMPLETED", [FRAME])]
    copies = [
        Proxy(
            scripted_runpod[1],
            state_dir=tmp_path / name,
            redis_url=redis.url,
            run_limit="1000/10",
            copies=2,
        )
        for name in ("a", "b")
    ]
    try:
        with ThreadPoolExecutor(30) as pool:
            asked = [
                pool.submit(copies[number % 2].client.post, "/v1/chat/completions", json=chat())
                for number in range(30)
            ]
            wait_until(lambda: len(runpod.jobs) >= 8)
            for _ in range(10):
                assert len(runpod.jobs) <= 10
                copies[0].client.get("/ready")
            runpod.run_hold.set()
            assert {answer.result().status_code for answer in asked} == {200}
    finally:
        for copy in copies:
            copy.close()
