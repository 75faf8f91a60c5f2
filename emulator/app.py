"""create_app(): the wiring of the whole emulator, as an ASGI application."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from emulator.clock import LoopClock
from emulator.endpoint import BalancedEndpoint, Endpoint, QueueEndpoint
from emulator.faces import batches, client, control, load_balancing, openai, rest, welcome, worker
from emulator.fleet.scaler import Scaler
from emulator.fleet.work_source import WorkSource
from emulator.gateway.faults import Faults
from emulator.gateway.limits import Quotas
from emulator.gateway.state import EmulatorState
from emulator.settings import EmulatorSettings, EndpointSettings
from emulator.work.balancer import Balancer
from emulator.work.batches import Batches
from emulator.work.queue import Queue
from emulator.work.webhooks import Webhooks


def create_app(settings: EmulatorSettings) -> Starlette:
    """An emulator with these settings; its workers live as long as its lifespan.

    The application must be served where `settings.base_url` says, or its workers will not find it.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="emulator-") as name:
            directory = Path(name)
            log_directory = (settings.log_dir or directory / "logs").absolute()
            log_directory.mkdir(parents=True, exist_ok=True)
            for endpoint in endpoints.values():
                endpoint.start()
                endpoint.scaler.start(directory, log_directory)
            try:
                yield
            finally:
                await state.close()

    endpoints = {endpoint.id: _endpoint(settings, endpoint) for endpoint in settings.endpoints}
    quotas = Quotas(settings.rest_quotas, LoopClock())
    state = EmulatorState(settings, endpoints, Faults(settings.faults), quotas)
    routes = [
        *rest.routes(),
        *load_balancing.routes(endpoints.values()),
        *client.routes(),
        *openai.routes(),
        *batches.routes(),
        *worker.routes(),
        *control.routes(),
        *welcome.routes(),
    ]
    app = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={ClientDisconnect: _caller_has_left}
    )
    app.state.emulator = state
    return app


async def _caller_has_left(request: Request, exc: Exception) -> Response:
    """For a caller that left in the middle of its body, as a worker does that is killed."""
    return Response(status_code=400)


def _endpoint(settings: EmulatorSettings, endpoint: EndpointSettings) -> Endpoint:
    def scaler(work: WorkSource) -> Scaler:
        return Scaler(endpoint, work, settings.base_url, settings.api_key.get_secret_value())

    if endpoint.kind == "load-balancing":
        balancer = Balancer(endpoint)
        return BalancedEndpoint(endpoint, scaler(balancer), balancer)
    queue = Queue(endpoint)
    return QueueEndpoint(endpoint, scaler(queue), queue, Webhooks(endpoint), Batches(queue))
