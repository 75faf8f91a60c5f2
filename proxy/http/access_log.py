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

from proxy.api.dialects import error_dialect
from proxy.errors import InternalError

log = logging.getLogger("proxy.access")

_USABLE_ID = re.compile(rb"[A-Za-z0-9._:=/+@~-]{1,200}")
_STARTS = frozenset({"http.response.start", "websocket.http.response.start"})


class RequestLog:
    """Gives each request an id, which the answer's headers tell its client; logs and counts it.

    `state["outcome"]` says how an answer ended where its status does not: an error's code, or
    `client_left`. An answer is `completed` unless something else was noted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id, remark = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        dialect = state["dialect"] = error_dialect(scope["path"])
        id_headers = [(name.encode(), request_id.encode()) for name in dialect.request_id_headers]
        began = state["began"] = time.monotonic()
        state["status"] = 0

        async def send_with_id(message: Message) -> None:
            if message["type"] in _STARTS:
                state["status"] = message["status"]
                message["headers"] = [*message["headers"], *id_headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            status = state["status"]
            outcome = state.get("outcome") or _outcome(status)
            model = state.get("model", "")
            scope["app"].state.services.metrics.note_request(model, status, outcome)
            log.info(
                "%s %s %s %d %s %.3fs job=%s%s",
                request_id,
                scope.get("method", "GET"),
                quote(scope["path"]),  # unpacked, it could hold a line of its own
                status,
                outcome,
                time.monotonic() - began,
                getattr(state.get("answer"), "job_id", None) or "-",
                remark,
            )


class LastResort:
    """Answers what no handler caught. It stands inside CORS, so that a page can read the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception:
            state = scope["state"]
            log.exception("%s failed", state["request_id"])
            error = InternalError(
                "The proxy failed to answer. The request id names it in the proxy's log."
            )
            state["outcome"] = error.code
            if not state["status"]:
                body = state["dialect"].body(error, state["request_id"])
                answer = Response(body, error.status, error.headers, "application/json")
                await answer(scope, receive, send)


def _outcome(status: int) -> str:
    if status == 0:
        return "client_left"
    return "completed" if status < 400 else "failed"


def _request_id(scope: Scope) -> tuple[str, str]:
    """The client's own id if it is usable, else a new one, and a remark on why for the log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            if _USABLE_ID.fullmatch(value):
                return str(value.decode()), ""
            remark = f" (its x-request-id of {len(value)} characters is no plain id)"
            return f"req_{uuid.uuid4().hex}", remark
    return f"req_{uuid.uuid4().hex}", ""
