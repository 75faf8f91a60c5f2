"""What a request is answered that ends in an error: the envelope that its route's clients read."""

import logging

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.errors import InternalError, InvalidRequest, MethodNotAllowed, ProxyError, UnknownRoute
from proxy.http.context import RequestContext, context_of
from proxy.http.disconnect import ClientLeft
from proxy.http.routes.welcome import base_url

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""For the log only: the client that it would be sent to has gone."""


def add_handlers(app: FastAPI) -> None:
    """Let the application answer what its routes raise."""
    app.add_exception_handler(ProxyError, _proxy_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientLeft, _client_left)
    app.add_exception_handler(ClientDisconnect, _client_left)


def error_response(
    context: RequestContext, error: ProxyError, headers: dict[str, str] | None = None
) -> Response:
    """The whole answer for this error, which is noted."""
    context.note_error(error)
    body = context.dialect.body(error, context.id)
    return Response(body, error.status, error.headers | (headers or {}), "application/json")


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
            context: RequestContext = scope["state"]["context"]
            log.exception("%s failed", context.id)
            error = InternalError(
                "The proxy failed to answer. The request id names it in the proxy's log."
            )
            response = error_response(context, error)
            if not context.status:
                await response(scope, receive, send)


async def _proxy_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ProxyError)
    context = context_of(request)
    job_id = context.answer.job_id if context.answer else None
    return error_response(context, exc, {"x-runpod-job-id": job_id} if job_id else None)


async def _http_error(request: Request, exc: Exception) -> Response:
    """Starlette's own errors: no such route, or not with this method."""
    assert isinstance(exc, HTTPException)
    call = f"{request.method} {request.url.path}"
    error: ProxyError
    if exc.status_code == 404:
        error = UnknownRoute(
            f"Unknown request URL: {call}. The base URL is {base_url(request)}; "
            "/openapi.json lists the routes."
        )
    elif exc.status_code == 405:
        allowed = (exc.headers or {}).get("Allow", "")
        error = MethodNotAllowed(
            f"Not allowed to {request.method} on {request.url.path}.", allow=allowed.split(", ")
        )
    else:
        error = InvalidRequest(str(exc.detail))
        error.status = exc.status_code
    return await _proxy_error(request, error)


async def _client_left(request: Request, exc: Exception) -> Response:
    context = context_of(request)
    context.outcome = context.outcome or "client_left"  # or was refused in the middle of its body
    return Response(status_code=CLIENT_CLOSED_REQUEST)
