"""`GET /metrics`: numbers for Prometheus, for whoever has a key."""

from fastapi import Request, Response

from proxy.http.authentication import KeyedRouter
from proxy.http.context import services_of
from proxy.telemetry.metrics import CONTENT_TYPE


async def metrics(request: Request) -> Response:
    """All counters, in Prometheus' text format."""
    services = services_of(request)
    services.backends.note_in_flight()
    return Response(services.metrics.page(), headers={"content-type": CONTENT_TYPE})


router = KeyedRouter(starts_jobs=False)
router.add("/metrics", metrics, ["GET"])
