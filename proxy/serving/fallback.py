"""One name, two backends: the second is asked when the first fails, or is too slow to begin.

Only before the first byte: what has been passed on is never continued by another server.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from proxy.api.answer import Answer, WrappedAnswer, meant_status
from proxy.errors import InvalidRequest, ProxyError, Stopping, VLLMError

MAX_ERROR_BYTES: Final = 65_536
"""How much of a plain answer is looked at, which may be an error with a good status."""

log = logging.getLogger(__name__)


class FallbackAnswer(WrappedAnswer):
    """The first answer, or the one in its place.

    `first` is None where it is known that asking is no use. `on_fallback` is called once, when the
    second is asked.
    """

    def __init__(
        self,
        first: Answer | None,
        second: Callable[[], Answer],
        *,
        after_seconds: float | None,
        on_fallback: Callable[[], None],
    ) -> None:
        self._first = first
        self._second: Callable[[], Answer] | None = second
        """Holds the request's body; None once it is known who answers."""
        self._after_seconds = after_seconds
        self._on_fallback = on_fallback
        self.inner = first
        self._pieces: AsyncIterator[bytes] | None = None
        """What follows of an answer whose beginning was looked at."""

    async def open(self) -> bytes:
        """Open the first answer, or else the second."""
        if self._first is not None:
            try:
                async with asyncio.timeout(self._after_seconds):
                    piece = await self._first.open()
                piece, status = await self._looked_at(self._first, piece)
                if not _is_broken(status):
                    self._second = None
                    return piece
                log.warning("asking the fallback: the model's server answered an error")
            except TimeoutError:
                log.warning("asking the fallback: nothing came in %s s", self._after_seconds)
            except (InvalidRequest, Stopping):
                raise
            except ProxyError as exc:
                if isinstance(exc, VLLMError) and not _is_broken(exc.status):
                    raise
                log.warning("asking the fallback: %s", exc)
            self._first.close()
        self._pieces = None
        self._on_fallback()
        assert self._second is not None, "it is opened once"
        self.inner = self._second()
        self._second = None
        return await self.inner.open()

    def pieces(self) -> AsyncIterator[bytes]:
        """The pieces that were not looked at."""
        return self._pieces or super().pieces()

    async def _looked_at(self, answer: Answer, piece: bytes) -> tuple[bytes, int]:
        """The beginning of an opened answer, and its status: that of the error if it is one.

        A plain answer is sent when it is whole, so that reading it holds up no client.
        """
        head = answer.head
        assert head is not None, "it has been opened"
        if head.is_event_stream or head.status >= 300:
            return piece, head.status
        self._pieces = answer.pieces()
        pieces, size = [piece], len(piece)
        while size <= MAX_ERROR_BYTES and (more := await anext(self._pieces, None)) is not None:
            pieces.append(more)
            size += len(more)
        body = b"".join(pieces)
        return body, meant_status(head, body) if size <= MAX_ERROR_BYTES else head.status


def _is_broken(status: int) -> bool:
    return status >= 500 or status == 429
