"""`GET /v1/models` and `GET /v1/models/{id}`: from memory, with no job and no worker.

`POST /v1/models/{id}/warm` is the one that does wake a worker, and does nothing else.
"""

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from proxy.errors import NotPermitted
from proxy.http.authentication import key_of, require_key, require_known_origin
from proxy.http.context import services_of

router = APIRouter(prefix="/v1/models", dependencies=[Depends(require_key)])


@router.api_route("", methods=["GET", "HEAD"])
async def list_models(request: Request) -> Response:
    """OpenAI's list of models, with the state of each one's endpoint."""
    services = services_of(request)
    services.request_updates()
    return JSONResponse(services.models.listing(key_of(request)))


@router.api_route("/{model_id:path}", methods=["GET", "HEAD"])
async def get_model(request: Request, model_id: str) -> Response:
    """One model; ids such as `Qwen/Qwen3-0.6B` hold slashes."""
    services = services_of(request)
    services.request_updates()
    return JSONResponse(services.models.get(model_id, key_of(request)))


@router.post("/{model_id:path}/warm", dependencies=[Depends(require_known_origin)])
async def warm_model(request: Request, model_id: str) -> Response:
    """Wake a worker for a model, and answer at once, while it starts; even if starts failed."""
    services, key = services_of(request), key_of(request)
    model = services.models.find(model_id, key)
    if not key.may_warm:
        raise NotPermitted("This API key may not wake workers.")
    if (monitor := model.backend.monitor) is not None:
        monitor.starts.forgive()
    services.warmer.wake(model)
    body = {"id": model.name, "object": "model.warm", "state": model.state}
    return JSONResponse(body, status_code=202)
