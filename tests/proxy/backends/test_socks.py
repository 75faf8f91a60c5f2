"""Calls through a SOCKS5 proxy: a job submitted, a stream relayed, and proxies that refuse."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest

from proxy.app import create_app
from proxy.backends.connections import Client
from proxy.backends.runpod.endpoint import Endpoint, create_client
from proxy.errors import ConnectTimeout, NotSent
from tests.proxy.backends.runpod.test_endpoint import endpoint_at
from tests.proxy.backends.test_relay import CHAT, CONFIG, SSE
from tests.proxy.backends.test_transport import Talk
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.raw_server import heard, lead_on, raw_server
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve
from tests.waiting import wait_until

OPEN = b"\x05\x00"
LOGIN = b"\x05\x02"
DONE = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34"
REFUSED = b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"
RUNPOD = "http://runpod.invalid/v2/ep"
ANSWER = b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"id": "j1"}'


def socks_proxy(url: str, asked: list[bytes], *says: Iterable[bytes]) -> Talk:
    """A proxy that says these things in turn, each in parts, and leads to a server after the last.

    It hangs up before that if the last is no success.
    """

    def exactly(connection: socket.socket, size: int) -> bytes:
        data = connection.recv(size, socket.MSG_WAITALL) if size else b""
        if len(data) < size:
            raise ConnectionResetError
        return data

    def request(connection: socket.socket, number: int) -> bytes:
        if number == 0:
            head = exactly(connection, 2)
            return head + exactly(connection, head[1])
        if number < len(says) - 1:
            return exactly(connection, len(b"\x01\x04user\x04p@ss"))
        head = exactly(connection, 5)
        size = {1: 3, 3: head[4], 4: 15}[head[3]]
        return head + exactly(connection, size + 2)

    def talk(connection: socket.socket) -> None:
        last = b""
        for number, parts in enumerate(says):
            asked.append(request(connection, number))
            *before, last = parts
            for part in before:
                connection.sendall(part)
                time.sleep(0.01)
            if number < len(says) - 1:
                connection.sendall(last)
        if b"".join(says[-1])[:2] == DONE[:2]:
            target = httpx.URL(url)
            assert target.port is not None
            lead_on(connection, (target.host, target.port), last)
        else:
            connection.sendall(last)

    return talk


def use(monkeypatch: pytest.MonkeyPatch, url: str, login: str = "", spare: str = "") -> None:
    for name in ("ALL_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("ALL_PROXY", url.replace("http://", f"socks5://{login}"))
    monkeypatch.setenv("NO_PROXY", spare)


def runpod(connection: socket.socket) -> None:
    while head := heard(connection):
        assert head.startswith(b"POST /v2/ep/run HTTP/1.1\r\nhost: runpod.invalid\r\n")
        connection.recv(2, socket.MSG_WAITALL)
        connection.sendall(ANSWER)


async def submitted(endpoint: Endpoint, seconds: float = 30) -> str:
    return await endpoint.run(b"{}", connect_seconds=seconds, on_turn=lambda: None)


def endpoint_by(client: Client, url: str = RUNPOD) -> Endpoint:
    return endpoint_at(client, url, "k")


@pytest.mark.parametrize("login", ["", "user:p%40ss@"])
@pytest.mark.parametrize("size", [1, 10])
async def test_jobs_are_submitted_over_one_connection_that_the_proxy_makes(
    monkeypatch: pytest.MonkeyPatch, login: str, size: int
) -> None:
    asked: list[bytes] = []
    says = [OPEN, DONE] if not login else [LOGIN, b"\x01\x00", DONE]
    parts = [[said[at : at + size] for at in range(0, len(said), size)] for said in says]
    with raw_server(runpod) as target, raw_server(socks_proxy(target, asked, *parts)) as url:
        use(monkeypatch, url, login)
        async with create_client(connect_timeout_seconds=30) as client:
            endpoint = endpoint_by(client)
            assert [await submitted(endpoint) for _ in range(3)] == ["j1"] * 3
    wanted = [b"\x05\x01\x00"] if not login else [b"\x05\x02\x00\x02", b"\x01\x04user\x04p@ss"]
    assert asked == [*wanted, b"\x05\x01\x00\x03\x0erunpod.invalid\x00\x50"]


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.1.2.3:8400", b"\x01\x7f\x01\x02\x03\x20\xd0"),
        ("[::1]:8400", b"\x04" + bytes(15) + b"\x01\x20\xd0"),
    ],
)
async def test_an_address_goes_to_the_proxy_as_one(
    monkeypatch: pytest.MonkeyPatch, host: str, wanted: bytes
) -> None:
    asked: list[bytes] = []
    with raw_server(socks_proxy("", asked, [OPEN], [REFUSED])) as url:
        use(monkeypatch, url)
        async with create_client(connect_timeout_seconds=30) as client:
            with pytest.raises(NotSent):
                await submitted(endpoint_by(client, f"http://{host}/v2/ep"))
    assert asked[1] == b"\x05\x01\x00" + wanted


@pytest.mark.parametrize("reply", [b"\x04" + bytes(16), b"\x03\x05hello"], ids=["v6", "name"])
async def test_what_the_proxy_calls_from_is_not_taken_for_the_answer(
    monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    done = b"\x05\x00\x00" + reply + b"\x12\x34"
    with raw_server(runpod) as target, raw_server(socks_proxy(target, [], [OPEN], [done])) as url:
        use(monkeypatch, url)
        async with create_client(connect_timeout_seconds=30) as client:
            assert await submitted(endpoint_by(client)) == "j1"


@pytest.mark.parametrize(
    ("login", "says"),
    [
        ("", [REFUSED]),
        ("", [b"\x05\x5b\x00\x01\x00\x00\x00\x00\x00\x00"]),
        ("", [b""]),
        ("", [b"HTTP/1.1 400 Bad\r\n\r\n"]),
        ("", [b"\x05\xff"]),
        ("", [LOGIN]),
        ("", [OPEN, REFUSED]),
        ("", [OPEN, b"\x05\x5b\x00\x01" + bytes(6)]),
        ("", [OPEN, DONE[1:5]]),
        ("user:p%40ss@", [LOGIN, b"\x01\x01", REFUSED]),
        ("user:%s@" % ("p" * 256), [LOGIN]),
    ],
    ids=range(11),
)
async def test_a_proxy_that_makes_no_connection_leaves_the_job_unsent_and_nothing_open(
    monkeypatch: pytest.MonkeyPatch, login: str, says: list[bytes]
) -> None:

    talk = socks_proxy("", [], *[[said] for said in says])
    closed = threading.Event()

    def watched(connection: socket.socket) -> None:
        try:
            talk(connection)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1000):
                pass
        finally:
            closed.set()

    with raw_server(watched) as url:
        use(monkeypatch, url, login)
        async with create_client(connect_timeout_seconds=30) as client:
            with pytest.raises(NotSent):
                await submitted(endpoint_by(client))
            assert await asyncio.to_thread(closed.wait, 10)


async def test_a_proxy_that_says_nothing_has_as_long_as_a_connection_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = threading.Event()

    def talk(connection: socket.socket) -> None:
        while connection.recv(1000):
            pass
        closed.set()

    with raw_server(talk) as url:
        use(monkeypatch, url)
        async with create_client(connect_timeout_seconds=30) as client:
            with pytest.raises(ConnectTimeout):
                await submitted(endpoint_by(client), seconds=0.05)
            assert await asyncio.to_thread(closed.wait, 10)


def test_a_stream_is_relayed_as_it_comes_and_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch,
    scripted_runpod: tuple[ScriptedRunPod, str],
    tmp_path: Path,
) -> None:
    asked: list[bytes] = []
    events = [b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"]
    server = ScriptedServer()
    goes_on = threading.Event()
    server.replies = [Reply(200, events, content_type=SSE, hold=goes_on)]
    (path := tmp_path / "proxy.toml").write_text(
        CONFIG.format(url="http://worker.invalid", queue=60, idle=60)
    )
    with serve(server.app) as target, raw_server(socks_proxy(target, asked, [OPEN], [DONE])) as url:
        use(monkeypatch, url, spare="127.0.0.1")
        settings = settings_for(scripted_runpod[1], config=path)
        with (
            serve(create_app(settings)) as address,
            httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
            client.stream(
                "POST",
                CHAT,
                json=chat(stream=True),
                headers={"authorization": f"Bearer {KEY}"},
            ) as response,
        ):
            pieces = response.iter_bytes()
            received = next(pieces)
            while events[0] not in received:
                received += next(pieces)
            assert events[1] not in received
            goes_on.set()
            assert received + b"".join(pieces) == b"".join(events)
        wait_until(lambda: server.open == 0)
    assert asked[1] == b"\x05\x01\x00\x03\x0eworker.invalid\x00\x50"
