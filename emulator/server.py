"""Server: uvicorn that lets the workers finish before it stops to answer them."""

import asyncio
import logging
import socket
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette

from emulator.gateway.state import state_of

log = logging.getLogger("emulator")

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than any client keeps an idle connection, or one in many POSTs would meet its end."""
GRACEFUL_SHUTDOWN_SECONDS: Final = 3


class Server(uvicorn.Server):
    """Serves an emulator.

    uvicorn by itself would first wait for the workers' held polls and then end the lifespan, when
    the workers can no longer hand in their results.
    """

    def __init__(self, app: Starlette, *, access_log: bool = False) -> None:
        self._state = state_of(app)
        settings = self._state.settings
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="info" if access_log else "warning",
            access_log=access_log,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
        )
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; told so again, have the workers killed and clean up all the same."""
        if self.should_exit and self._loop is not None:
            self._loop.call_soon_threadsafe(self._state.kill_stopping)
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and say where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            settings = self._state.settings
            for endpoint in settings.endpoints:
                face = "v2" if endpoint.kind == "queue" else "lb"
                log.info("ready: %s/%s/%s", settings.base_url, face, endpoint.id)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the workers while they can still be heard, then stop listening."""
        await self._state.close()
        await super().shutdown(sockets)
