"""A channel that falls silent, and a worker that ends while jobs are on one."""

import asyncio
from typing import Any

import pytest

from tests.worker.direct.conftest import Worker, eventually
from tests.worker.direct.scripted_proxy import ScriptedProxy
from worker.direct import connection
from worker.direct.outbox import WINDOW_BYTES

pytestmark = pytest.mark.slow

FULL: dict[str, Any] = {"tokens": 400, "event_bytes": 100_000}
"""More than may be under way to a client that takes nothing."""


@pytest.fixture
async def open_door(worker: Worker, proxy: ScriptedProxy) -> Worker:
    """A worker that has had a job of the proxy, and so an open door."""
    await worker.end_of(worker.run(proxy.channel(port=worker.port), max_tokens=1))
    return worker


async def test_a_proxy_that_says_nothing_while_its_jobs_run_is_given_up(
    open_door: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(connection, "LIVE_SILENCE_SECONDS", 1.0)
    offer = proxy.channel(port=open_door.port)
    async with proxy.dial(open_door.port) as channel:
        posted = open_door.run(offer, script=FULL)
        await channel.until(lambda: channel.closed)
        await eventually(lambda: posted.frames)


async def test_pings_keep_a_channel_open(
    open_door: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(connection, "LIVE_SILENCE_SECONDS", 5.0)
    async with proxy.dial(open_door.port) as channel:
        open_door.run(proxy.channel(port=open_door.port), script={"hang_after": 1})
        for number in range(12):
            await channel.say(["ping", number])
            await asyncio.sleep(0.5)
        await channel.until(lambda: ["pong", 11] in channel.items)
        assert not channel.closed


async def test_a_job_on_a_channel_that_was_idle_is_not_given_up_at_once(
    open_door: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(connection, "LIVE_SILENCE_SECONDS", 2.0)
    async with proxy.dial(open_door.port) as channel:
        await asyncio.sleep(2.5)
        offer = proxy.channel(port=open_door.port)
        open_door.run(offer, script={"hang_after": 1})
        await channel.until(lambda: channel.frames[offer["nonce"]])
        await asyncio.sleep(0.3)
        assert not channel.closed


async def test_a_worker_that_ends_waits_for_no_slow_client(
    open_door: Worker, proxy: ScriptedProxy
) -> None:
    """As the shutdown does when the grace time is over: the job ends with its error."""
    async with proxy.dial(open_door.port) as channel:
        offer = proxy.channel(port=open_door.port)
        nonce = offer["nonce"]
        posted = open_door.run(offer, script=FULL)
        await channel.until(lambda: channel.size_of(nonce) > WINDOW_BYTES)
        await channel.say(["got", nonce, len(channel.frames[nonce]), 0])
        open_door.client.give_up()
        open_door.road.hurry()
        await open_door.end_of(posted)
    assert '"code":"worker_stopping"' in posted.frames[-1]["text"]
    assert posted.frames[-1]["end"]


async def test_channels_and_doors_close_with_the_road(
    open_door: Worker, proxy: ScriptedProxy
) -> None:
    async with proxy.dial(open_door.port) as channel:
        await open_door.road.close()
        await channel.until(lambda: channel.closed)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", open_door.port)
