"""One name, two backends: the second is asked when the first fails, or is too slow to begin.

Only before the first byte: what has been passed on is never continued by another server.
"""

import asyncio
import logging
from collections.abc import Callable

from proxy.api.answer import Answer, WrappedAnswer
from proxy.errors import InvalidRequest, ProxyError, Stopping, VLLMError

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

    async def open(self) -> bytes:
        """Open the first answer, or else the second."""
        if self._first is not None:
            try:
                async with asyncio.timeout(self._after_seconds):
                    piece = await self._first.open()
                if self._first.head is None or not _is_broken(self._first.head.status):
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
        self._on_fallback()
        assert self._second is not None, "it is opened once"
        self.inner = self._second()
        self._second = None
        return await self.inner.open()


def _is_broken(status: int) -> bool:
    return status >= 500 or status == 429
