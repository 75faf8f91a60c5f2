"""An answer as Server-Sent Events: signs of life while it is awaited, then events, then one end.

What OpenAI's clients can read is narrower than the standard: no `id:`, no `retry:` and no event
without data may be sent (openai-python's decoder fails on them); a plain comment is harmless.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator

from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from proxy.api.answer import Answer, whole
from proxy.api.dialects import Dialect, StreamContext
from proxy.api.keep_alive import KeepAlive
from proxy.api.rewriting import Rewriter
from proxy.api.sse_framing import DONE
from proxy.errors import InternalError, ProxyError, VLLMError, WorkerFailed
from proxy.http.plain import answered_error, meant_status
from proxy.memory import Memory, Reservation

log = logging.getLogger(__name__)

_ERROR_EVENT = re.compile(
    rb'^(data:\s*\{\s*"(error"\s*:\s*[{"]|type"\s*:\s*"(error|response\.failed)")'
    rb"|event: ?(error|response\.failed)\b)",
    re.MULTILINE,
)
"""How a stream that fails ends: by chat's form, or by that of Responses and Messages."""


class EventStream(EventSourceResponse):
    """Sends an answer's events, and gives the answer up when the client leaves.

    `opening` is the call of `answer.open()` under way.
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
        longest_drain_seconds: float,
        memory: Memory,
        headers: dict[str, str],
    ) -> None:
        super().__init__(
            _events(
                answer, opening, dialect, context, rewriter, keep_alive, keep_alive_seconds, memory
            ),
            headers=headers,
            ping=0,  # our own comments know whether anything was sent
            shutdown_grace_period=longest_drain_seconds,
        )
        del self.headers["connection"]  # "keep-alive", also on one that the server will close
        self._answer = answer
        self._context = context
        self._opening = opening
        self._rewriter = rewriter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. However it ends, its job is not left running."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            scope["state"]["context"].outcome = self._context.outcome or "client_left"
            if self._rewriter is not None:
                self._rewriter.end()
            self._opening.cancel()
            self._answer.close()


async def _events(
    answer: Answer,
    opening: asyncio.Task[bytes],
    dialect: Dialect,
    context: StreamContext,
    rewriter: Rewriter | None,
    keep_alive: KeepAlive,
    keep_alive_seconds: float,
    memory: Memory,
) -> AsyncIterator[bytes]:
    def passed_on(piece: bytes) -> bytes:
        if rewriter is not None:
            piece = rewriter.events(piece)
        if dialect.passing is not None:
            piece = dialect.passing(piece, context)
        if piece:
            piece = keep_alive.passing(piece)
            context.first = context.first or piece
            context.last = piece
            is_suspect = b"error" in piece or b"response.failed" in piece
            if is_suspect and _ERROR_EVENT.search(piece):
                context.outcome = VLLMError.code
        return piece

    try:
        while not opening.done():
            yield keep_alive.event(answer.is_waiting)
            await asyncio.wait({opening}, timeout=keep_alive_seconds)
        first = opening.result()
        if answer.head is None or not answer.head.is_event_stream:
            held = memory.reserve_for_answer()
            yield await _as_events(answer, first, dialect, context, held)
            context.outcome = context.outcome or "completed"
            return
        if first:
            yield passed_on(first)
        sent = time.monotonic()
        async for piece in answer.pieces():
            piece = passed_on(piece)
            if piece or time.monotonic() - sent >= keep_alive_seconds * 0.9:
                yield piece or keep_alive.event(answer.is_waiting)
                sent = time.monotonic()
        if rewriter is not None:
            yield rewriter.rest()
        context.outcome = context.outcome or "completed"
    except ProxyError as exc:
        context.outcome = exc.code or exc.type
        # A large event may have been passed on in parts, and its end be missing.
        gap = b"" if context.last.endswith(b"\n\n") or not context.last else b"\n\n"
        yield gap + (rewriter.rest() if rewriter else b"") + dialect.error(exc, context)
    except Exception:
        log.exception("a stream broke")
        error = InternalError("The proxy failed to relay the answer.")
        context.outcome = error.code or error.type
        yield dialect.error(error, context)


async def _as_events(
    answer: Answer, first: bytes, dialect: Dialect, context: StreamContext, held: Reservation
) -> bytes:
    """An answer that is no event stream, and came too late to be sent as what it is."""
    body = await whole(answer, first, held)
    status = meant_status(answer.head, body) if answer.head else 502
    if 200 <= status < 300:
        if not body.strip():  # OpenAI's clients fail on an event without data
            raise WorkerFailed("The worker's answer is empty.")
        end = b"data: " + DONE + b"\n\n" if DONE in dialect.ends else b""
        return b"data: " + b" ".join(body.splitlines()) + b"\n\n" + end
    error = answered_error(status, body, context.route, context.model)
    context.outcome = error.code
    return dialect.error(error, context)
