"""The proxy's door, which the worker dials: whom, with what, and how often."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from starlette.applications import Starlette

from tests.worker.direct.conftest import Worker, eventually
from tests.worker.direct.scripted_proxy import Channel, ScriptedProxy
from worker.direct import dialling
from worker.direct.road import DirectRoad

HANGS = {"hang_after": 1}
TOKEN = "t" * 32


class ProxysDoor:
    """A door of a proxy: what it was shown, and the channels that it let in."""

    def __init__(self) -> None:
        self.url = ""
        self.shown: list[str | None] = []
        self.channels: list[Channel] = []
        self.answer: web.Response | None = None
        """What is said in place of a handshake."""

    async def let_in(self, request: web.Request) -> web.StreamResponse:
        """Open a channel, and keep it open until either side ends it."""
        self.shown.append(request.headers.get("Authorization"))
        if self.answer is not None:
            return self.answer
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async with Channel(socket).reading() as channel:
            self.channels.append(channel)
            await channel.until(lambda: channel.closed)
        return socket


@asynccontextmanager
async def served(door: ProxysDoor, host: str = "127.0.0.1") -> AsyncIterator[ProxysDoor]:
    """The door at a port of its own."""
    app = web.Application()
    app.router.add_get("/channel", door.let_in)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    door.url = f"ws://{host}:{runner.addresses[0][1]}/channel"
    try:
        yield door
    finally:
        await runner.cleanup()


@pytest.fixture
async def door() -> AsyncIterator[ProxysDoor]:
    async with served(ProxysDoor()) as door:
        yield door


@pytest.fixture
async def worker(app: Starlette, url: str) -> AsyncIterator[Worker]:
    """A worker without a public address that may dial this machine."""
    road = DirectRoad({}, dial_hosts=frozenset({"127.0.0.1"}))
    worker = Worker(app.state.engine, url, road, 0)
    yield worker
    await worker.close()


def offer(proxy: ScriptedProxy, door: ProxysDoor, **facts: Any) -> dict[str, Any]:
    return proxy.channel(url=door.url, token=TOKEN, **facts)


async def open_door(worker: Worker, proxy: ScriptedProxy, door: ProxysDoor) -> None:
    """Have the worker dial, and know that it did: jobs that begin now are sent by themselves."""
    first = offer(proxy, door)
    worker.run(first, script=HANGS)
    await eventually(lambda: door.channels)
    opened = door.channels[0]
    await opened.until(lambda: ["have", first["nonce"]] in opened.items)


@pytest.mark.slow
async def test_the_worker_dials_and_sends_its_job_from_the_start(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    channel = offer(proxy, door)
    posted = worker.run(channel, script={"tokens": 50, "delay_seconds": 0.03})
    await eventually(lambda: door.channels)
    opened = door.channels[0]
    await opened.until(lambda: ["have", channel["nonce"]] in opened.items)
    await opened.say(["take", channel["nonce"], 0])
    frames = await opened.end_of(channel["nonce"])
    await opened.say(["got", channel["nonce"], len(frames), 0])
    await worker.end_of(posted)
    assert door.shown == [f"Bearer {TOKEN}"]
    assert frames[0]["channel"] == {"protocol": 1, "dials": "127.0.0.1"}


async def test_one_connection_serves_all_jobs_of_a_proxy(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    await open_door(worker, proxy, door)
    later = [offer(proxy, door) for _ in range(5)]
    for channel in later:
        worker.run(channel, max_tokens=2)
    for channel in later:
        await door.channels[0].end_of(channel["nonce"])
    assert len(door.shown) == 1


async def test_a_lost_connection_is_dialled_again_with_another_jobs_token(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    await open_door(worker, proxy, door)
    second = offer(proxy, door) | {"token": "u" * 32}
    worker.run(second, script=HANGS)
    await door.channels[0].until(lambda: door.channels[0].frames[second["nonce"]])
    await door.channels[0].socket.close()
    await eventually(lambda: len(door.channels) == 2)
    assert door.shown == [f"Bearer {TOKEN}", f"Bearer {'u' * 32}"]
    await door.channels[1].until(lambda: ["have", second["nonce"]] in door.channels[1].items)


async def test_hosts_that_the_settings_do_not_name_are_not_dialled(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    elsewhere = door.url.replace("127.0.0.1", "127.0.0.2")
    channel = proxy.channel(url=elsewhere, token=TOKEN)
    posted = await worker.end_of(worker.run(channel, max_tokens=1))
    assert posted.frames[0]["channel"]["closed"] == "host_not_allowed"
    assert door.shown == []


async def test_a_redirect_leads_nowhere(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    async with served(ProxysDoor(), "127.0.0.2") as other:
        target = other.url.replace("ws://", "http://")
        door.answer = web.Response(status=302, headers={"Location": target})
        posted = worker.run(offer(proxy, door), script=HANGS)
        await eventually(lambda: door.shown and posted.frames)
        await asyncio.sleep(0.2)
        assert other.shown == []


async def test_a_proxy_that_refuses_is_left_alone_and_the_queue_carries_the_job(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    door.answer = web.Response(status=403)
    first = worker.run(offer(proxy, door), script={"tokens": 20, "delay_seconds": 0.02})
    await worker.end_of(first)
    second = await worker.end_of(worker.run(offer(proxy, door), max_tokens=1))
    assert len(door.shown) == 1
    assert first.summary is None
    assert first.frames[-1]["end"]
    assert second.frames[0]["channel"]["closed"] == "failed"


async def test_a_token_that_is_refused_says_nothing_against_its_host(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    door.answer = web.Response(status=401)
    first = worker.run(offer(proxy, door), script={"tokens": 20, "delay_seconds": 0.02})
    await worker.end_of(first)
    door.answer = None
    second = worker.run(offer(proxy, door), script=HANGS)
    await eventually(lambda: second.frames)
    assert second.frames[0]["channel"] == {"protocol": 1, "dials": "127.0.0.1"}
    await eventually(lambda: door.channels)


async def test_a_host_that_failed_is_tried_again_after_a_pause(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialling, "FIRST_PAUSE_SECONDS", 0.1)
    door.answer = web.Response(status=502)
    worker.run(offer(proxy, door), script=HANGS)
    await eventually(lambda: door.shown)
    door.answer = None
    await asyncio.sleep(0.3)
    worker.run(offer(proxy, door), script=HANGS)
    await eventually(lambda: door.channels)


async def test_where_the_proxys_door_can_be_taken_the_worker_opens_none(
    app: Starlette, url: str, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    environment = {"RUNPOD_PUBLIC_IP": "127.0.0.1", "RUNPOD_TCP_PORT_8899": "1"}
    road = DirectRoad(environment, dial_hosts=frozenset({"127.0.0.1"}))
    worker = Worker(app.state.engine, url, road, 8899)
    posted = worker.run(offer(proxy, door, port=8899), max_tokens=1)
    await eventually(lambda: posted.frames)
    assert posted.frames[0]["channel"] == {"protocol": 1, "dials": "127.0.0.1"}
    await worker.close()


async def test_a_certificate_of_the_wrong_name_is_refused(
    worker: Worker, proxy: ScriptedProxy, door: ProxysDoor
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read.append(await reader.read())
        writer.close()

    read: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(proxy.chain)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    channel = proxy.channel(url=f"wss://127.0.0.1:{port}/channel", token=TOKEN)
    async with server:
        posted = await worker.end_of(worker.run(channel, max_tokens=3))
    assert posted.frames[-1]["end"]
    assert read == []
