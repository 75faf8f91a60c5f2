"""The application: settings in, routes wired, nothing decided."""

import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from proxy import errors
from proxy.auth import Keys
from proxy.cancellation import Canceller
from proxy.disconnect import ClientLeft
from proxy.endpoint import Endpoint, Limits, create_client
from proxy.jobs import Bounds, Deadlines, Jobs
from proxy.journal import Journal
from proxy.models import Models
from proxy.request_log import RequestLog
from proxy.routes import completions, health, models
from proxy.services import Services
from proxy.settings import Settings

log = logging.getLogger(__name__)

CANCELS_AT_SHUTDOWN_SECONDS = 10
"""How long a proxy that stops waits for RunPod to take its last cancels."""
CLIENT_CLOSED_REQUEST = 499
"""For the log only: nobody is there to read it."""


def create_app(settings: Settings) -> FastAPI:
    """The proxy as an ASGI application."""
    app = FastAPI(
        title="runpod-openai-proxy", docs_url=None, redoc_url=None, lifespan=_lifespan(settings)
    )
    for router in (completions.router, models.router, health.router):
        app.include_router(router)
    app.add_middleware(RequestLog)
    app.add_exception_handler(errors.ProxyError, _proxy_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientLeft, _nobody_there)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    return app


def _lifespan(settings: Settings):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        journal = _journal(settings.state_dir.expanduser())
        canceller = Canceller(on_ended=journal.remove)
        client = create_client(
            settings.runpod_api_key.get_secret_value(),
            connect_timeout_seconds=settings.connect_timeout_seconds,
        )
        async with client:
            url = f"{settings.runpod_endpoint_base_url}/{settings.runpod_endpoint_id}"
            endpoint = Endpoint(client, url, _limits(settings))
            for orphan in journal.orphans():
                if orphan.endpoint == url:
                    log.warning("cancelling job %s of a proxy that was killed", orphan.job_id)
                    canceller.cancel(endpoint, orphan.job_id, is_running=True)
            app.state.services = Services(
                settings=settings,
                keys=Keys(settings.api_keys),
                models=Models(settings.models, endpoint_id=settings.runpod_endpoint_id),
                jobs=Jobs(
                    endpoint,
                    deadlines=_deadlines(settings),
                    bounds=Bounds(settings.max_requests, settings.max_waiting),
                    poll_seconds=settings.keep_alive_seconds,
                    canceller=canceller,
                    journal=journal,
                ),
            )
            yield
            await canceller.drain(CANCELS_AT_SHUTDOWN_SECONDS)
        journal.close()

    return lifespan


def _journal(folder: Path) -> Journal:
    """The journal in this folder, or in a temporary one if it cannot be written."""
    try:
        return Journal(folder)
    except OSError as exc:
        log.warning("jobs in flight will not survive a crash of the proxy: %s", exc)
        return Journal(Path(tempfile.mkdtemp()))


def _limits(settings: Settings) -> Limits:
    return Limits(
        run=settings.run_limit,
        stream=settings.stream_limit,
        status=settings.status_limit,
        cancel=settings.cancel_limit,
    )


def _deadlines(settings: Settings) -> Deadlines:
    return Deadlines(
        queue=settings.queue_timeout_seconds,
        first_token=settings.first_token_timeout_seconds,
        idle=settings.idle_timeout_seconds,
        total=settings.total_timeout_seconds,
    )


async def _proxy_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.ProxyError)
    headers = dict(exc.headers)
    if job_id := getattr(request.state, "job_id", None):
        headers["x-runpod-job-id"] = job_id
    return Response(exc.body, exc.status, headers, "application/json")


async def _http_error(request: Request, exc: Exception) -> Response:
    """Starlette's own errors: no such route, or not with this method."""
    assert isinstance(exc, HTTPException)
    call = f"{request.method} {request.url.path}"
    error: errors.ProxyError
    if exc.status_code == 404:
        error = errors.UnknownRoute(
            f"Unknown request URL: {call}. Please check the URL for typos, or see the docs."
        )
    elif exc.status_code == 405:
        error = errors.MethodNotAllowed(f"Not allowed to {request.method} on {request.url.path}.")
    else:
        error = errors.InvalidRequest(str(exc.detail))
        error.status = exc.status_code
    response = await _proxy_error(request, error)
    response.headers.update(exc.headers or {})
    return response


async def _nobody_there(request: Request, exc: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
