"""The doors of workers: TLS with a certificate that is known beforehand, and a WebSocket."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from proxy.backends.runpod.direct.channel import CLOSE_SECONDS, MAX_MESSAGE_BYTES, Connection
from proxy.backends.runpod.direct.dialing import DialFailed
from proxy.backends.runpod.direct.offer import Offer

DIAL_SECONDS: Final = 3.0


@dataclass(slots=True)
class WorkerDoors:
    """Reaches workers' doors by TLS, with the certificate of this proxy."""

    context: ssl.SSLContext

    async def connect(self, offer: Offer) -> Connection:
        """A connection to the worker whose certificate is the one that was offered.

        The certificate is compared before anything is sent. Raises DialFailed.
        """
        session = _session(offer)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                socket = await session.ws_connect(
                    f"https://{offer.place}/channel",
                    ssl=self.context,
                    max_msg_size=MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS / 2),
                    decode_text=False,
                )
        except BaseException as exc:
            await session.close()
            if isinstance(exc, Exception):
                raise DialFailed(_reason(exc)) from exc
            raise
        return DialledConnection(session, socket)


class DialledConnection:
    """A WebSocket that we have opened."""

    def __init__(
        self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse[Any]
    ) -> None:
        self._session = session
        self._socket = socket
        connection = socket._response.connection
        assert connection is not None, "it has just been made"
        self._transport = connection.transport

    async def receive(self) -> bytes | None:
        """The next message; None at the end, which bytes that are no text are as well."""
        message = await self._socket.receive()
        return message.data if message.type is aiohttp.WSMsgType.TEXT else None

    async def send(self, text: bytes) -> None:
        """Send a text message."""
        await self._socket.send_frame(text, aiohttp.WSMsgType.TEXT)

    async def close(self) -> None:
        """Close it, and the session that was made for it."""
        try:
            await self._socket.close()
        finally:
            # To a worker that is out of reach TLS would wait for ever to say goodbye.
            if self._transport is not None:
                self._transport.abort()
            await self._session.close()


def _session(offer: Offer) -> aiohttp.ClientSession:
    """A session for one connection: which certificate is the right one is the connector's part."""
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_refuse_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=aiohttp.Fingerprint(offer.certificate),
            limit=1,
            resolver=aiohttp.ThreadedResolver(),  # which costs nothing: there is no name
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[tracing],
    )


async def _refuse_redirect(*_: object) -> None:
    """aiohttp would follow one to any address, where ws_connect cannot be told not to."""
    raise DialFailed("failed")


def _reason(exc: Exception) -> str:
    match exc:
        case aiohttp.ServerFingerprintMismatch():
            return "certificate"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorError() if isinstance(exc.os_error, ConnectionRefusedError):
            return "refused"
    return "failed"
