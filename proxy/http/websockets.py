"""WebSockets, which no client is served: a handshake is answered so that it takes HTTP instead.

Codex tries `GET /v1/responses` as a WebSocket before it sends `POST`. At 426 it does that at once;
any other refusal it repeats, with pauses (reported to openai/codex for 0.153.4).
"""

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from proxy.errors import WebSocketsNotServed
from proxy.http.error_responses import error_response

WEBSOCKET_OFFER = (b"upgrade", b"websocket")
"""The header by which `BoundedProtocol` hands on a handshake; it declines other upgrades."""


CHANNEL = "/channel"
"""Where workers may open one, if they may."""


class WithoutWebSockets:
    """Answers 426 to a handshake, whatever its path; with `has_channel`, to all but workers'."""

    def __init__(self, app: ASGIApp, *, has_channel: bool) -> None:
        self._app = app
        self._has_channel = has_channel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        is_channel = self._has_channel and scope.get("path") == CHANNEL
        if scope["type"] == "websocket" and not is_channel:  # a server other than ours
            await WebSocket(scope, receive, send).send_denial_response(_refusal(scope))
        elif scope["type"] == "http" and WEBSOCKET_OFFER in scope["headers"]:
            await _refusal(scope)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _refusal(scope: Scope) -> Response:
    return error_response(scope["state"]["context"], WebSocketsNotServed())
