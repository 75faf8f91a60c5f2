"""`GET /metrics`: numbers for Prometheus, for whoever has a key."""

from fastapi import APIRouter, Request, Response

from proxy.metrics import CONTENT_TYPE
from proxy.services import services

router = APIRouter()


@router.api_route("/metrics", methods=["GET", "HEAD"])
async def metrics(request: Request) -> Response:
    """All counters, in Prometheus' text format."""
    here = services(request)
    here.keys.check(request)
    here.backends.note_jobs()
    return Response(here.metrics.page(), headers={"content-type": CONTENT_TYPE})
