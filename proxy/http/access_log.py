"""The outermost middleware: every request gets its record and its id, and at its end is logged.

Plain ASGI: Starlette's BaseHTTPMiddleware would cost every chunk of every stream a task switch.
"""

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.api.dialects import error_dialect
from proxy.http.context import RequestContext

_USABLE_ID = re.compile(rb"[A-Za-z0-9._:=/+@~-]{1,200}")
_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
SWITCHING_PROTOCOLS = 101
"""The status of a WebSocket that is accepted."""


class AccessLog:
    """Makes a request's record, tells its client the id, and finishes the record."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        context = record_of(scope)
        names = context.dialect.request_id_headers
        id_headers = [(name.encode(), context.id.encode()) for name in names]

        async def send_with_id(message: Message) -> None:
            if message["type"] in _STARTS:
                context.status = context.status or message.get("status", SWITCHING_PROTOCOLS)
                headers = message.get("headers", ())
                if context.permit is not None:
                    headers = context.permit.told(headers)
                message["headers"] = [*headers, *id_headers]
            await send(message)

        live: dict[int, RequestContext] = scope["app"].state.live
        live[id(context)] = context
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            del live[id(context)]
            context.finish(scope["app"].state.services)


def record_of(scope: Scope) -> RequestContext:
    """The record of a request, made by whoever asks for it first."""
    state = scope.setdefault("state", {})
    if "context" not in state:
        state["context"] = _begun(scope)
    context: RequestContext = state["context"]
    return context


def _begun(scope: Scope) -> RequestContext:
    """A record with the client's own id if it is usable, else a new one and a remark on why."""
    path, request_id, remark = scope["path"], f"req_{uuid.uuid4().hex}", ""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
    if given is not None and _USABLE_ID.fullmatch(given):
        request_id = given.decode()
    elif given is not None:
        remark = f" (its x-request-id of {len(given)} characters is no plain id)"
    method = scope.get("method", "GET")
    return RequestContext(request_id, method, path, error_dialect(path), remark)
