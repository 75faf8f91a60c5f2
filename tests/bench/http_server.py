"""A light HTTP/1.1 server for what stands in for others here: it must never be what limits.

One `Connection` for each client, on uvloop and httptools, without framework, headers or log.
"""

import asyncio
import signal
from collections.abc import Callable
from typing import Protocol, cast

import httptools
import msgspec
import uvloop

JSON = b"application/json"
EVENTS = b"text/event-stream"


class App(Protocol):
    """What answers requests, at once or later, by the connection's methods."""

    def answer(self, connection: "Connection") -> None:
        """Answer the request that `method`, `path` and `body` of the connection tell."""
        ...


class Connection(asyncio.Protocol):
    """One client's connection; one request at a time."""

    def __init__(self, app: App) -> None:
        self.method = ""
        self.path = ""
        self.body = b""
        self.on_close: Callable[[], None] | None = None
        self._app = app
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether the client is still there."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._transport = None
        if self.on_close is not None:
            self.on_close()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            assert self._transport is not None
            self._transport.close()

    def on_message_begin(self) -> None:
        """A request begins (httptools)."""
        self.path, self.body = "", b""

    def on_url(self, url: bytes) -> None:
        """A part of its URL (httptools)."""
        self.path += url.decode()

    def on_body(self, body: bytes) -> None:
        """A part of its body (httptools)."""
        self.body += body

    def on_message_complete(self) -> None:
        """It is whole (httptools)."""
        self.method = self._parser.get_method().decode()
        self._app.answer(self)

    def respond(self, body: bytes, status: int = 200) -> None:
        """Send a whole answer, of JSON."""
        self.write(
            b"HTTP/1.1 %d \r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (status, JSON, len(body), body)
        )

    def respond_json(self, value: object, status: int = 200) -> None:
        """Send this value."""
        self.respond(msgspec.json.encode(value), status)

    def begin_stream(self) -> None:
        """Send the head of an answer that comes in chunks, of events."""
        self.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % EVENTS
        )

    def send_chunk(self, data: bytes, *, is_last: bool = False) -> None:
        """Send a chunk of it, in one write with the end where it is the last."""
        self.write(b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if is_last else b""))

    def write(self, data: bytes) -> None:
        """Send these bytes, unless the client has gone."""
        if self._transport is not None:
            self._transport.write(data)


def serve(app: App, port: int, *tasks: Callable[[], asyncio.Task[None]]) -> None:
    """Serve on that port of loopback, and run what these start, until SIGTERM."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        server = await loop.create_server(lambda: Connection(app), "127.0.0.1", port, backlog=4096)
        running = [start() for start in tasks]
        await stop.wait()
        server.close()
        for task in running:
            task.cancel()

    uvloop.run(main())
