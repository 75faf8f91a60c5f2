"""Limits that copies keep together in a real Redis, and what holds while it is away."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from proxy.access import shared_limits
from proxy.access.keys import Key, KeyLimits
from proxy.access.shared_limits import SharedLimiter
from proxy.access.spending import Spending
from proxy.api.call import Work
from proxy.api.token_estimate import Tokens
from proxy.errors import InsufficientQuota, RateLimitExceeded, TokenLimitExceeded
from proxy.storage import patience, shared_state
from proxy.storage.shared_state import Script, SharedState
from tests.proxy.access.conftest import FRAME
from tests.proxy.conftest import chat
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.redis_server import RedisServer, redis_server
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
STORM = 200
NONE = Tokens()


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(lasting_redis: RedisServer) -> RedisServer:
    """A Redis that is up and holds nothing."""
    lasting_redis.stop()
    lasting_redis.start()
    return lasting_redis


@asynccontextmanager
async def two_copies(
    server: RedisServer, folder: Path
) -> AsyncIterator[tuple[SharedLimiter, SharedLimiter]]:
    """The limiters of two copies, each with a folder of its own."""
    states = [SharedState(server.url) for _ in range(2)]
    copies = [
        SharedLimiter(Spending(folder / name), state, copies=2)
        for name, state in zip(("a", "b"), states, strict=True)
    ]
    try:
        yield copies[0], copies[1]
    finally:
        for copy in copies:
            await copy.close()
        for state in states:
            await state.close()


async def let_in(limiter: SharedLimiter, key: Key, tokens: Tokens = NONE) -> bool:
    """Whether one more request is."""
    try:
        await limiter.admit(key, tokens)
    except RateLimitExceeded:
        return False
    return True


@pytest.mark.parametrize("limit", ["requests_per_minute", "max_requests"])
async def test_two_copies_let_in_just_as_many_as_one_may(
    server: RedisServer, tmp_path: Path, limit: str
) -> None:
    key = Key("k", limits=KeyLimits(**{limit: 50}))
    async with two_copies(server, tmp_path) as copies:
        tried = (let_in(copies[number % 2], key) for number in range(STORM))
        assert (await asyncio.gather(*tried)).count(True) == 50


async def test_what_one_limit_refuses_uses_up_nothing_of_the_others(
    server: RedisServer, tmp_path: Path
) -> None:
    limits = KeyLimits(requests_per_minute=2, max_requests=1, tokens_per_minute=100)
    key = Key("k", limits=limits)
    async with two_copies(server, tmp_path) as (one, other):
        first = await one.admit(key, Tokens(60))
        assert first is not None
        told = dict(first.told([(b"x-ratelimit-limit-tokens", b"of a model's server")]))
        assert told[b"x-ratelimit-remaining-requests"] == b"1"
        assert told[b"x-ratelimit-remaining-tokens"] == b"40"
        assert told[b"x-ratelimit-limit-tokens"] == b"100"
        with pytest.raises(RateLimitExceeded, match="at once: Limit 1"):
            await other.admit(key, Tokens(40))
        first.end(used=60, is_known=True)
        await _settled(one)
        with pytest.raises(TokenLimitExceeded, match="Requested 90"):
            await other.admit(key, Tokens(90))
        second = await other.admit(key, Tokens(10))
        assert second is not None
        second.end(used=10, is_known=True)
        await _settled(other)
        with pytest.raises(RateLimitExceeded, match=r"RPM.: Limit 2") as refused:
            await one.admit(key, Tokens(10))
        assert 50 < (refused.value.retry_after_seconds or 0) <= 60


async def test_tokens_are_settled_for_all_copies(server: RedisServer, tmp_path: Path) -> None:
    key = Key("k", limits=KeyLimits(tokens_per_minute=1000))
    async with two_copies(server, tmp_path) as (one, other):
        permit = await one.admit(key, Tokens(100, 800))
        assert permit is not None
        assert not await let_in(other, key, Tokens(500))
        permit.end(used=110, is_known=True)
        await _settled(one)
        assert await let_in(other, key, Tokens(500))


async def test_a_budget_that_one_copy_has_spent_is_spent_for_all(
    server: RedisServer, tmp_path: Path
) -> None:
    key = Key("k", limits=KeyLimits(monthly_budget=5, daily_gpu_seconds=100))
    async with two_copies(server, tmp_path) as (one, other):
        assert await let_in(other, key)
        for limiter in (one, other):
            limiter.on_spent(key)(Work("ep", 9.0, 2.5 / 9))
            await _settled(limiter)
        with pytest.raises(InsufficientQuota, match=r"monthly budget of \$5 \(spent: \$5\)"):
            await one.admit(key, NONE)
        key = Key("k", limits=KeyLimits(daily_gpu_seconds=18))
        with pytest.raises(InsufficientQuota, match="daily budget of 18 GPU-seconds"):
            await other.admit(key, NONE)


@pytest.mark.slow
async def test_places_of_a_copy_that_was_killed_are_free_after_their_lease(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "LEASE_SECONDS", 3.0)
    key = Key("k", limits=KeyLimits(max_requests=1))
    async with two_copies(server, tmp_path) as (one, other):
        assert await let_in(one, key)
        for _ in range(40):
            await asyncio.sleep(0.1)
            assert not await let_in(other, key)  # it is held for longer than a lease
        assert one._holding is not None
        one._holding.cancel()  # as by a kill
        async with asyncio.timeout(30):
            while not await let_in(other, key):  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_while_redis_is_away_each_copy_keeps_to_its_share_and_then_they_count_together(
    server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shared_state, "PAUSE_SECONDS", 0.1)
    key = Key("k", limits=KeyLimits(requests_per_minute=10, daily_gpu_seconds=100))
    async with two_copies(server, tmp_path) as copies:
        for _ in range(2):
            assert await let_in(copies[0], key)
        server.stop()
        left = [[await let_in(copy, key) for _ in range(10)].count(True) for copy in copies]
        assert left == [3, 5]  # the first has let in two of its five before
        assert caplog.text.count("Redis is away: ") == 2
        copies[0].on_spent(key)(Work("ep", 60.0))
        with pytest.raises(InsufficientQuota, match="budget of 50 GPU-seconds"):
            await copies[0].admit(key, NONE)
        await _settled(copies[0])
        server.start()
        other = Key("other", limits=KeyLimits(requests_per_minute=10, daily_gpu_seconds=100))
        await asyncio.sleep(0.2)
        tried = [await let_in(copies[number % 2], other) for number in range(20)]
        assert tried.count(True) == 10
        copies[1].on_spent(key)(Work("ep", 40.0))
        await _settled(copies[1])
        copies[0].on_spent(key)(Work("ep"))  # with which it tells what it could not tell before
        await _settled(copies[0])
        with pytest.raises(InsufficientQuota, match=r"of 100 GPU-seconds .spent: 100"):
            await copies[1].admit(key, NONE)


async def test_a_redis_that_says_nothing_holds_no_request_up(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_state, "PATIENCE_SECONDS", 0.1)
    key = Key("k", limits=KeyLimits(requests_per_minute=100))
    async with two_copies(server, tmp_path) as (one, _):
        assert await let_in(one, key)
        server.hold()
        async with asyncio.timeout(30):
            assert all(await asyncio.gather(*(let_in(one, key) for _ in range(40))))


@pytest.mark.slow
async def test_a_redis_that_answers_is_not_away_when_the_proxy_is_behind(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_state, "PATIENCE_SECONDS", 0.4)
    monkeypatch.setattr(patience, "TICK_SECONDS", 0.01)

    def hold_the_loop() -> None:
        time.sleep(0.1)
        loop.call_soon(hold_the_loop)

    loop = asyncio.get_running_loop()
    loop.call_soon(hold_the_loop)
    state = SharedState(server.url)
    assert await state.run(Script("return ARGV[1]"), [], ["here"]) == "here"
    await state.close()


async def test_what_was_spent_is_counted_to_the_day_on_which_it_was(
    server: RedisServer, tmp_path: Path
) -> None:
    today = datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    spending = Spending(tmp_path, lambda: today)
    state = SharedState(server.url)
    limiter = SharedLimiter(spending, state, copies=1)
    key = Key("k", limits=KeyLimits(daily_gpu_seconds=10))
    limiter.on_spent(key)(Work("ep", 10.0))
    await _settled(limiter)
    with pytest.raises(InsufficientQuota, match="from 2027-01-01 00:00 UTC on"):
        await limiter.admit(key, NONE)
    today = datetime(2027, 1, 1, 0, 0, tzinfo=UTC)
    assert await let_in(limiter, key)
    await limiter.close()
    await state.close()
    spending.close()


async def _settled(limiter: SharedLimiter) -> None:
    """Wait until Redis has been told all that there is to tell."""
    if limiter._tasks:
        await asyncio.wait(limiter._tasks)


@pytest.fixture
def proxies(
    server: RedisServer,
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[Proxy]]:
    """Two proxies, each a process with a folder of its own, and one Redis."""
    file, keys = tmp_path / "proxy.toml", ""
    for name, limit in (
        *(("minute", "requests_per_minute = 50"), ("once", "max_requests = 50")),
        ("share", "requests_per_minute = 10"),
    ):
        monkeypatch.setenv(f"{name.upper()}_KEY", f"sk-{name}")
        keys += f"[keys.{name}]\nenv = '{name.upper()}_KEY'\n{limit}\n"
    file.write_text(f"[endpoints.ep]\n[models.m]\nendpoint = 'ep'\n{keys}")
    started = [
        Proxy(
            scripted_runpod[1],
            state_dir=tmp_path / name,
            config=file,
            redis_url=server.url,
            copies=2,
        )
        for name in ("a", "b")
    ]
    yield started
    for proxy in started:
        proxy.close()


@pytest.mark.slow
def test_two_proxies_hold_two_hundred_requests_at_once_to_one_limit(
    proxies: list[Proxy], runpod: ScriptedRunPod, server: RedisServer
) -> None:
    async def storm(key: str, release: threading.Event) -> list[int]:
        refused: list[int] = []

        async def ask(client: httpx.AsyncClient, url: str) -> int:
            status = (await client.post(url + CHAT, json=chat())).status_code
            if status == 429:
                refused.append(status)
                if len(refused) == STORM - 50:
                    release.set()
            return status

        headers, bounds = {"authorization": f"Bearer {key}"}, httpx.Limits(max_connections=STORM)
        async with httpx.AsyncClient(headers=headers, timeout=100, limits=bounds) as client:
            urls = [proxies[number % 2].url for number in range(STORM)]
            return await asyncio.gather(*(ask(client, url) for url in urls))

    for key in ("sk-minute", "sk-once"):
        runpod.reset()
        release = threading.Event()  # no answer before all that are too many have been refused
        runpod.script = [Page("IN_PROGRESS", hold=release), Page("COMPLETED", [FRAME])]
        statuses = asyncio.run(storm(key, release))
        assert (statuses.count(200), statuses.count(429)) == (50, STORM - 50)
        assert len(runpod.jobs) == 50
    server.stop()
    runpod.script = [Page("COMPLETED", [FRAME])]
    for proxy in proxies:
        headers = {"authorization": "Bearer sk-share"}
        answers = [proxy.client.post(CHAT, json=chat(), headers=headers) for _ in range(10)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 5
        assert answers[0].headers["x-ratelimit-limit-requests"] == "5"
    server.start()
    headers = {"authorization": "Bearer sk-share"}

    def shared_limit() -> str:
        answer = proxies[0].client.post(CHAT, json=chat(), headers=headers)
        return answer.headers["x-ratelimit-limit-requests"]

    wait_until(lambda: shared_limit() == "10")
