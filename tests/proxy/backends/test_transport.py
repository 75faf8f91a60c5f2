"""Requests over connections of our own: each sent once, its answer read as it was meant."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.backends import http1, transport
from proxy.backends.dialing import Origin
from proxy.backends.transport import Reply, Transport, header_lines
from tests.proxy.backends.runpod.test_submission import full_port
from tests.proxy.raw_server import OK, heard, lead_on, raw_server
from tests.waiting import wait_until

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
Talk = Callable[[socket.socket], None]


@asynccontextmanager
async def transport_to(
    trusted: ssl.SSLContext | None = None, proxy: httpx.Proxy | None = None
) -> AsyncIterator[Transport]:
    made = Transport(trusted or ssl.create_default_context(), proxy)
    try:
        yield made
    finally:
        await made.aclose()


async def sent(
    by: Transport,
    url: str,
    *,
    method: str = "GET",
    key: str = "k",
    content: bytes = b"",
    read_seconds: float = 30,
) -> Reply:
    return await by.send(
        method,
        Origin.of(httpx.URL(url)),
        b"/x",
        header_lines([(b"authorization", key.encode())]),
        content,
        connect_seconds=30,
        read_seconds=read_seconds,
    )


async def got(by: Transport, url: str, *, read_seconds: float = 30) -> bytes:
    return await body_of(await sent(by, url, read_seconds=read_seconds))


async def body_of(reply: Reply) -> bytes:
    try:
        return b"".join([piece async for piece in reply])
    finally:
        await reply.aclose()


def saying(*parts: bytes) -> Talk:
    """Answer the first request with these bytes, each by itself, and close the connection."""

    def talk(connection: socket.socket) -> None:
        heard(connection)
        for part in parts:
            connection.sendall(part)
            time.sleep(0.005)

    return talk


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([CHUNKED + b"2\r\nab\r\n", b"1;x=y\r\nc\r\n", b"0\r\nx-late: 1\r\n\r\n"], b"abc"),
        ([b"HTTP/1.0 200 OK\r\n\r\nab", b"cd"], b"abcd"),
        ([b"HTTP/1.1 200 OK\r\n\r\nab", b"cd"], b"abcd"),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nx: y\r\n\r\n", OK], b"ok"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], b""),
        ([b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"], b""),
        ([b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 2\r\n\r\nok"], b"ok"),
        ([b"HTTP/1.1 200 OK\r\nx: %s\r\n" % (b"a" * 60_000) + OK[17:]], b"ok"),
        ([b"HTTP/1.1 200 OK\r\nx: \xff\xc3\xa9\r\n" + OK[17:]], b"ok"),
        ([OK + OK], b"ok"),
        ([bytes([byte]) for byte in OK], b"ok"),
    ],
    ids=range(11),
)
async def test_an_answer_is_read_however_it_comes(parts: list[bytes], wanted: bytes) -> None:
    with raw_server(saying(*parts)) as url:
        async with transport_to() as by:
            assert await got(by, url) == wanted


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"HTTP/1.1 200 OK\r\ncontent"],
        [b"SSH-2.0-x\r\n"],
        [b"HTTP/1.1 42 X\r\n\r\n"],
        [b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nx: " + b"a" * 1_000_000 + b"\r\n" + OK[17:]],
        [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000 + OK[17:]],
        [b"HTTP/1.1 103 Early\r\nx: y\r\n\r\n" * 100_000 + OK],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"],
        [CHUNKED + b"2\r\nok\r\n", b"ZZ\r\nok"],
        [CHUNKED + b"2\r\nok\r\n"],
        [CHUNKED + b"5\r\nok"],
    ],
    ids=range(12),
)
async def test_an_answer_that_is_none_or_breaks_off_is_an_error(parts: list[bytes]) -> None:
    with raw_server(saying(*parts)) as url:
        async with transport_to() as by:
            with pytest.raises(httpx.RemoteProtocolError):
                await got(by, url)


async def test_what_came_before_a_connection_broke_is_read_first() -> None:
    with raw_server(saying(CHUNKED + b"2\r\nok\r\n" + b"ZZ")) as url:
        async with transport_to() as by:
            reply = await sent(by, url)
            await asyncio.sleep(0.1)  # the break is known by now
            pieces = aiter(reply)
            assert await anext(pieces) == b"ok"
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(pieces)
            await reply.aclose()


async def test_a_request_whose_answer_is_lost_is_not_sent_again() -> None:
    heads: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        heads.append(heard(connection))
        connection.sendall(OK)
        heads.append(heard(connection))

    with raw_server(talk) as url:
        async with transport_to() as by:
            assert await got(by, url) == b"ok"
            with pytest.raises(httpx.RemoteProtocolError):
                await got(by, url)
    assert len(heads) == 2


async def test_a_connection_whose_end_is_yet_unread_is_not_used_again() -> None:
    answered, is_closed = threading.Event(), threading.Event()

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(OK)
        if not is_closed.is_set():
            answered.wait(10)
            connection.shutdown(socket.SHUT_WR)
            is_closed.set()

    with raw_server(talk) as url:
        async with transport_to() as by:
            assert await got(by, url) == b"ok"
            answered.set()
            assert is_closed.wait(10)  # while the event loop stands still
            assert await got(by, url) == b"ok"


async def test_an_answer_that_nobody_asked_for_is_none_to_the_next_request() -> None:
    released = threading.Event()

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(OK)
        if not released.is_set():
            connection.sendall(b"HTTP/1.1 408 Timeout\r\ncontent-length: 2\r\n\r\nno")
            released.set()
            heard(connection)

    with raw_server(talk) as url:
        async with transport_to() as by:
            assert await got(by, url) == b"ok"
            await asyncio.to_thread(released.wait, 10)
            await asyncio.sleep(0.05)  # and it may be read
            assert await got(by, url) == b"ok"


async def test_a_server_that_speaks_unasked_is_hung_up_on(caplog: pytest.LogCaptureFixture) -> None:
    is_idle, closed = threading.Event(), threading.Event()

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(OK)
        is_idle.wait(10)
        connection.sendall(b"HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n")
        connection.recv(1)
        closed.set()

    with raw_server(talk) as url:
        async with transport_to() as by:
            assert await got(by, url) == b"ok"
            is_idle.set()
            assert await ended(closed)
    assert caplog.records == []


async def ended(closed: threading.Event) -> bool:
    return await asyncio.to_thread(closed.wait, 10)


@pytest.mark.parametrize("answer", [b"", CHUNKED, CHUNKED + b"2\r\nok\r\n"], ids=range(3))
async def test_a_request_that_is_cancelled_closes_its_connection(answer: bytes) -> None:
    asked, closed = threading.Event(), threading.Event()

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(answer)
        asked.set()
        connection.recv(1)
        closed.set()

    with raw_server(talk) as url:
        async with transport_to() as by:
            asking = asyncio.create_task(got(by, url))
            await asyncio.to_thread(asked.wait, 10)
            await asyncio.sleep(0.02)
            asking.cancel()
            assert await ended(closed)
            with pytest.raises(asyncio.CancelledError):
                await asking


async def test_a_part_for_which_the_wait_was_given_up_is_read_later() -> None:
    held = threading.Event()

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(CHUNKED)
        held.wait(10)
        connection.sendall(b"2\r\nok\r\n0\r\n\r\n")
        heard(connection)

    with raw_server(talk) as url:
        async with transport_to() as by:
            reply = await sent(by, url)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await reply.read()
            held.set()
            assert [await reply.read(), await reply.read()] == [b"ok", b""]


async def test_an_answer_that_is_closed_before_its_end_closes_its_connection() -> None:
    closed = threading.Event()

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(CHUNKED)
        connection.recv(1)
        closed.set()

    with raw_server(talk) as url:
        async with transport_to() as by:
            await (await sent(by, url)).aclose()
            assert await ended(closed)


@pytest.mark.parametrize("answer", [b"", CHUNKED], ids=["head", "body"])
async def test_what_does_not_come_in_time_is_a_read_timeout(answer: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(answer)
        connection.recv(1)

    with raw_server(talk) as url:
        async with transport_to() as by:
            with pytest.raises(httpx.ReadTimeout):
                await body_of(
                    await by.send(
                        "GET",
                        Origin.of(httpx.URL(url)),
                        b"/",
                        b"",
                        connect_seconds=30,
                        read_seconds=0.05,
                    )
                )


async def test_a_connection_that_does_not_come_about_in_time_is_a_connect_timeout() -> None:
    with full_port() as port:
        async with transport_to() as by:
            with pytest.raises(httpx.ConnectTimeout):
                await by.send(
                    "GET",
                    Origin.of(httpx.URL(f"http://127.0.0.1:{port}")),
                    b"/",
                    b"",
                    connect_seconds=0.05,
                    read_seconds=None,
                )


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nowhere.invalid"])
async def test_a_server_that_is_not_there_is_a_connect_error(url: str) -> None:
    async with transport_to() as by:
        with pytest.raises(httpx.ConnectError):
            await got(by, url)


@pytest.mark.parametrize("key", ["a\nb: c", "a\r\nb", "é", "a\u200b", "a\0", " a", "a ", "a\x7f"])
async def test_a_header_that_cannot_be_sent_is_not(key: str) -> None:
    async with transport_to() as by:
        with pytest.raises(httpx.LocalProtocolError):
            await sent(by, "http://127.0.0.1:1", key=key)


def answering_until(closed: threading.Event) -> Talk:
    """Answer one request, and set the event when the connection is closed by the other end."""

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(OK)
        connection.recv(1)
        closed.set()

    return talk


async def test_a_wait_for_more_that_is_over_costs_nothing_of_the_answer() -> None:
    goes_on = threading.Event()

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(CHUNKED + b"2\r\nab\r\n")
        goes_on.wait(30)
        connection.sendall(b"2\r\ncd\r\n0\r\n\r\n")

    with raw_server(talk) as url:
        async with transport_to() as by:
            reply = await sent(by, url)
            assert await reply.read(30) == b"ab"
            assert [await reply.read(0.01) for _ in range(3)] == [None] * 3
            goes_on.set()
            assert await body_of(reply) == b"cd"
            assert await reply.read(0.01) == b""


async def test_a_connection_that_is_idle_for_long_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "IDLE_SECONDS", 0.02)
    closed = threading.Event()

    with raw_server(answering_until(closed)) as url:
        async with transport_to() as by:
            assert await got(by, url) == b"ok"
            assert await ended(closed)


def answering(places: list[int], held: threading.Event) -> Talk:
    """Answer every request once the event is set, and note the ports that they came from."""

    def talk(connection: socket.socket) -> None:
        while heard(connection):
            places.append(connection.getpeername()[1])
            held.wait(10)
            connection.sendall(OK)

    return talk


async def test_there_are_only_so_many_connections_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 2)
    places: list[int] = []
    held = threading.Event()
    with raw_server(answering(places, held)) as url, raw_server(saying(OK)) as other:
        async with transport_to() as by:
            asking = [asyncio.create_task(got(by, url)) for _ in range(4)]
            await asyncio.to_thread(wait_until, lambda: len(places) >= 2)
            await asyncio.sleep(0.1)
            assert len(places) == 2
            held.set()
            assert await asyncio.gather(*asking) == [b"ok"] * 4
            assert await got(by, url) == b"ok"
            assert await got(by, url) == b"ok"
            assert await got(by, other) == b"ok"  # in the place of one that is idle


async def test_the_connection_that_was_used_last_is_used_next() -> None:
    places: list[int] = []
    held = threading.Event()
    with raw_server(answering(places, held)) as url:
        async with transport_to() as by:
            asking = [asyncio.create_task(got(by, url)) for _ in range(3)]
            await asyncio.to_thread(wait_until, lambda: len(places) == 3)
            held.set()
            await asyncio.gather(*asking)
            for _ in range(5):
                assert await got(by, url) == b"ok"
    assert len(set(places[:3])) == 3
    assert len(set(places[3:])) == 1


@pytest.mark.slow
async def test_a_body_that_is_not_read_is_not_taken_in() -> None:
    taken: list[int] = []
    size = 64 * 2**20

    def talk(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        piece = b"x" * 65_536
        for _ in range(size // len(piece)):
            connection.sendall(piece)
            taken.append(len(piece))

    with raw_server(talk) as url:
        async with transport_to() as by:
            reply = await sent(by, url)
            await asyncio.sleep(0.3)
            assert sum(taken) < size / 2
            assert len(await body_of(reply)) == size


async def test_a_large_body_arrives_whole() -> None:
    content = bytes(range(256)) * 40_000
    received = bytearray()

    def talk(connection: socket.socket) -> None:
        assert b"content-length: %d\r\n" % len(content) in heard(connection)
        while len(received) < len(content):
            received.extend(connection.recv(65_536))
        connection.sendall(OK)

    with raw_server(talk) as url:
        async with transport_to() as by:
            reply = await sent(by, url, method="POST", content=content)
            assert await body_of(reply) == b"ok"
    assert received == content


async def test_a_server_may_answer_before_it_has_a_large_body() -> None:
    with raw_server(saying(b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\nno")) as url:
        async with transport_to() as by:
            reply = await sent(by, url, method="POST", content=bytes(2**26))
            assert reply.status == 413
            await reply.aclose()


async def test_a_server_is_reached_by_ipv6() -> None:
    heads: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        heads.append(heard(connection))
        connection.sendall(OK)

    with raw_server(talk, host="::1") as url:
        async with transport_to() as by:
            assert await got(by, url) == b"ok"
    assert b"\r\nhost: [::1]:" in heads[0]


async def test_small_parts_of_a_request_are_not_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[asyncio.BaseTransport] = []
    original = http1.Connection.connection_made

    def connection_made(connection: http1.Connection, below: asyncio.BaseTransport) -> None:
        made.append(below)
        original(connection, below)

    monkeypatch.setattr(http1.Connection, "connection_made", connection_made)
    with raw_server(saying(OK)) as url:
        async with transport_to() as by:
            reply = await sent(by, url)
            place = made[0].get_extra_info("socket")
            assert place.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await reply.aclose()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def secure_url(certificate: Path) -> Iterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def talk(connection: socket.socket) -> None:
        while heard(connection):
            connection.sendall(OK)

    with raw_server(talk, trusted=context) as url:
        yield url


async def test_a_server_is_called_by_tls(secure_url: str, certificate: Path) -> None:
    async with transport_to(ssl.create_default_context(cafile=certificate)) as by:
        for _ in range(3):
            assert await got(by, secure_url) == b"ok"


async def test_a_certificate_that_is_not_trusted_is_a_connect_error(secure_url: str) -> None:
    async with transport_to() as by:
        with pytest.raises(httpx.ConnectError) as raised:
            await got(by, secure_url)
    assert isinstance(raised.value.__cause__, ssl.SSLError)


def tunnel(heads: list[bytes]) -> Talk:
    """An HTTP proxy that makes the tunnels which it is asked for."""

    def talk(connection: socket.socket) -> None:
        heads.append(heard(connection))
        host, _, port = heads[0].split()[1].decode().partition(":")
        lead_on(connection, (host, int(port)), b"HTTP/1.1 200 Connection established\r\n\r\n")

    return talk


@pytest.mark.parametrize("is_secure", [False, True])
async def test_a_server_is_called_through_the_tunnel_of_a_proxy(
    secure_url: str, certificate: Path, is_secure: bool
) -> None:
    heads: list[bytes] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with raw_server(tunnel(heads), trusted=context if is_secure else None) as url:
        proxy = httpx.Proxy(url.replace("://", "://user:p%40ss@"))
        async with transport_to(ssl.create_default_context(cafile=certificate), proxy) as by:
            for _ in range(3):
                assert await got(by, secure_url) == b"ok"
    target = secure_url.removeprefix("https://").encode()
    assert len(heads) == 1
    assert heads[0].startswith(b"CONNECT %s HTTP/1.1\r\nhost: %s\r\n" % (target, target))
    assert b"\r\nproxy-authorization: Basic dXNlcjpwQHNz\r\n" in heads[0]  # user:p@ss
    assert b"authorization: k" not in heads[0]


async def test_a_proxy_that_makes_no_tunnel_is_a_proxy_error(secure_url: str) -> None:
    with raw_server(saying(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n")) as url:
        async with transport_to(proxy=httpx.Proxy(url)) as by:
            with pytest.raises(httpx.ProxyError):
                await got(by, secure_url)


async def test_closing_closes_what_is_open() -> None:
    closed = threading.Event()

    with raw_server(answering_until(closed)) as url:
        async with transport_to() as by:
            assert await got(by, url) == b"ok"
        assert await ended(closed)
