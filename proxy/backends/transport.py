"""httpx's transport, for many calls at once: one costs a tenth of what httpx's own takes.

httpx's (httpcore with h11) looks at each of its connections at every call, and parses HTTP in
Python. This one takes the connection that was used last, and parses in C. It sends each request
once: a client that repeats a GET whose connection broke, as aiohttp's does, would hide that an
answer of RunPod's was lost, which may have held outputs that are handed out once.
"""

import asyncio
import functools
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import httpx

from proxy.backends.dialing import Origin, dial, proxy_authorization
from proxy.backends.http1 import Connection
from proxy.backends.socks import SOCKS

MAX_CONNECTIONS: Final = 1000
IDLE_SECONDS: Final = 30

REPLY: Final = "reply"

Headers = Iterable[tuple[bytes, bytes]]

_OURS: Final = (b"connection", b"content-length", b"host", b"transfer-encoding")
"""Headers of httpx's requests that are written here."""
_SENDABLE: Final = re.compile(rb"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")
"""What may stand in a header: printable ASCII without blanks at its ends."""


class Reply(httpx.AsyncByteStream):
    """A response whose head has come. It is to be read, by `read` or as an iterator, and closed."""

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._connection = connection
        self._release = release
        self._is_released = False

    def header(self, name: bytes) -> str:
        """The value of a header whose name is given in small letters; empty if it is not there."""
        for known, value in self.headers:
            if known.lower() == name:
                return value.decode("latin-1")
        return ""

    async def read(self, seconds: float | None = None) -> bytes | None:
        """The next part of the body; empty at its end, None if nothing came for so many seconds.

        Nothing is lost when it is cancelled.
        """
        return await self._connection.read(seconds)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    async def aclose(self) -> None:
        """Let go of the connection; it is closed unless the body has come to its end."""
        if not self._is_released:
            self._is_released = True
            self._release(self._connection)


class Transport(httpx.AsyncBaseTransport):
    """Sends requests over connections of its own, through a proxy if there is one."""

    def __init__(self, trusted: ssl.SSLContext, proxy: httpx.Proxy | None = None) -> None:
        self._trusted = trusted
        self._proxy = proxy
        self._forwarder = None if proxy is None or proxy.url.scheme in SOCKS else proxy
        """The proxy, if it is one that takes requests itself."""
        self._open: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._has_none = asyncio.Event()
        self._wanted = 0
        """How many calls wait for a place."""

    async def send(
        self,
        method: str,
        origin: Origin,
        path: bytes,
        headers: bytes,
        content: bytes = b"",
        *,
        connect_seconds: float | None,
        read_seconds: float | None,
    ) -> Reply:
        """Send a request, and return the reply when its head has come.

        `headers` are made by `header_lines`. Each part of the reply may take `read_seconds` to
        come. Raises httpx.HTTPError.
        """
        if self._forwarder is not None and origin.scheme == b"http":
            path = b"http://" + origin.netloc + path
            headers += header_lines(proxy_authorization(self._forwarder))
        length = b"content-length: %d\r\n" % len(content) if content or method != "GET" else b""
        request = b"%s %s HTTP/1.1\r\nhost: %s\r\n%s%s\r\n" % (
            *(method.encode("ascii"), path, origin.netloc),
            *(headers, length),
        )
        connection = await self._connection(origin, connect_seconds)
        try:
            await connection.send(request, content, read_seconds)
            await connection.head()
        except BaseException:
            connection.abort()
            raise
        return Reply(connection, functools.partial(self._release, origin))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of httpx's client; the response has its `Reply` among its extensions."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        timeout = request.extensions["timeout"]
        reply = await self.send(
            request.method,
            Origin.of(request.url),
            request.url.raw_path,
            header_lines(h for h in request.headers.raw if h[0].lower() not in _OURS),
            b"".join([part async for part in request.stream]),
            connect_seconds=timeout["connect"],
            read_seconds=timeout["read"],
        )
        extensions = {REPLY: reply}
        return httpx.Response(
            reply.status, headers=reply.headers, stream=reply, extensions=extensions
        )

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in self._open:
            connection.abort()
        if self._open:
            self._has_none.clear()
            await self._has_none.wait()

    async def _connection(self, origin: Origin, connect_seconds: float | None) -> Connection:
        idle = self._idle.get(origin)
        while idle:
            if (connection := idle.pop()).take():
                return connection
            connection.abort()
        try:
            async with asyncio.timeout(connect_seconds):
                return await self._new_connection(origin)
        except TimeoutError as exc:
            raise httpx.ConnectTimeout("No connection came about in time.") from exc
        except OSError as exc:
            raise httpx.ConnectError("No connection came about.") from exc

    async def _new_connection(self, origin: Origin) -> Connection:
        await self._take_place()
        try:
            lost = functools.partial(self._lost, origin)
            connection = await dial(origin, self._trusted, self._proxy, lost)
            if connection.is_lost:
                raise ConnectionResetError
        except BaseException:
            self._places.release()
            raise
        self._open.add(connection)
        return connection

    async def _take_place(self) -> None:
        """Wait for a place among the connections at once; one that is idle gives its own up."""
        if self._places.locked() and (idle := next(filter(None, self._idle.values()), None)):
            idle.pop(0).abort()
        self._wanted += 1
        try:
            await self._places.acquire()
        finally:
            self._wanted -= 1

    def _release(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection for the next call if its exchange has come to its end."""
        if connection.may_be_kept and not self._wanted:
            connection.keep(IDLE_SECONDS)
            self._idle.setdefault(origin, []).append(connection)
        else:
            connection.abort()

    def _lost(self, origin: Origin, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._places.release()
            if not self._open:
                self._has_none.set()
            if connection in (idle := self._idle.get(origin, [])):
                idle.remove(connection)


def header_lines(headers: Headers) -> bytes:
    """Headers as they are sent; raises httpx.LocalProtocolError for one that cannot be."""
    lines = []
    for header in headers:
        if not _SENDABLE.fullmatch(header[1]):
            raise httpx.LocalProtocolError("A header cannot be sent.")
        lines.append(b"%s: %s\r\n" % header)
    return b"".join(lines)
