"""The face RunPod does not have: /_emulator, to look inside and to make things go wrong."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emulator.endpoint import Endpoint
from emulator.errors import BadRequest, EmulatorError
from emulator.gateway.faults import Faults
from emulator.gateway.http import Handler, Json, check_key, find_endpoint, parse_object, refusal
from emulator.gateway.state import state_of
from emulator.settings import Fault, RoadSettings, Seconds

M = TypeVar("M", bound=BaseModel)


async def show(request: Request) -> Response:
    """Everything: faults, and each endpoint's jobs, workers and counters."""
    endpoints = state_of(request.app).endpoints
    return Json(
        {
            "endpoints": {
                name: _inside(endpoint, _calls(request, name))
                for name, endpoint in endpoints.items()
            },
            "faults": _faults(request).view(),
        }
    )


async def add_fault(request: Request) -> Response:
    """Put one more rule in force."""
    _faults(request).add(await _checked(request, Fault))
    return Json(_faults(request).view())


async def clear_faults(request: Request) -> Response:
    """Let everything go well again, whatever the settings say."""
    _faults(request).clear()
    return Json([])


async def reset(request: Request) -> Response:
    """Forget all jobs and counts, and return to the faults of the settings; workers stay."""
    state = state_of(request.app)
    for endpoint in state.endpoints.values():
        endpoint.reset()
        endpoint.scaler.throttle(False)
        endpoint.scaler.thaw()
        endpoint.scaler.road.reset()
        endpoint.scaler.starts.clear()
    state.faults.reset()
    state.meters.clear()
    state.quotas.reset()
    return Json({})


async def crash(request: Request) -> Response:
    """Kill the endpoint's workers, as if their machines had failed."""
    return Json({"killed": find_endpoint(request).scaler.crash()})


async def throttle(request: Request) -> Response:
    """Start no workers for the endpoint until told otherwise: POST throttles, DELETE ends it."""
    find_endpoint(request).scaler.throttle(request.method == "POST")
    return Json({})


class Freeze(BaseModel):
    """Which worker is to stop where it is, and for how long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: Seconds
    worker: str = ""
    """Its id; empty: all of the endpoint."""


async def freeze(request: Request) -> Response:
    """Stop workers' processes for a while: POST says which, DELETE lets all go on at once."""
    scaler = find_endpoint(request).scaler
    if request.method == "DELETE":
        scaler.thaw()
        return Json({})
    asked = await _checked(request, Freeze)
    return Json({"frozen": scaler.freeze(asked.seconds, asked.worker)})


async def set_road(request: Request) -> Response:
    """Have the road to the workers' ports be like this: PUT says how, DELETE lets all go well."""
    road = find_endpoint(request).scaler.road
    if request.method == "DELETE":
        road.follow(RoadSettings())
    else:
        road.follow(await _checked(request, RoadSettings))
    return Json(road.view())


async def cut_road(request: Request) -> Response:
    """Reset every connection to the workers' ports."""
    return Json({"cut": find_endpoint(request).scaler.road.cut()})


async def move_road(request: Request) -> Response:
    """Give the workers other public ports, of which they do not learn."""
    road = find_endpoint(request).scaler.road
    road.move()
    return Json(road.view())


def routes() -> list[Route]:
    """Every control route."""
    return [
        _route("", ["GET"], show),
        _route("/faults", ["POST"], add_fault),
        _route("/faults", ["DELETE"], clear_faults),
        _route("/reset", ["POST"], reset),
        _route("/{endpoint}/crash", ["POST"], crash),
        _route("/{endpoint}/throttle", ["POST", "DELETE"], throttle),
        _route("/{endpoint}/freeze", ["POST", "DELETE"], freeze),
        _route("/{endpoint}/road", ["PUT", "DELETE"], set_road),
        _route("/{endpoint}/road/cut", ["POST"], cut_road),
        _route("/{endpoint}/road/move", ["POST"], move_road),
    ]


def _route(
    path: str, methods: list[str], control: Callable[[Request], Awaitable[Response]]
) -> Route:
    return Route("/_emulator" + path, _with_key(control), methods=methods)


def _with_key(control: Callable[[Request], Awaitable[Response]]) -> Handler:
    async def handler(request: Request) -> Response:
        try:
            check_key(request)
            return await control(request)
        except EmulatorError as error:
            return refusal(request, error)

    return handler


async def _checked(request: Request, model: type[M]) -> M:
    try:
        return model.model_validate(parse_object(await request.body()))
    except ValidationError as error:
        raise BadRequest(str(error)) from None


def _faults(request: Request) -> Faults:
    return state_of(request.app).faults


def _calls(request: Request, endpoint_id: str) -> dict[str, dict[str, int]]:
    """How many calls of each operation were within the rate limits, and how many beyond."""
    return {
        operation: {"admitted": meter.admitted_calls, "refused": meter.refused_calls}
        for (endpoint, operation), meter in state_of(request.app).meters.items()
        if endpoint == endpoint_id
    }


def _inside(endpoint: Endpoint, calls: dict[str, dict[str, int]]) -> dict[str, Any]:
    starts = [asdict(start) for start in endpoint.scaler.starts]
    return {
        "health": endpoint.health(),
        "calls": calls,
        "starts": starts,
        "road": endpoint.scaler.road.view(),
        **endpoint.inside(),
    }
