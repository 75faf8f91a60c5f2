"""`GET /v1/models` and `GET /v1/models/{id}`: from memory, with no job and no worker.

`POST /v1/models/{id}/warm` is the one that does wake a worker, and does nothing else. Ids such as
`Qwen/Qwen3-0.6B` hold slashes.
"""

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from proxy.api.token_estimate import Tokens
from proxy.errors import NotPermitted
from proxy.http.authentication import KeyedRouter, key_of
from proxy.http.context import context_of, services_of


async def list_models(request: Request) -> Response:
    """OpenAI's list of models, with the state of each one's endpoint."""
    services = services_of(request)
    services.request_updates()
    return JSONResponse(services.models.listing(key_of(request)))


async def get_model(request: Request) -> Response:
    """One model."""
    services = services_of(request)
    services.request_updates()
    return JSONResponse(services.models.get(request.path_params["id"], key_of(request)))


async def warm_model(request: Request) -> Response:
    """Wake a worker for a model, and answer at once, while it starts; even if starts failed."""
    services, context, key = services_of(request), context_of(request), key_of(request)
    model = services.models.find(request.path_params["id"], key)
    if not key.may_warm:
        raise NotPermitted("This API key may not wake workers.")
    context.permit = await services.limiter.admit(key, Tokens())
    if (monitor := model.backend.monitor) is not None:
        monitor.ceiling.check()
        monitor.starts.forgive()
    on_spent = context.account_for(services, model, services.on_spent(key, model))
    services.warmer.wake(model, on_spent)
    body = {"id": model.name, "object": "model.warm", "state": model.state}
    return JSONResponse(body, status_code=202)


_reading, _waking = KeyedRouter(starts_jobs=False), KeyedRouter(starts_jobs=True)
_reading.add("/v1/models", list_models, ["GET"])
_reading.add("/v1/models/{id:path}", get_model, ["GET"])
_waking.add("/v1/models/{id:path}/warm", warm_model, ["POST"])
routers = (_reading, _waking)
