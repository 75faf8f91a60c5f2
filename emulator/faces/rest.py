"""The face of RunPod's REST API, version 2: workers, a worker's log as events, and the bill.

Only `GET /v2/serverless/{id}/workers`, `.../workers/{workerId}/logs` and `/v2/billing/serverless`,
which RunPod serves at api.runpod.io. Shapes and errors are those of its OpenAPI document (2.0.0,
November 2026). A line's time is when the emulator first looked at it.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from emulator.endpoint import Endpoint
from emulator.errors import (
    EmulatorError,
    Forbidden,
    NotFound,
    TooManyRequests,
    Unauthorized,
)
from emulator.faces.billing_query import BillingQuery, timestamp
from emulator.faces.log_query import LogQuery
from emulator.fleet.bill import billed_seconds, bucket_of
from emulator.fleet.slot import Slot
from emulator.fleet.worker_log import Line
from emulator.gateway.http import Handler, Json, check_key, find_endpoint
from emulator.gateway.state import state_of

LOOK_SECONDS: Final = 0.1
"""Between two looks at a worker's log."""
VERSION: Final = 1
"""Of an endpoint's configuration, which never changes here."""
TITLES: Final = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
}


async def list_workers(request: Request) -> Response:
    """The active workers, each with its status, and how many are in each."""
    endpoint = find_endpoint(request)
    workers = [_view(slot, state) for slot, state in endpoint.scaler.slots()]
    names = ("running", "idle", "initializing", "throttled", "unhealthy")
    summary = {name: sum(w["status"] == name.upper() for w in workers) for name in names}
    summary["total"] = len(workers)
    return Json({"endpointVersion": VERSION, "summary": summary, "workers": workers})


async def worker_logs(request: Request) -> Response:
    """A worker's log: the lines that are there, then those that come, until the worker is gone."""
    endpoint = find_endpoint(request)
    worker_id = request.path_params["worker"]
    slot = next((s for s, _ in endpoint.scaler.slots() if s.worker_id == worker_id), None)
    if slot is None:
        raise NotFound("resource not found")
    events = _events(request, slot, LogQuery.parse(request))
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def list_billing(request: Request) -> Response:
    """What the workers of each endpoint have cost, in buckets of time, as far as there were any."""
    now = datetime.now(UTC)
    query = BillingQuery.parse(request, now)
    endpoints = state_of(request.app).endpoints
    asked = [one for name, one in endpoints.items() if query.endpoint in (None, name)]
    records = [record for endpoint in asked for record in _records(endpoint, query, now)]
    metadata = {
        "query": query.view(),
        "recordCount": len(records),
        "uniqueServerlessCount": len({record["serverlessId"] for record in records}),
        "totals": _amounts(sum((record["totalAmount"] for record in records), 0.0)),
    }
    return Json({"records": records, "metadata": metadata})


def _records(endpoint: Endpoint, query: BillingQuery, now: datetime) -> Iterator[dict[str, Any]]:
    seconds = billed_seconds(endpoint.scaler.starts, query.size, now)
    for start in sorted(seconds):
        if query.start <= start < query.end:
            yield {
                "startTime": timestamp(start),
                "endTime": timestamp(bucket_of(start, query.size)[1]),
                "serverlessId": endpoint.settings.id,
                **_amounts(seconds[start] * endpoint.settings.price_per_second),
            }


def _amounts(dollars: float) -> dict[str, float]:
    """All of it is for a GPU."""
    none = dict.fromkeys(("cpuAmount", "diskAmount", "feeAmount"), 0.0)
    return {"totalAmount": dollars, "gpuAmount": dollars, **none}


async def _events(request: Request, slot: Slot, query: LogQuery) -> AsyncIterator[bytes]:
    has_ended = slot.has_ended
    lines = slot.log.read()
    due, position = query.backlog(lines), len(lines)
    while True:
        for line in due:
            yield _event(line)
        if has_ended:
            return
        await asyncio.sleep(LOOK_SECONDS)
        has_ended = slot.has_ended or state_of(request.app).is_closing
        lines = slot.log.read()
        due, position = query.select(lines[position:]), len(lines)


def _event(line: Line) -> bytes:
    data = {"ts": line.ts, "source": line.source, "line": line.text}
    return b"id: %s\ndata: %s\n\n" % (line.id.encode(), msgspec.json.encode(data))


def _view(slot: Slot, state: str) -> dict[str, Any]:
    """A worker; what is not known before it is placed is null."""
    began = slot.start.placed_at
    now = datetime.now(UTC).timestamp()
    return {
        "id": slot.worker_id,
        "status": state.upper(),
        "isStale": False,
        "version": VERSION,
        "gpuCount": 1,
        "image": None,
        "uptimeSeconds": None if began is None else int(now - began),
        "gpuTypeId": None if began is None else "EMULATED",
        "dataCenterId": None,
        "startedAt": None if began is None else timestamp(datetime.fromtimestamp(began, UTC)),
    }


def routes() -> list[Route]:
    """They come before those of an endpoint that might be called `serverless` or `billing`."""
    path = "/v2/serverless/{endpoint}/workers"
    return [
        Route("/v2/billing/serverless", _guarded(list_billing), methods=["GET"]),
        Route(path, _guarded(list_workers), methods=["GET"]),
        Route(path + "/{worker}/logs", _guarded(worker_logs), methods=["GET"]),
    ]


def _guarded(operation: Handler) -> Handler:
    async def handler(request: Request) -> Response:
        state = state_of(request.app)
        try:
            has_right = _authenticate(request)
        except Unauthorized as error:
            return _problem(error)
        try:
            state.quotas.count()
            if not has_right:
                raise Forbidden("access denied")
            response = await operation(request)
        except EmulatorError as error:
            response = _problem(error)
        response.headers.update(state.quotas.headers())
        return response

    return handler


def _problem(error: EmulatorError) -> Response:
    detail = "resource not found" if isinstance(error, NotFound) else str(error)
    problem = {"title": TITLES[error.status], "status": error.status, "detail": detail}
    headers = {}
    if isinstance(error, TooManyRequests):
        headers["retry-after"] = str(error.retry_after_seconds)
    return Json(problem, error.status, headers, media_type="application/problem+json")


def _authenticate(request: Request) -> bool:
    """Unauthorized without a bearer token of ours; False for one that lacks the right to these."""
    settings = state_of(request.app).settings
    given = request.headers.get("authorization", "")
    if not re.match(r"Bearer \S", given):
        raise Unauthorized("missing bearer token")
    rest_key = settings.rest_api_key
    if rest_key and given.removeprefix("Bearer ").strip() == rest_key.get_secret_value():
        return True
    check_key(request)
    return rest_key is None
