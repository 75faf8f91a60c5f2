"""Around every request: its id, one line in the log, and an error envelope for what nobody caught.

Plain ASGI: Starlette's BaseHTTPMiddleware would cost every chunk of every stream a task switch.
"""

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.dialects import Dialect, error_dialect
from proxy.errors import InternalError

log = logging.getLogger("proxy.access")

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestLog:
    """Gives each request an id, which the answer's headers tell its client, and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        dialect = state["dialect"] = error_dialect(scope["path"])
        id_headers = [(name.encode(), request_id.encode()) for name in dialect.request_id_headers]
        status = 0
        began = state["began"] = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *id_headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("%s failed", request_id)
            if not status:
                await _internal_error(dialect, request_id)(scope, receive, send_with_id)
        finally:
            scope["app"].state.services.metrics.note_request(state.get("model", ""), status)
            log.info(
                "%s %s %s %d %.3fs job=%s",
                request_id,
                scope["method"],
                quote(scope["path"]),  # unpacked, it could hold a line of its own
                status,
                time.monotonic() - began,
                getattr(state.get("answer"), "job_id", None) or "-",
            )


def _internal_error(dialect: Dialect, request_id: str) -> Response:
    error = InternalError("The proxy failed to answer. The request id names it in the proxy's log.")
    body = dialect.body(error, request_id)
    return Response(body, error.status, error.headers, "application/json")


def _request_id(scope: Scope) -> str:
    """The client's own id if it sent a sane one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value.decode())
    return f"req_{uuid.uuid4().hex}"
