"""`GET /metrics`: numbers for Prometheus, for whoever has a key."""

from fastapi import APIRouter, Depends, Request, Response

from proxy.http.authentication import require_key
from proxy.http.context import services_of
from proxy.metrics import CONTENT_TYPE

router = APIRouter(dependencies=[Depends(require_key)])


@router.api_route("/metrics", methods=["GET", "HEAD"])
async def metrics(request: Request) -> Response:
    """All counters, in Prometheus' text format."""
    services = services_of(request)
    services.backends.note_in_flight()
    return Response(services.metrics.page(), headers={"content-type": CONTENT_TYPE})
