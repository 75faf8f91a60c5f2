"""Who gets in at the worker's door, and what it costs to knock."""

import asyncio
import ssl
from typing import Any

import aiohttp
import pytest

from tests.servers import free_port
from tests.worker.direct.conftest import Worker, eventually
from tests.worker.direct.scripted_proxy import ScriptedProxy
from worker.direct import connection, door

HANGS = {"hang_after": 1}


@pytest.fixture
async def open_door(worker: Worker, proxy: ScriptedProxy) -> Worker:
    """A worker that has a job of the proxy, and so an open door."""
    posted = worker.run(proxy.channel(port=worker.port), script=HANGS)
    await eventually(lambda: posted.frames)
    return worker


def without_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def refused(context: ssl.SSLContext, port: int) -> bool:
    """Whether nothing is to be had this way; TLS 1.3 tells its client only when it reads."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET /channel HTTP/1.1\r\nHost: x\r\n\r\n")
        said = await reader.read()
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return True
    return not said


async def test_nobody_gets_in_without_a_certificate_that_a_job_named(
    open_door: Worker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = ScriptedProxy(tmp_path_factory.mktemp("stranger"))
    assert await refused(without_certificate(), open_door.port)
    assert await refused(stranger.tls(), open_door.port)


async def test_old_versions_of_tls_are_refused(open_door: Worker, proxy: ScriptedProxy) -> None:
    context = proxy.tls()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await refused(context, open_door.port)


async def test_one_proxy_cannot_reach_anothers_jobs(
    open_door: Worker, proxy: ScriptedProxy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = ScriptedProxy(tmp_path_factory.mktemp("other"))
    theirs, ours = other.channel(port=open_door.port), proxy.channel(port=open_door.port)
    open_door.run(theirs, script=HANGS)
    open_door.run(ours, script=HANGS)
    await eventually(lambda: open_door.engine.counters.running >= 3)
    async with other.dial(open_door.port) as channel:
        await channel.say(
            ["take", ours["nonce"], 0], ["cancel", ours["nonce"]], ["got", ours["nonce"], 1, 1]
        )
        await channel.say(["take", theirs["nonce"], 0])
        await channel.until(lambda: channel.frames[theirs["nonce"]])
    assert channel.items == [["have", theirs["nonce"]], *[["gone", ours["nonce"]]] * 2]
    assert ours["nonce"] not in channel.frames


async def test_a_new_channel_of_the_same_proxy_takes_the_place_of_the_old_one(
    open_door: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.direct.connection.LIVE_SILENCE_SECONDS", 1000)
    async with proxy.dial(open_door.port) as first, proxy.dial(open_door.port) as second:
        await first.until(lambda: first.closed)
        await second.until(lambda: second.items)


async def test_only_the_channel_is_served(open_door: Worker, proxy: ScriptedProxy) -> None:
    base = f"https://127.0.0.1:{open_door.port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/", ssl=proxy.tls()) as answer:
            assert answer.status == 404
        async with session.get(f"{base}/channel", ssl=proxy.tls()) as answer:
            assert answer.status == 400


async def test_handshakes_that_stand_still_give_way_to_new_ones(
    open_door: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_SECONDS", 1000)
    silent = [
        await asyncio.open_connection("127.0.0.1", open_door.port)
        for _ in range(door.MAX_HANDSHAKES + 4)
    ]
    async with proxy.dial(open_door.port) as channel:
        await channel.until(lambda: channel.items)
    first, _ = silent[0]
    async with asyncio.timeout(20):
        assert await first.read() == b""
    for _, writer in silent:
        writer.close()


@pytest.mark.slow
async def test_a_handshake_that_stands_still_ends(
    open_door: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", open_door.port)
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_connections_are_bounded(
    open_door: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 1)
    async with proxy.dial(open_door.port) as channel:
        await channel.until(lambda: channel.items)
        assert await refused(proxy.tls(), open_door.port)
        assert not channel.closed


@pytest.mark.parametrize(
    "said",
    [
        "nonsense",
        "{}",
        "[1]",
        '[["take"]]',
        '[["take", "x", 0]]',
        '[["take", "00000000000000000000000000000000", -1]]',
        '[["take", "00000000000000000000000000000000", true]]',
        '[["got", "00000000000000000000000000000000", 1]]',
        '[["got", 1, 1, 1]]',
        '[["cancel", null]]',
        '[["ping", 1e3]]',
        "[" * 100_000,
        b"[]",
    ],
)
async def test_a_malformed_message_closes_the_channel_and_the_queue_takes_over(
    open_door: Worker, proxy: ScriptedProxy, said: Any
) -> None:
    offer = proxy.channel(port=open_door.port)
    async with proxy.dial(open_door.port) as channel:
        posted = open_door.run(offer, script=HANGS)
        await channel.until(lambda: channel.frames[offer["nonce"]])
        send = channel.socket.send_str if isinstance(said, str) else channel.socket.send_bytes
        await send(said)
        await channel.until(lambda: channel.closed)
        await eventually(lambda: posted.frames)


async def test_kinds_that_are_not_known_are_ignored(
    open_door: Worker, proxy: ScriptedProxy
) -> None:
    async with proxy.dial(open_door.port) as channel:
        await channel.say(["later", {"with": "more"}], ["ping", 1, "and more"][:2])
        await channel.until(lambda: ["pong", 1] in channel.items)


# A door that does not open


async def told(worker: Worker, channel: Any) -> Any:
    posted = await worker.end_of(worker.run(channel, max_tokens=1))
    assert posted.summary is None
    return posted.frames[0].get("channel")


async def test_a_port_that_is_not_exposed_is_told(worker: Worker, proxy: ScriptedProxy) -> None:
    assert await told(worker, proxy.channel(port=free_port())) == {
        "protocol": 1,
        "closed": "no_public_port",
    }


async def test_a_port_that_is_taken_is_told(worker: Worker, proxy: ScriptedProxy) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", worker.port)
    async with server:
        assert (await told(worker, proxy.channel(port=worker.port)))["closed"] == "failed"


async def test_an_input_that_names_no_door_is_told_so(worker: Worker, proxy: ScriptedProxy) -> None:
    assert (await told(worker, proxy.channel()))["closed"] == "no_door"


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": 2},
        {"protocol": True},
        {"nonce": "x"},
        {"nonce": None},
        {"certificate": "bm9uZQ=="},
        {"certificate": "*"},
        {"certificate": 1},
        {"port": 0},
        {"port": "8899"},
        {"url": "https://proxy.example/channel", "token": "t" * 32},
        {"url": "ws://proxy.example/channel", "token": "t" * 32},
        {"url": "wss://proxy.example/channel"},
        {"url": "wss://a:b@proxy.example/channel", "token": "t" * 32},
        {"url": "wss://[", "token": "t" * 32},
        {"url": 1},
    ],
)
async def test_a_channel_that_is_not_understood_is_as_if_there_were_none(
    worker: Worker, proxy: ScriptedProxy, wrong: dict[str, Any]
) -> None:
    assert await told(worker, proxy.channel(port=worker.port) | wrong) is None


async def test_anything_else_in_its_place_is_ignored(worker: Worker) -> None:
    values: list[Any] = [[], "x", 1, {}, {"protocol": 1}]
    for nonsense in values:
        assert await told(worker, nonsense) is None


async def test_a_nonce_that_is_in_use_is_not_given_twice(
    open_door: Worker, proxy: ScriptedProxy
) -> None:
    offer = proxy.channel(port=open_door.port)
    open_door.run(offer, script=HANGS)
    await eventually(lambda: open_door.engine.counters.running >= 2)
    assert (await told(open_door, offer))["closed"] == "nonce_in_use"


async def test_the_proxies_let_in_are_bounded(
    open_door: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("worker.direct.identity.MAX_PROXIES", 2)
    others = [ScriptedProxy(tmp_path) for _ in range(2)]
    for other in others:
        await told(open_door, other.channel(port=open_door.port))
    assert await refused(proxy.tls(), open_door.port)
    async with others[1].dial(open_door.port):
        pass


async def test_a_proxy_that_asks_for_more_than_it_reads_is_cut_off(
    open_door: Worker,
    proxy: ScriptedProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(connection, "READY_BYTES_A_JOB", 100_000)
    channel = proxy.channel(port=open_door.port)
    posted = open_door.run(channel, script=HANGS)
    await eventually(lambda: posted.frames)
    async with proxy.dial(open_door.port) as opened:
        await opened.say(*[["take", channel["nonce"], 0]] * 5_000)
        await opened.until(lambda: opened.closed)
    assert "more is asked for than is read" in caplog.text
