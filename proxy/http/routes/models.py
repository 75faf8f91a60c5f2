"""`GET /v1/models` and `GET /v1/models/{id}`: from memory, with no job and no worker.

`POST /v1/models/{id}/warm` is the one that does wake a worker, and does nothing else.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from proxy.errors import NotPermitted
from proxy.services import services

router = APIRouter(prefix="/v1/models")


@router.api_route("", methods=["GET", "HEAD"])
async def list_models(request: Request) -> Response:
    """OpenAI's list of models, with the state of each one's endpoint."""
    here = services(request)
    key = here.keys.check(request)
    here.watch_all()
    return JSONResponse(here.models.listing(key))


@router.api_route("/{model_id:path}", methods=["GET", "HEAD"])
async def get_model(request: Request, model_id: str) -> Response:
    """One model; ids such as `Qwen/Qwen3-0.6B` hold slashes."""
    here = services(request)
    key = here.keys.check(request)
    here.watch_all()
    return JSONResponse(here.models.get(model_id, key))


@router.post("/{model_id:path}/warm")
async def warm_model(request: Request, model_id: str) -> Response:
    """Wake a worker for a model, and answer at once, while it starts; even if starts failed."""
    here = services(request)
    key = here.check_caller(request)
    model = here.models.find(model_id, key)
    if not key.may_warm:
        raise NotPermitted("This API key may not wake workers.")
    if model.backend.watch is not None:
        model.backend.watch.starts.forgive()
    here.warmer.wake(model)
    body = {"id": model.name, "object": "model.warm", "state": model.state}
    return JSONResponse(body, status_code=202)
