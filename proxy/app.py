"""The application: settings in, routes wired, nothing decided."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from proxy import __version__, errors
from proxy.api.dialects import Dialect
from proxy.backends.registry import Backends
from proxy.backends.runpod.cancellation import Canceller
from proxy.backends.runpod.endpoint import create_client
from proxy.backends.runpod.journal import Journal
from proxy.backends.start_clock import StartTimes
from proxy.config import tables as config
from proxy.config.settings import Settings
from proxy.http import openapi
from proxy.http.access_log import LastResort, RequestLog
from proxy.http.body import BodyReader
from proxy.http.cors import READABLE_HEADERS
from proxy.http.disconnect import ClientLeft
from proxy.http.path_normalization import ForgivingPaths
from proxy.http.routes import health, metrics, models, welcome
from proxy.http.routes import inference as api
from proxy.http.websockets import WithoutWebSockets
from proxy.keys import Keys
from proxy.memory import Memory
from proxy.metrics import Metrics
from proxy.services import Services
from proxy.serving.sharing import Sharing
from proxy.serving.shield import Shield
from proxy.serving.stored_responses import StoredResponses
from proxy.serving.warmup import Warmer

log = logging.getLogger(__name__)

LAST_CALLS_SECONDS = 10
"""How long a proxy that stops waits for RunPod to answer its last submissions, and then the last
cancels: these as much longer as RunPod's limit makes them take."""
CLIENT_CLOSED_REQUEST = 499
"""For the log only: nobody is there to read it."""


def create_app(settings: Settings, first: config.Config | None = None) -> FastAPI:
    """The proxy as an ASGI application; `first` is the configuration, if it has been read already.

    Raises:
        ConfigError: the configuration file cannot be used.
    """
    app = FastAPI(
        title="runpod-openai-proxy",
        docs_url=None,
        redoc_url=None,
        version=__version__,
        lifespan=_lifespan(settings, first or config.load(settings)),
    )
    for router in (models.router, health.router, metrics.router, welcome.router):
        app.include_router(router)
    app.include_router(api.create_router(settings.routes))
    document = openapi.page(app.title, app.version, settings.routes)
    app.openapi = lambda: document  # type: ignore[method-assign]
    app.add_middleware(WithoutWebSockets)  # the last one added is the outermost
    app.add_middleware(LastResort)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=READABLE_HEADERS,
        )
    app.add_middleware(RequestLog)
    app.add_middleware(ForgivingPaths)
    app.add_exception_handler(errors.ProxyError, _proxy_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientLeft, _nobody_there)
    app.add_exception_handler(ClientDisconnect, _nobody_there)
    return app


def _lifespan(settings: Settings, first: config.Config):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:  # what was begun last is ended first
            journal = Journal(settings.state_dir.expanduser())
            stack.callback(journal.close)
            client = create_client(connect_timeout_seconds=settings.connect_timeout_seconds)
            await stack.enter_async_context(client)
            canceller = Canceller(on_ended=journal.remove)
            stack.push_async_callback(canceller.drain, LAST_CALLS_SECONDS)
            memory = Memory(settings.max_buffered_bytes)
            numbers, warmer, sharing = Metrics(), Warmer(), Sharing(memory)
            start_times = StartTimes(settings.state_dir.expanduser())
            backends = Backends(settings, client, canceller, journal, numbers, memory, start_times)
            stack.push_async_callback(backends.close, LAST_CALLS_SECONDS)
            stack.push_async_callback(sharing.close)
            stack.push_async_callback(warmer.close)
            here = app.state.services = Services(
                settings=settings,
                memory=memory,
                bodies=BodyReader(max_bytes=settings.max_body_bytes, memory=memory),
                metrics=numbers,
                backends=backends,
                warmer=warmer,
                shield=Shield(is_up=settings.wake_shield),
                sharing=sharing,
                stored_responses=StoredResponses(),
                keys=Keys(settings.api_keys, first.keys),
                models=backends.build(first),
            )
            warmer.schedule(here.models)
            backends.cancel_orphans()
            here.watch_all()
            yield

    return lifespan


async def _proxy_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.ProxyError)
    request.state.outcome = exc.code or exc.type
    headers = dict(exc.headers)
    answer = getattr(request.state, "answer", None)
    if answer is not None and answer.job_id:
        headers["x-runpod-job-id"] = answer.job_id
    dialect: Dialect = request.state.dialect
    body = dialect.body(exc, request.state.request_id)
    return Response(body, exc.status, headers, "application/json")


async def _http_error(request: Request, exc: Exception) -> Response:
    """Starlette's own errors: no such route, or not with this method."""
    assert isinstance(exc, HTTPException)
    call = f"{request.method} {request.url.path}"
    error: errors.ProxyError
    if exc.status_code == 404:
        error = errors.UnknownRoute(
            f"Unknown request URL: {call}. The base URL is {welcome.base_url(request)}; "
            "/openapi.json lists the routes."
        )
    elif exc.status_code == 405:
        allowed = (exc.headers or {}).get("Allow", "")
        error = errors.MethodNotAllowed(
            f"Not allowed to {request.method} on {request.url.path}.", allow=allowed.split(", ")
        )
    else:
        error = errors.InvalidRequest(str(exc.detail))
        error.status = exc.status_code
    return await _proxy_error(request, error)


async def _nobody_there(request: Request, exc: Exception) -> Response:
    request.state.outcome = "client_left"
    return Response(status_code=CLIENT_CLOSED_REQUEST)
