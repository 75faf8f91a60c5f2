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

MAX_CONNECTIONS: Final = 1000
IDLE_SECONDS: Final = 30

Headers = Iterable[tuple[bytes, bytes]]

_OURS: Final = (b"connection", b"content-length", b"host", b"transfer-encoding")
"""Headers of httpx's requests that are written here."""
_SENDABLE: Final = re.compile(rb"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")
"""What may stand in a header: printable ASCII without blanks at its ends."""


class Transport(httpx.AsyncBaseTransport):
    """Sends requests over connections of its own, through an HTTP proxy if there is one."""

    def __init__(self, trusted: ssl.SSLContext, proxy: httpx.Proxy | None = None) -> None:
        self._trusted = trusted
        self._proxy = proxy
        self._open: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._has_none = asyncio.Event()
        self._wanted = 0
        """How many calls wait for a place."""

    async def send(
        self,
        method: str,
        url: httpx.URL,
        path: bytes,
        headers: Headers,
        content: bytes = b"",
        *,
        connect_seconds: float | None,
        read_seconds: float | None,
    ) -> httpx.Response:
        """Send a request to a path at the server of a URL; the response is still to be read.

        `headers` are all but those of the connection and the body's length. Each part of the
        response may take `read_seconds` to come. Raises httpx.HTTPError.
        """
        origin = Origin.of(url)
        if self._proxy is not None and origin.scheme == b"http":
            path = b"http://" + url.netloc + path
            headers = [*headers, *proxy_authorization(self._proxy)]
        request = _head(method.encode("ascii"), path, url.netloc, headers, content)
        connection = await self._connection(origin, connect_seconds)
        try:
            await connection.send(request, content, read_seconds)
            await connection.head()
        except BaseException:
            connection.abort()
            raise
        body = _Body(connection, functools.partial(self._release, origin))
        return httpx.Response(connection.status, headers=connection.headers, stream=body)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of httpx's client."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        timeout = request.extensions["timeout"]
        return await self.send(
            request.method,
            request.url,
            request.url.raw_path,
            [header for header in request.headers.raw if header[0].lower() not in _OURS],
            b"".join([part async for part in request.stream]),
            connect_seconds=timeout["connect"],
            read_seconds=timeout["read"],
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


class _Body(httpx.AsyncByteStream):
    """The body of a response, in the pieces in which it comes."""

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self._connection = connection
        self._release = release
        self._is_released = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._connection.read():
            yield piece
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connection; it is closed unless the body has come to its end."""
        if not self._is_released:
            self._is_released = True
            self._release(self._connection)


def _head(method: bytes, path: bytes, host: bytes, headers: Headers, content: bytes) -> bytes:
    lines = [b"%s %s HTTP/1.1\r\nhost: %s\r\n" % (method, path, host)]
    for header in headers:
        if not _SENDABLE.fullmatch(header[1]):
            raise httpx.LocalProtocolError("A header cannot be sent.")
        lines.append(b"%s: %s\r\n" % header)
    if content or method != b"GET":
        lines.append(b"content-length: %d\r\n" % len(content))
    return b"".join(lines) + b"\r\n"
