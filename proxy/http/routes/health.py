"""`/health`: the process is alive. `/ready`: it takes requests. Neither asks RunPod anything."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from proxy.http.context import services_of

router = APIRouter()


@router.api_route("/health", methods=["GET", "HEAD"])
async def health() -> Response:
    """200 as long as the process serves at all."""
    return JSONResponse({"status": "ok"})


@router.api_route("/ready", methods=["GET", "HEAD"])
async def ready(request: Request) -> Response:
    """200 while new requests are welcome, 503 once the proxy is shutting down.

    Endpoints that have spent their daily budgets are counted: others, and fallbacks, go on. So are
    rows of the ledger that wait for its database, and keep no request away.
    """
    services = services_of(request)
    if services.is_draining:
        return JSONResponse({"status": "draining"}, status_code=503)
    told: dict[str, str | int] = {"status": "ready"}
    if paused := services.backends.paused():
        told["paused_endpoints"] = paused
    if services.ledger is not None:
        told |= services.ledger.troubles
    return JSONResponse(told)
