"""One connection at the proxy's door: uvicorn's WebSocket, with bounds on what it may cost us.

uvicorn answers pings whether or not anybody reads the answers, keeps the pieces of a message
however many there are, and waits for ever for a peer to read what is left at the end. With its log
at `debug` it would write down all that is said, tokens and answers too.
"""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from proxy.http.connection import BoundedConfig

MAX_PIECES = 1_000
"""So many frames of WebSocket may make up a message; workers send each in one."""


class ChannelProtocol(WebSocketsSansIOProtocol):
    """A WebSocket whose peer has to read what it asks for."""

    def __init__(self, config: BoundedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn.debug = False
        self._send_timeout_seconds = config.bounds.send_timeout_seconds
        self._reading_deadline: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_reading_deadline()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_deadline = self.loop.call_later(
            self._send_timeout_seconds, self.transport.abort
        )

    def resume_writing(self) -> None:
        self._clear_reading_deadline()
        super().resume_writing()

    def handle_ping(self) -> None:
        """Answer it, if the answers before it are being read."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        """Take a piece of a message, if there are not too many."""
        if len(self.frames) < MAX_PIECES:
            super().handle_cont(event)
        else:
            self.transport.abort()

    def _clear_reading_deadline(self) -> None:
        if self._reading_deadline is not None:
            self._reading_deadline.cancel()
            self._reading_deadline = None
