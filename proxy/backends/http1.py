"""One HTTP/1.1 connection to a server; httptools parses in C what the event loop reads."""

import asyncio
import select
from collections.abc import Callable
from typing import Final, cast

import httptools
import httpx

MAX_HEAD_BYTES: Final = 102_400
"""The largest head of an answer, with all interim ones before it."""
MAX_WAITING_BYTES: Final = 2**18
"""How much of a body may wait for its reader; beyond it nothing is read until it has been."""


class Connection(asyncio.Protocol):
    """One connection, for one exchange at a time: `send`, `head`, then `read` to the end.

    They raise httpx's errors. What has come before a connection broke is read before the error.
    """

    def __init__(self, on_lost: Callable[["Connection"], None]) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.on_lost = on_lost
        self.is_lost = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        """None while no exchange is under way: nothing may come then."""
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._head_bytes = 0
        self._has_head = self._has_length = self._is_complete = False
        self._may_stay = False
        self._is_reading = self._is_writable = True
        self._failure: httpx.TransportError | None = None
        self._read_seconds: float | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def transport(self) -> asyncio.Transport:
        """What lies below."""
        assert self._transport is not None
        return self._transport

    @property
    def may_be_kept(self) -> bool:
        """Whether the exchange has come to its end in order, so that another may follow."""
        return (
            self._is_complete
            and self._may_stay
            and self._failure is None
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    async def send(self, request: bytes, content: bytes, read_seconds: float | None) -> None:
        """Write a request; each part of its answer may take `read_seconds`."""
        if self._failure is not None or self.transport.is_closing():
            raise self._failure or _closed()
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers = 0, []
        self._head_bytes = 0
        self._has_head = self._has_length = self._is_complete = False
        self._read_seconds = None
        self.transport.write(request + content if len(content) < 2**16 else request)
        if len(content) >= 2**16:
            self.transport.write(content)
            while not (self._is_writable or self._has_head):
                await self._next_event()
        self._read_seconds = read_seconds

    async def head(self) -> None:
        """Wait for `status` and `headers`."""
        while not self._has_head:
            await self._next_event()

    async def read(self, seconds: float | None = None) -> bytes | None:
        """The next part of the body; empty at its end, None if nothing came for so many seconds."""
        while not self._parts:
            if self._is_complete:
                return b""
            if not await self._next_event(seconds):
                return None
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._forget_parts()
        return part

    def keep(self, seconds: float) -> None:
        """Wait for the next exchange, but not longer."""
        self._parser = None
        self._forget_parts()
        self._expiry = self._loop.call_later(seconds, self.abort)

    def take(self) -> bool:
        """Use a connection again that was kept; False if it is of no use any more.

        That its other end has closed it may lie in the socket, unread by the event loop.
        """
        assert self._expiry is not None
        self._expiry.cancel()
        if self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        self.transport.abort()

    def _forget_parts(self) -> None:
        self._parts.clear()
        self._waiting_bytes = 0
        if not self._is_reading:
            self._is_reading = True
            self.transport.resume_reading()

    async def _next_event(self, seconds: float | None = None) -> bool:
        """Wait for one; False if there was none for so many seconds.

        Without them the exchange's own limit holds, after which the connection is of no more use.
        """
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        timer = None
        if seconds is not None:
            timer = self._loop.call_later(seconds, self._wake, False)
        elif self._read_seconds is not None:
            timer = self._loop.call_later(self._read_seconds, self._time_out)
        try:
            return await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self, has_come: bool = True) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(has_come)

    def _fail(self, failure: httpx.TransportError) -> None:
        if self._failure is None:
            self._failure = failure
        self.transport.abort()
        self._wake()

    def _time_out(self) -> None:
        self._fail(httpx.ReadTimeout("Nothing came for too long."))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._failure is not None:
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(httpx.RemoteProtocolError("The answer is no HTTP."))
            return
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(httpx.RemoteProtocolError("The answer's head is too large."))
        elif self._is_reading and self._waiting_bytes > MAX_WAITING_BYTES:
            self._is_reading = False
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._has_head and not self._has_length and exc is None:
            self._is_complete = True
        if self._failure is None and not self._is_complete:
            self._failure = _closed()
        self.is_lost = True
        self._wake()
        self.on_lost(self)

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._wake()

    # httptools

    def on_message_begin(self) -> None:
        self._may_stay = not self._is_complete  # else an answer that nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # else after a body in chunks
            self.headers.append((name, value))
            self._has_length |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._is_complete:
            return
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200
        if not self._has_head:
            self.headers.clear()
            self._has_length = False

    def on_body(self, body: bytes) -> None:
        if not self._is_complete:
            self._parts.append(body)
            self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._has_head and not self._is_complete:
            self._is_complete = True
            self._may_stay &= self._parser.should_keep_alive()


def _closed() -> httpx.TransportError:
    return httpx.RemoteProtocolError("The server closed the connection.")
