"""The face of batches: /v2/{endpoint}/batch and below, as RunPod documents its beta.

Its documents leave open what the calls that change a batch answer: here it is always the batch.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emulator.endpoint import QueueEndpoint
from emulator.errors import BadRequest
from emulator.gateway.http import Json, parse_object, read_body, whole_number
from emulator.gateway.layers import Operation, with_auth, with_faults, with_latency
from emulator.work.batches import Batch
from emulator.work.submission import Submission, parse

PAGE_SIZE = 50


async def create(request: Request, endpoint: QueueEndpoint) -> Response:
    """A new draft, from a list of bodies as of /run."""
    body = await read_body(request, endpoint.settings.max_run_bytes)
    try:
        bodies = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"json is invalid; {error}") from None
    batch = endpoint.batches.create(_submissions(bodies, endpoint))
    return Json({"id": batch.id, "status": batch.status})


async def list_all(_: Request, endpoint: QueueEndpoint) -> Response:
    """Every batch, the newest first."""
    batches = endpoint.batches.newest_first()
    return Json({"batches": [_summary(endpoint, batch) for batch in batches]})


async def show(request: Request, endpoint: QueueEndpoint) -> Response:
    """How far the batch is."""
    return Json(_summary(endpoint, _batch(request, endpoint)))


async def rename(request: Request, endpoint: QueueEndpoint) -> Response:
    """Change the batch's name."""
    batch = _batch(request, endpoint)
    batch.name = str(parse_object(await request.body()).get("name", batch.name))
    return Json(_summary(endpoint, batch))


async def add(request: Request, endpoint: QueueEndpoint) -> Response:
    """Put more requests into a draft."""
    batch = _batch(request, endpoint)
    body = parse_object(await read_body(request, endpoint.settings.max_run_bytes))
    endpoint.batches.add(batch, _submissions(body.get("requests"), endpoint))
    return Json(_summary(endpoint, batch))


async def show_requests(request: Request, endpoint: QueueEndpoint) -> Response:
    """A page of the batch's requests, with their results."""
    requests = list(_batch(request, endpoint).requests.values())
    offset, limit = whole_number(request, "offset", 0), whole_number(request, "limit", PAGE_SIZE)
    page = requests[offset : offset + limit]
    return Json(
        {
            "requests": [endpoint.batches.view(one) for one in page],
            "total": len(requests),
            "offset": offset,
            "limit": limit,
            "hasMore": offset + limit < len(requests),
        }
    )


async def remove(request: Request, endpoint: QueueEndpoint) -> Response:
    """Take one request out of a draft."""
    batch = _batch(request, endpoint)
    endpoint.batches.remove(batch, request.path_params["request"])
    return Json(_summary(endpoint, batch))


async def finalize(request: Request, endpoint: QueueEndpoint) -> Response:
    """Queue what is in the draft."""
    batch = _batch(request, endpoint)
    endpoint.batches.finalize(batch)
    return Json(_summary(endpoint, batch))


async def cancel(request: Request, endpoint: QueueEndpoint) -> Response:
    """Cancel what waits."""
    batch = _batch(request, endpoint)
    endpoint.batches.cancel(batch)
    return Json(_summary(endpoint, batch))


def routes() -> list[Route]:
    """Every route of batches."""
    return [
        _route("", "POST", create),
        _route("", "GET", list_all),
        _route("/{batch}", "GET", show),
        _route("/{batch}", "PUT", rename),
        _route("/{batch}/requests", "POST", add),
        _route("/{batch}/requests", "GET", show_requests),
        _route("/{batch}/requests/{request}", "DELETE", remove),
        _route("/{batch}/finalize", "POST", finalize),
        _route("/{batch}/cancel", "POST", cancel),
    ]


def _route(path: str, method: str, operation: Operation[QueueEndpoint]) -> Route:
    layers = with_auth(QueueEndpoint, with_latency("client", with_faults("batch", operation)))
    return Route("/v2/{endpoint}/batch" + path, layers, methods=[method])


def _batch(request: Request, endpoint: QueueEndpoint) -> Batch:
    return endpoint.batches.get(request.path_params["batch"])


def _summary(endpoint: QueueEndpoint, batch: Batch) -> dict[str, Any]:
    return endpoint.batches.summary(batch, endpoint.settings.id)


def _submissions(bodies: Any, endpoint: QueueEndpoint) -> list[Submission]:
    if not isinstance(bodies, list) or not all(isinstance(body, dict) for body in bodies):
        raise BadRequest("json is invalid; a list of objects is expected")
    return [parse(body, endpoint.queue.default_policy()) for body in bodies]
