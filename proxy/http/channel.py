"""The proxy's own door for workers: a WebSocket that one opens with the token of its job."""

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from proxy.errors import InvalidAPIKey
from proxy.http.context import context_of, services_of
from proxy.http.error_responses import error_response
from proxy.http.websockets import CHANNEL

router = APIRouter()


class AcceptedConnection:
    """A WebSocket that a worker has opened."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive(self) -> str | None:
        """The next message; None at the end, which bytes that are no text are as well."""
        message = await self._socket.receive()
        return message.get("text") if message["type"] == "websocket.receive" else None

    async def send(self, text: bytes) -> None:
        """Send a text message; raises OSError if the worker is gone."""
        try:
            await self._socket.send_text(text.decode())
        except (WebSocketDisconnect, RuntimeError) as exc:
            raise ConnectionError from exc

    async def close(self) -> None:
        """Close it, unless that is done."""
        try:
            await self._socket.close()
        except (WebSocketDisconnect, RuntimeError) as exc:
            raise ConnectionError from exc


@router.websocket(CHANNEL)
async def channel(socket: WebSocket) -> None:
    """Serve a worker's connection until it ends."""
    backends = services_of(socket).backends
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    endpoint = backends.redeem(token) if scheme.lower() == "bearer" else None
    if endpoint is None:
        refusal = InvalidAPIKey("A token of a job that runs is needed, and it is good once.")
        await socket.send_denial_response(error_response(context_of(socket), refusal))
        return
    await socket.accept()
    await backends.serve_channel(AcceptedConnection(socket), endpoint)
