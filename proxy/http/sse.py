"""An answer as Server-Sent Events: signs of life while it is awaited, then events, then one end.

What OpenAI's clients can read is narrower than the standard: no `id:`, no `retry:` and no event
without data may be sent (openai-python's decoder fails on them); a plain comment is harmless.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from proxy.api.answer import Answer, meant_status, whole
from proxy.api.dialects import Dialect, StreamContext
from proxy.api.keep_alive import KeepAlive
from proxy.api.rewriting import Rewriter
from proxy.api.sse_framing import DONE, split_end
from proxy.errors import InternalError, ProxyError, VLLMError, WorkerFailed
from proxy.http.disconnect import ClientLeft, while_client_stays
from proxy.http.plain import answered_error
from proxy.http.writing import Write, writer
from proxy.memory import Memory

log = logging.getLogger(__name__)

_FAILED: Final = (b"response.failed",)
"""The last event of a response that failed; an error ends a stream of any API."""


class EventStream(EventSourceResponse):
    """Sends an answer's events, and gives the answer up when the client leaves.

    `opening` is the call of `answer.open()` under way.

    It has the headers of sse-starlette's response and sends for itself, in one task: what is sent
    is bytes already, and the others that sse-starlette starts for each stream (to ping, to listen
    for the client and for SIGTERM) have nothing to do here. Who closes the connection of a client
    that takes nothing when the proxy stops is `Server`.
    """

    def __init__(
        self,
        answer: Answer,
        opening: asyncio.Task[bytes],
        *,
        dialect: Dialect,
        context: StreamContext,
        rewriter: Rewriter | None,
        keep_alive: KeepAlive,
        keep_alive_seconds: float,
        memory: Memory,
        headers: dict[str, str],
    ) -> None:
        self._body = self._events()
        super().__init__(self._body, headers=headers)
        del self.headers["connection"]  # "keep-alive", also on one that the server will close
        self._answer = answer
        self._opening = opening
        self._dialect = dialect
        self._context = context
        self._rewriter = rewriter
        self._keep_alive = keep_alive
        self._keep_alive_seconds = keep_alive_seconds
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. However it ends, its job is not left running."""
        try:
            with suppress(ClientLeft), while_client_stays(scope, receive):
                # In the request's own task each chunk would wake the frames of all middlewares.
                await asyncio.create_task(self._send_all(send, writer(scope, send)))
        finally:
            record = scope["state"]["context"]
            record.outcome = self._context.outcome or "client_left"
            record.first_token = self._context.first_token
            if self._rewriter is not None:
                self._rewriter.end()
            self._opening.cancel()
            self._answer.close()
            await self._body.aclose()

    async def _send_all(self, send: Send, write: Write) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for events in self._body:
            if events:
                await write(events)
        await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncGenerator[bytes]:
        """Keep-alives, the answer's events, and in any case an end."""
        context = self._context
        try:
            while not self._opening.done():
                yield self._keep_alive.event(self._answer.is_waiting)
                await asyncio.wait({self._opening}, timeout=self._keep_alive_seconds)
            first = self._opening.result()
            if self._answer.head is None or not self._answer.head.is_event_stream:
                yield await self._late_answer(first)
            else:
                async for piece in self._relayed(first):
                    yield piece
            context.outcome = context.outcome or "completed"
        except ProxyError as exc:
            yield self._broken_off_by(exc)
        except Exception:
            log.exception("a stream broke")
            error = InternalError("The proxy failed to relay the answer.")
            yield self._broken_off_by(error)

    async def _relayed(self, first: bytes) -> AsyncGenerator[bytes]:
        """The answer's events, and a keep-alive where nothing came for long."""
        if first:
            yield self._passed_on(first)
        sent = time.monotonic()
        async for piece in self._answer.pieces():
            piece = self._passed_on(piece)
            if piece or time.monotonic() - sent >= self._keep_alive_seconds * 0.9:
                yield piece or self._keep_alive.event(self._answer.is_waiting)
                sent = time.monotonic()
        if self._rewriter is not None:
            yield self._rewriter.rest()
        if self._dialect.ending is not None:
            yield self._dialect.ending(self._context)

    def _passed_on(self, piece: bytes) -> bytes:
        """Whole events, as they are to be sent."""
        context = self._context
        if self._rewriter is not None:
            piece = self._rewriter.events(piece)
        if self._dialect.passing is not None:
            piece = self._dialect.passing(piece, context)
        if piece:
            piece = self._keep_alive.passing(piece)
            context.note_sent(piece)
            if context.first_token is None and self._dialect.token_mark in piece:
                context.first_token = time.monotonic()
            is_suspect = b"error" in piece or b"response.failed" in piece
            if is_suspect and split_end(piece + b"\n\n", _FAILED)[1]:
                context.outcome = VLLMError.code
        return piece

    def _broken_off_by(self, error: ProxyError) -> bytes:
        """The error as the stream's end."""
        context = self._context
        context.outcome = error.code or error.type
        # A large event may have been passed on in parts, and its end be missing.
        gap = b"" if context.last.endswith(b"\n\n") or not context.last else b"\n\n"
        held = self._rewriter.rest() if self._rewriter else b""
        return gap + held + self._dialect.error(error, context)

    async def _late_answer(self, first: bytes) -> bytes:
        """An answer that is no event stream, and came too late to be sent as what it is."""
        answer, context = self._answer, self._context
        held = self._memory.reserve_for_answer()
        body = await whole(answer, first, held)
        status = meant_status(answer.head, body) if answer.head else 502
        if 200 <= status < 300:
            if not body.strip():  # OpenAI's clients fail on an event without data
                raise WorkerFailed("The worker's answer is empty.")
            end = b"data: " + DONE + b"\n\n" if DONE in self._dialect.ends else b""
            return b"data: " + b" ".join(body.splitlines()) + b"\n\n" + end
        error = answered_error(status, body, context.route, context.model)
        context.outcome = error.code
        return self._dialect.error(error, context)
