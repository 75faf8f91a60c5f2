"""The worker's door: a port of the container that RunPod exposes, behind which proxies are served.

Only who shows a certificate that a job named gets past the handshake. Sockets are accepted here and
not by aiohttp, so that handshakes that prove nothing are bounded: in time, and in number, where a
new one takes the place of the oldest.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from aiohttp import web

from worker.direct.connection import WebSocket
from worker.direct.identity import Identity
from worker.direct.invitation import identity_of

log = logging.getLogger(__name__)

MAX_HANDSHAKES: Final = 16
MAX_CONNECTIONS: Final = 64
HANDSHAKE_SECONDS: Final = 5.0
REQUEST_SECONDS: Final = 5.0
"""How long a connection may be open without a request."""
CLOSE_SECONDS: Final = 1.0
MAX_MESSAGE_BYTES: Final = 1024 * 1024
PATH: Final = "/channel"

_BACKLOG: Final = 64
_PAUSE_SECONDS: Final = 1.0

Serve = Callable[[WebSocket, str], Awaitable[None]]
"""Serves a channel to the proxy of this identity until it ends."""


class Door:
    """One port on which proxies are let in."""

    def __init__(self, identity: Identity, serve: Serve) -> None:
        self._identity = identity
        self._serve = serve
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._open: set[asyncio.BaseTransport] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    def open(self, host: str | None, port: int) -> None:
        """Listen.

        Raises:
            OSError: the port is taken, or the address is none of this machine.
        """
        self._listener = _listening(host, port)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    def shut(self) -> None:
        """Let nobody in any more; the port is free at once."""
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        # The task would do so later, when the number of the socket may be another's.
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        for handshake in self._handshakes:
            handshake.cancel()

    async def close(self) -> None:
        """Shut the door, and close what is open."""
        self.shut()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _accept(self, listener: socket.socket) -> None:
        app = web.Application()
        app.router.add_get(PATH, self._channel)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=REQUEST_SECONDS, shutdown_timeout=CLOSE_SECONDS
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:  # too many open files, most likely
                log.warning("the door for direct channels cannot let anybody in: %s", error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self._begin(accepted)

    def _begin(self, accepted: socket.socket) -> None:
        if len(self._handshakes) + len(self._open) >= MAX_CONNECTIONS:
            accepted.close()
            return
        if len(self._handshakes) >= MAX_HANDSHAKES:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        handshake = asyncio.create_task(self._shake_hands(accepted))
        self._handshakes[handshake] = None
        handshake.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _shake_hands(self, accepted: socket.socket) -> None:
        assert self._runner is not None
        assert self._runner.server is not None
        # Who fails is a stranger, and there may be many: not worth a line.
        with suppress(OSError, ssl.SSLError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._runner.server,
                accepted,
                ssl=self._identity.server_context(),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=CLOSE_SECONDS,
            )

    async def _channel(self, request: web.Request) -> web.WebSocketResponse:
        transport = request.transport
        assert transport is not None
        certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=MAX_MESSAGE_BYTES, timeout=CLOSE_SECONDS
        )
        await socket.prepare(request)
        self._open.add(transport)
        try:
            await self._serve(socket, identity_of(certificate))
        finally:
            self._open.discard(transport)
            await socket.close(drain=False)
        return socket


def _listening(host: str | None, port: int) -> socket.socket:
    is_v6 = host is not None and ipaddress.ip_address(host).version == 6
    listener = socket.create_server(
        (host or "", port), family=socket.AF_INET6 if is_v6 else socket.AF_INET, backlog=_BACKLOG
    )
    listener.setblocking(False)
    return listener
