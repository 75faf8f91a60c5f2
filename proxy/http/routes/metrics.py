"""`GET /metrics`: numbers for Prometheus, for whoever has a key, its own key, or everybody."""

import asyncio
import hmac

from fastapi import APIRouter, Request, Response

from proxy.access.keys import given_digest
from proxy.config.tables import digest
from proxy.errors import InvalidAPIKey
from proxy.http.context import context_of, services_of
from proxy.telemetry.metrics import CONTENT_TYPE

router = APIRouter()


@router.api_route("/metrics", methods=["GET", "HEAD"])
async def metrics(request: Request) -> Response:
    """All numbers, in Prometheus' text format."""
    await _check(request)
    services = services_of(request)
    services.backends.note_in_flight()
    if services.ledger is not None:
        services.metrics.note_ledger(waiting=services.ledger.waiting, lost=services.ledger.lost)
    services.metrics.live.tell(model.base_label for model in services.models)
    # With many keys and models it takes a tenth of a second; no stream should stand still so long.
    page = await asyncio.to_thread(services.metrics.page)
    return Response(page, headers={"content-type": CONTENT_TYPE})


async def _check(request: Request) -> None:
    """Raise InvalidAPIKey unless this client may read them.

    Where they have a key of their own, those of clients do not open them: they tell of all keys.
    """
    services, context = services_of(request), context_of(request)
    settings, headers = services.settings, request.headers
    if settings.metrics_public:
        return
    if settings.metrics_key is None:
        context.key = await services.keys.check(headers)
    elif not hmac.compare_digest(given_digest(headers), digest(settings.metrics_key)):
        context.key = await services.keys.holder(headers)
        if not context.key.may_administer:
            raise InvalidAPIKey("The numbers have a key of their own (PROXY_METRICS_KEY).")
