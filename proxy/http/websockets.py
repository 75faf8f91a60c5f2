"""WebSockets, which are not served: a handshake is answered so that its client takes HTTP instead.

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


class WithoutWebSockets:
    """Answers 426 to a handshake, whatever its path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":  # a server other than ours
            await WebSocket(scope, receive, send).send_denial_response(_refusal(scope))
        elif scope["type"] == "http" and WEBSOCKET_OFFER in scope["headers"]:
            await _refusal(scope)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _refusal(scope: Scope) -> Response:
    return error_response(scope["state"]["context"], WebSocketsNotServed())
