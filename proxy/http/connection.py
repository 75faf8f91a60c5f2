"""One connection: uvicorn's protocol, with bounds on what it may cost us.

uvicorn's own protocol takes headers of any size, waits for ever for a request that does not come,
and for a client that does not read. Here the head and the body of a request have deadlines, the
head a size, a client that takes nothing of its answer is given up, and connections are counted. A
response costs nothing more per chunk: the deadlines of a request end with the request, and the one
for reading is looked at only while the write buffer is full.

Differences from uvicorn, on purpose:

- What it refuses is told in OpenAI's envelope, never in the middle of a response that has begun;
  and a refused connection is read on for a moment, since closing it at once would reset it and take
  the answer along.
- An offer to speak another protocol (`Upgrade`) is declined, and the request answered as it is
  (RFC 9110, 7.8), but for a WebSocket at `/channel` where there is one. Java's HttpClient offers
  HTTP/2 at every `http://` URL; httptools's parser stops at such a head and takes the body for the
  other protocol's.
- A connection is read on while it has requests that wait for their turn, so that a client that
  leaves is noticed; what it may send ahead is bounded.
- What follows a request and is not HTTP does not cost that request its answer.
- HTTP/1.0 knows no chunks: a body without a length ends with the connection. One that breaks off
  would look whole, so its connection is reset.
"""

import asyncio
import logging
import socket
import struct
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from proxy.config.settings import Settings
from proxy.errors import (
    HeadersTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    ProxyError,
    RequestTimeout,
    TooManyConnections,
)
from proxy.http.access_log import record_of
from proxy.http.cors import cors_headers
from proxy.http.disconnect import DEPARTURE
from proxy.http.websockets import CHANNEL, WEBSOCKET_OFFER
from proxy.http.writing import WRITE

LINGER_SECONDS = 2
"""How long a connection that was refused is read on."""
WAITING_REQUEST_BYTES = 1000
"""What a request that waits for its turn costs beside its own bytes."""
RETRY_AFTER_CONNECTIONS_SECONDS = 5

log = logging.getLogger(__name__)


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration, with our bounds."""

    def __init__(self, app: FastAPI, settings: Settings, **options: Any) -> None:
        super().__init__(app, http=BoundedProtocol, **options)
        self.bounds = settings
        self.application = app


class BoundedProtocol(HttpToolsProtocol):
    """One connection, and the deadline of whatever its client owes us now."""

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        assert isinstance(config, BoundedConfig)
        self._bounds = config.bounds
        self._application = config.application
        self._in_body = False
        self._offers_websocket = False
        self._unclaimed_bytes = 0
        """How much came since the last byte of a body, or since the last request's end."""
        self._is_done_reading = False
        """Whatever comes now is dropped; reading goes on to notice that the client leaves."""
        self._answering: RequestResponseCycle | None = None
        """The request whose turn it is; `cycle` is the one that came last."""
        self._ahead_bytes = 0
        """The size of the requests that wait for their turn."""
        self._deadline: asyncio.TimerHandle | None = None
        self._reading_deadline: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.max_connections:
            self._refuse(
                TooManyConnections(
                    "Too many connections are open. Try again in a while.",
                    retry_after_seconds=RETRY_AFTER_CONNECTIONS_SECONDS,
                )
            )
        else:
            self._set_deadline(self._bounds.header_timeout_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._clear_reading_deadline()
        self._abandon(self._answering)
        super().connection_lost(exc)

    # The request: its size, and its deadlines.

    def data_received(self, data: bytes) -> None:
        if self._is_done_reading:
            return
        # A head is cut at the limit, so that the body that came with it is not counted.
        room = len(data) if self._in_body else self._bounds.max_header_bytes - self._unclaimed_bytes
        self._unclaimed_bytes += len(data)
        self._feed(data[:room])
        if self._is_done_reading:
            return
        if self._unclaimed_bytes > self._bounds.max_header_bytes:
            self._refuse(
                HeadersTooLarge(
                    f"The headers are larger than {self._bounds.max_header_bytes:,} bytes, "
                    "the most this service takes."
                )
            )
        elif len(data) > room:
            self.data_received(data[room:])
        elif self._in_body:
            self._await_body()
        elif self._deadline is None and self._is_idle:
            self._set_deadline(self._bounds.header_timeout_seconds, self._head_is_late)

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("The request is not valid HTTP."))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again, without its offer; but for a worker's to open a channel."""
        method = self.parser.get_method()
        if self._is_for_channel(method):
            self._is_done_reading = True
            self._clear_deadline()
            self.scope["method"] = "GET"
            self.handle_websocket_upgrade()
            return
        if method == b"CONNECT":
            self._refuse(MethodNotAllowed("Not allowed to CONNECT.", allow=["GET", "POST"]))
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self._offers_websocket = method == b"GET" and any(
            name == b"upgrade" and b"websocket" in value.lower() for name, value in self.headers
        )
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"\r\n".join([*lines, b"", rest]))

    def _is_for_channel(self, method: bytes) -> bool:
        is_free = self._is_idle and not self.pipeline
        is_channel = method == b"GET" and self.url.partition(b"?")[0] == CHANNEL.encode()
        return is_free and is_channel and self._should_upgrade()

    def on_headers_complete(self) -> None:
        if self._is_done_reading or self.parser.should_upgrade():
            return
        if self._offers_websocket:
            self._offers_websocket = False
            self.headers.append(WEBSOCKET_OFFER)
        super().on_headers_complete()
        state = self.cycle.scope["state"]
        state[DEPARTURE] = self.loop.create_future()
        if self.scope["http_version"] < "1.1":
            _send_without_chunks(self.cycle)
        else:
            state[WRITE] = partial(_write_chunk, self.cycle)
        self._in_body = True
        self._unclaimed_bytes = 0
        self._clear_deadline()
        if self.pipeline:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            self._count_ahead(WAITING_REQUEST_BYTES + size)

    def on_body(self, body: bytes) -> None:
        if self._is_done_reading:
            return
        self._unclaimed_bytes = 0
        super().on_body(body)
        if self.pipeline:
            self._count_ahead(len(body))

    def on_message_complete(self) -> None:
        if self._is_done_reading or self.parser.should_upgrade():
            return
        self._in_body = False
        self._unclaimed_bytes = 0
        self._clear_deadline()
        super().on_message_complete()
        self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        if cycle.scope["http_version"] < "1.1":
            app = _resetting_what_breaks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline:
            self._ahead_bytes = 0
        if self._in_body and not self._is_done_reading:
            self._await_body()

    def _count_ahead(self, size: int) -> None:
        """Read on for a while, which uvicorn does not: a client that left would go unnoticed."""
        self._ahead_bytes += size
        if self._ahead_bytes > self._bounds.max_header_bytes:
            log.info("%s: too much was sent ahead of its turn", self.client)
            self._close_once_answered()
        else:
            self.flow.resume_reading()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_body(self) -> None:
        # The body of a request that was sent ahead of its turn is not read yet.
        if self._deadline is None and not self.pipeline:
            self._set_deadline(self._bounds.body_timeout_seconds, self._body_is_late)

    def _set_deadline(self, seconds: float, passed: Callable[[], None]) -> None:
        self._deadline = self.loop.call_later(seconds, passed)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_is_late(self) -> None:
        log.info("%s: no request in time", self.client)
        self.transport.close()

    def _body_is_late(self) -> None:
        seconds = self._bounds.body_timeout_seconds
        self._refuse(RequestTimeout(f"The request's body did not come in {seconds:g} seconds."))

    # The response: a client that takes nothing of it.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        self._clear_reading_deadline()
        super().resume_writing()

    def _await_reader(self) -> None:
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self._reading_deadline = self.loop.call_later(
            self._bounds.send_timeout_seconds, self._check_reader
        )

    def _check_reader(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent_bytes:
            self._await_reader()
        else:
            log.info("%s: takes nothing of its answer", self.client)
            self.transport.abort()

    def _clear_reading_deadline(self) -> None:
        if self._reading_deadline is not None:
            self._reading_deadline.cancel()
            self._reading_deadline = None

    # Refusals.

    def _refuse(self, error: ProxyError) -> None:
        """Close the connection, with this answer if the request at fault can still have one."""
        if self._is_done_reading:
            return
        if not self._can_answer:
            log.info("%s: %d %s", self.client, error.status, error.message)
            self._close_once_answered()
            return
        request_id = self._note_refusal(error)
        self._is_done_reading = True
        self._clear_deadline()
        self._abandon(self.cycle)
        self.transport.write(self._as_response(error, request_id))
        self.transport.write_eof()
        self.flow.resume_reading()
        self._set_deadline(LINGER_SECONDS, self.transport.abort)

    @property
    def _can_answer(self) -> bool:
        if self._in_body:
            return not self.pipeline and not self.cycle.response_started
        return self._is_idle

    def _close_once_answered(self) -> None:
        """Take nothing more, and close behind the answers to the requests that are whole."""
        self._is_done_reading = True
        self._clear_deadline()
        if self._in_body and self.pipeline:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is None or last.response_complete:
            self.transport.close()
            return
        last.keep_alive = False
        self.cycle = last
        self.flow.resume_reading()

    @staticmethod
    def _abandon(cycle: RequestResponseCycle | None) -> None:
        """Tell what waits for the request, or answers it, that the client is gone."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            departure = cycle.scope["state"][DEPARTURE]
            if not departure.done():
                departure.set_result(None)

    def _as_response(self, error: ProxyError, request_id: str) -> bytes:
        body = error.body
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": request_id,
            **cors_headers(self._bounds.cors_origins, self.headers or ()),
        } | error.headers
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        lines = [b"%s: %s\r\n" % line for line in self.server_state.default_headers + named]
        return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body])

    def _note_refusal(self, error: ProxyError) -> str:
        """Log it and count it, or leave both to the application if that has the request; its id."""
        if self._in_body:
            context = record_of(self.scope)  # type: ignore[arg-type]  # uvicorn has a type of its own
            context.note_error(error)
            context.status = error.status
            return context.id
        request_id = f"req_{uuid.uuid4().hex}"
        log.info("%s %s: %d %s", request_id, self.client, error.status, error.message)
        metrics = self._application.state.services.metrics
        metrics.note_request("", error.status, error.code or error.type)
        return request_id


async def _write_chunk(cycle: RequestResponseCycle, piece: bytes) -> None:
    """Send a piece of a stream, as `RequestResponseCycle.send` does."""
    if cycle.flow.write_paused and not cycle.disconnected:
        await cycle.flow.drain()
    if not cycle.disconnected:
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))


def _send_without_chunks(cycle: RequestResponseCycle) -> None:
    """uvicorn frames every body without a length as chunks; make it send this one's as it is."""
    send = cycle.send

    async def send_without_chunks(message: Any) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.chunked_encoding = False
    cycle.send = send_without_chunks  # type: ignore[method-assign]


def _resetting_what_breaks(app: Any, cycle: RequestResponseCycle) -> Any:
    """The application, after which an answer that has begun and has no end is reset.

    uvicorn would close the connection in order, which in HTTP/1.0 is how a whole answer ends.
    """

    async def resetting(*asgi: Any) -> None:
        try:
            await app(*asgi)
        finally:
            if cycle.response_started and not (cycle.response_complete or cycle.disconnected):
                no_lingering = struct.pack("ii", 1, 0)
                connection = cycle.transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_lingering)
                cycle.transport.abort()

    return resetting
