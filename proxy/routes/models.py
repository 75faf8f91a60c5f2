"""`GET /v1/models` and `GET /v1/models/{id}`: from memory, with no job and no worker."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from proxy.services import services

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(request: Request) -> Response:
    """OpenAI's list of models."""
    here = services(request)
    here.keys.check(request)
    return JSONResponse(here.models.listing())


@router.get("/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Response:
    """One model; ids such as `Qwen/Qwen3-0.6B` hold slashes."""
    here = services(request)
    here.keys.check(request)
    return JSONResponse(here.models.get(model_id))
