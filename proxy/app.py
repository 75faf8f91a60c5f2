"""The application: settings in, routes wired, nothing decided."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from proxy import __version__
from proxy.access.keys import Keys, KeyStore
from proxy.access.limits import Limiter
from proxy.access.sessions import Sessions
from proxy.access.spending import Spending
from proxy.access.worker_costs import WorkerCosts
from proxy.backends.registry import BackendRegistry
from proxy.backends.runpod.cancellation import Canceller
from proxy.backends.runpod.endpoint import create_client
from proxy.backends.runpod.journal import Journal
from proxy.backends.runpod.pacing import Shares
from proxy.backends.start_clock import StartTimes
from proxy.config.limits import WINDOW_SECONDS
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.config.tables import Config
from proxy.http import openapi
from proxy.http.access_log import AccessLog
from proxy.http.body import BodyReader
from proxy.http.channel import router as channel_router
from proxy.http.cors import READABLE_HEADERS
from proxy.http.error_responses import LastResort, add_handlers
from proxy.http.path_normalization import ForgivingPaths
from proxy.http.routes import (
    admin_keys,
    admin_session,
    health,
    inference,
    metrics,
    models,
    status,
    usage,
    welcome,
)
from proxy.http.websockets import WithoutWebSockets
from proxy.memory import Memory
from proxy.services import Services
from proxy.serving.build import build_models
from proxy.serving.sharing import Claims, Sharing
from proxy.serving.shield import Shield
from proxy.serving.stored_responses import StoredResponses
from proxy.serving.warmup import Warmer
from proxy.telemetry.history import History
from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:  # a database, Redis and OpenTelemetry are imported where they are used
    from proxy.backends.shared_turns import SharedTurns
    from proxy.ledger.ledger import Ledger
    from proxy.storage.database import Database
    from proxy.storage.shared_state import SharedState
    from proxy.telemetry.traces import Traces

LAST_CALLS_SECONDS = 10
"""How long a proxy that stops waits for RunPod to answer its last submissions, and then the last
cancels: these as much longer as RunPod's limit makes them take."""
LAST_SPANS_SECONDS = 5
"""How long it tries to send the last spans, where traces are made."""


def create_app(
    settings: Settings, first: Config | None = None, traces: "Traces | None" = None
) -> FastAPI:
    """The proxy as an ASGI application; `first` is the configuration, if it has been read already.

    Raises:
        ConfigError: the configuration file cannot be used.
    """
    app = FastAPI(
        title="runpod-openai-proxy",
        docs_url=None,
        redoc_url=None,
        version=__version__,
        lifespan=_lifespan(settings, first or load(settings), traces),
        # FastAPI's own would wrap each piece of a stream, and tell of errors with their texts.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.live = {}
    own = [
        *models.routers,
        usage.router,
        *admin_session.routers,
        admin_keys.router,
        status.router,
        metrics.router,
        health.router,
        welcome.router,
    ]
    if has_channel := settings.public_url is not None:
        own.append(channel_router)
    # Routers are asked one after the other, at a price: what is called all the time comes first.
    for router in (inference.create_router(settings.routes), *own):
        app.include_router(router)
    document = openapi.page(app.title, app.version, settings.routes)
    app.openapi = lambda: document  # type: ignore[method-assign]
    # The last one added is the outermost.
    app.add_middleware(WithoutWebSockets, has_channel=has_channel)
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
    app.add_middleware(AccessLog)
    app.add_middleware(ForgivingPaths)
    add_handlers(app)
    return app


def _database_url(settings: Settings, config: Config) -> str | None:
    """Who may administer makes keys, which have to be kept somewhere, unless nobody needs one."""
    has_admins = bool(settings.admin_keys) or any(k.may_administer for k in config.keys.values())
    makes_keys = has_admins and not settings.allow_anonymous
    return settings.database or (settings.new_database if makes_keys else None)


def _database(settings: Settings, config: Config) -> "Database | None":
    """SQLAlchemy takes its time and memory: it is imported where there is a database."""
    url = _database_url(settings, config)
    if url is None or settings.allow_anonymous:
        return None
    from proxy.storage.database import Database

    return Database(url)


async def _key_store(database: "Database | None", config: Config) -> KeyStore | None:
    if database is None:
        return None
    from proxy.access.stored_keys import StoredKeys

    keys = StoredKeys(database, doubt=lambda key: key.uncounted(config))
    await keys.begin()
    return keys


def _sessions(database: "Database | None") -> Sessions:
    if database is None:
        return Sessions()
    from proxy.access.stored_sessions import StoredSessions

    return Sessions(StoredSessions(database))


def _ledger(settings: Settings, config: Config) -> "Ledger | None":
    """It has a thread of its own in the database, so that no key waits behind its rows."""
    url = _database_url(settings, config) or (settings.new_database if settings.ledger else None)
    if url is None or settings.ledger is False:
        return None
    from proxy.ledger.ledger import Ledger
    from proxy.storage.database import Database

    return Ledger(
        Database(url),
        settings.state_dir,
        days=settings.ledger_days,
        status_calls_per_second=settings.status_limit.calls / WINDOW_SECONDS,
    )


def _lifespan(settings: Settings, first: Config, traces: "Traces | None"):  # type: ignore[no-untyped-def]
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:  # what was begun last is ended first
            if traces is not None:
                stack.push_async_callback(traces.close, LAST_SPANS_SECONDS)
            journal = Journal(settings.state_dir.expanduser())
            stack.callback(journal.close)
            spending = Spending(settings.state_dir.expanduser())
            stack.callback(spending.close)
            shared_state = _shared_state(settings)
            if shared_state is not None:
                stack.push_async_callback(shared_state.close)
            limiter = _limiter(settings, spending, shared_state)
            costs = _worker_costs(spending, shared_state)
            shares = _shares(settings, shared_state)
            stack.push_async_callback(shares.close)
            if (shared_turns := _shared_turns(shared_state)) is not None:
                stack.push_async_callback(shared_turns.close)
            stack.push_async_callback(limiter.close)
            client = create_client(connect_timeout_seconds=settings.connect_timeout_seconds)
            await stack.enter_async_context(client)
            canceller = Canceller(on_ended=journal.remove)
            stack.push_async_callback(canceller.drain, LAST_CALLS_SECONDS)
            memory = Memory(settings.max_buffered_bytes)
            if (database := _database(settings, first)) is not None:
                stack.push_async_callback(database.close)
            if (ledger := _ledger(settings, first)) is not None:
                ledger.begin()
                stack.push_async_callback(ledger.close)
            numbers, warmer = Metrics(), Warmer(ledger)
            sharing = Sharing(memory, _claims(shared_state))
            start_times = StartTimes(settings.state_dir.expanduser())
            backends = BackendRegistry(
                *(settings, client, canceller, journal, numbers, memory, start_times, costs),
                *(shares, shared_turns),
            )
            stack.push_async_callback(backends.close, LAST_CALLS_SECONDS)
            stack.push_async_callback(sharing.close)
            stack.push_async_callback(warmer.close)
            app.state.bodies = BodyReader(max_bytes=settings.max_body_bytes, memory=memory)
            services = app.state.services = Services(
                settings=settings,
                memory=memory,
                metrics=numbers,
                history=History(),
                backends=backends,
                warmer=warmer,
                shield=Shield(is_up=settings.wake_shield),
                sharing=sharing,
                stored_responses=_stored_responses(shared_state),
                keys=Keys(settings, first.keys, await _key_store(database, first)),
                sessions=_sessions(database),
                limiter=limiter,
                ledger=ledger,
                models=build_models(first, settings, backends, numbers),
                traces=traces,
            )
            warmer.schedule(services.models)
            services.begin_history()
            stack.push_async_callback(services.history.close)
            backends.cancel_orphans()
            services.request_updates()
            yield

    return lifespan


def _shared_state(settings: Settings) -> "SharedState | None":
    if settings.redis_url is None:
        return None
    from proxy.storage.shared_state import SharedState

    return SharedState(settings.redis_url.get_secret_value())


def _limiter(settings: Settings, spending: Spending, state: "SharedState | None") -> Limiter:
    if state is None:
        return Limiter(spending, copies=settings.copies)
    from proxy.access.shared_limits import SharedLimiter

    return SharedLimiter(spending, state, copies=settings.copies)


def _worker_costs(spending: Spending, state: "SharedState | None") -> WorkerCosts:
    if state is None:
        return WorkerCosts(spending)
    from proxy.access.shared_worker_costs import SharedWorkerCosts

    return SharedWorkerCosts(spending, state)


def _shares(settings: Settings, state: "SharedState | None") -> Shares:
    if state is None:
        return Shares(settings.copies)
    from proxy.backends.runpod.shared_pacing import SharedShares

    return SharedShares(state, settings.copies)


def _shared_turns(state: "SharedState | None") -> "SharedTurns | None":
    if state is None:
        return None
    from proxy.backends.shared_turns import SharedTurns

    return SharedTurns(state)


def _stored_responses(state: "SharedState | None") -> StoredResponses:
    if state is None:
        return StoredResponses()
    from proxy.serving.shared_responses import SharedStoredResponses

    return SharedStoredResponses(state)


def _claims(state: "SharedState | None") -> Claims | None:
    if state is None:
        return None
    from proxy.serving.shared_answers import SharedClaims

    return SharedClaims(state)
