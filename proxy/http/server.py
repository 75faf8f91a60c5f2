"""The HTTP server: uvicorn, which tells the application when it will stop."""

import asyncio
import logging
import math
import resource
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.flow_control import CLOSE_HEADER

from proxy.backends.runpod.direct.channel import MAX_MESSAGE_BYTES
from proxy.backends.transport import MAX_CONNECTIONS
from proxy.config.settings import Settings
from proxy.http.channel_protocol import ChannelProtocol
from proxy.http.connection import BoundedConfig

IDLE_CONNECTION_SECONDS = 75
"""Longer than the 60 s after which load balancers drop an idle connection, so that they do it."""
OTHER_DESCRIPTORS = 100

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn, telling the application that it will stop, while requests are still running."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            BoundedConfig(
                app,
                settings,
                host=settings.host,
                port=settings.port,
                # Workers alone may open one; the channel has bounds and pings of its own.
                ws=ChannelProtocol if settings.public_url else "none",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_interval=None,
                ws_per_message_deflate=False,
                log_level=settings.log_level,
                # Without, uvicorn's lines are formatted as all others are.
                log_config=LOGGING_CONFIG if settings.log_format == "text" else None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_CONNECTION_SECONDS,
                timeout_graceful_shutdown=math.ceil(settings.longest_drain_seconds + 1),
            )
        )
        self._app = app
        self._delay_seconds = settings.shutdown_delay_seconds
        self._longest_drain_seconds = settings.longest_drain_seconds
        self._closes_at: float | None = None
        """Until then a proxy that was told to stop takes new requests."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and to read the configuration again on SIGHUP."""
        await super().startup(sockets)
        if (services := getattr(self._app.state, "services", None)) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, services.reload)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: requests that run get their grace time, then end with an error.

        After a first SIGTERM new requests are still taken for `shutdown_delay_seconds`, so that a
        load balancer sees `/ready` before connections are refused.

        uvicorn's own handler would raise the signal again after a clean end; ours exits with 0.
        """
        services = getattr(self._app.state, "services", None)
        if services is None or sig == signal.SIGINT or not self._delay_seconds or self._closes_at:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self._stop()
        else:
            services.is_draining = True
            self._closes_at = time.monotonic() + self._delay_seconds
            log.info("stopping, and taking requests for %g more seconds", self._delay_seconds)

    async def on_tick(self, counter: int) -> bool:
        """Called every tenth of a second; whether to stop."""
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self._stop()
        should_exit = await super().on_tick(counter)
        headers = self.server_state.default_headers
        if self._closes_at is not None and CLOSE_HEADER not in headers:
            self.server_state.default_headers = [*headers, CLOSE_HEADER]
        return should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the requests that run end, and hang up on clients that do not take the end."""
        loop = asyncio.get_running_loop()
        hanging_up = loop.call_later(self._longest_drain_seconds, self._hang_up)
        try:
            await super().shutdown(sockets)
        finally:
            hanging_up.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _stop(self) -> None:
        services = getattr(self._app.state, "services", None)
        if services is not None and not self.should_exit:  # a second signal gives no more time
            services.drain()
        self.should_exit = True


def allow_descriptors(settings: Settings) -> None:
    """Let the process have as many files open as its bounds ask for, or say why it cannot."""
    wanted = settings.max_connections + MAX_CONNECTIONS + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            log.warning(
                "the system allows %d open files; PROXY_MAX_CONNECTIONS=%d may need %d",
                allowed,
                settings.max_connections,
                wanted,
            )
