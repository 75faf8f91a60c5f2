"""The layers a call passes between its route and its operation, the outermost first.

The key, the way to RunPod and back, injected faults, rate limits, and the edge in front of RunPod's
API. Each is a function from operation to operation; a face names those its routes have.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from emulator.endpoint import Endpoint, QueueEndpoint
from emulator.errors import EmulatorError, WrongKind
from emulator.gateway.dropped import Dropped
from emulator.gateway.http import Handler, check_key, find_endpoint, refusal
from emulator.gateway.limits import Meter
from emulator.gateway.state import state_of
from emulator.settings import OperationName

BODILESS: Final = (204, 304)
"""HTTP has no room for a body in answers with these statuses."""

E = TypeVar("E", bound=Endpoint)

Operation = Callable[[Request, E], Awaitable[Response]]
"""Answers a call to an endpoint of its kind; refuses by raising an EmulatorError."""
Refuse = Callable[[Request, EmulatorError], Response]


def with_auth(kind: type[E], operation: Operation[E], refuse: Refuse = refusal) -> Handler:
    """The route of an operation: checks the key, finds the endpoint, words the refusals."""

    async def handler(request: Request) -> Response:
        try:
            check_key(request)
            endpoint = find_endpoint(request)
            if not isinstance(endpoint, kind):
                raise WrongKind("not allowed for QB API")
            return await operation(request, endpoint)
        except EmulatorError as error:
            return refuse(request, error)

    return handler


def with_latency(face: Literal["client", "worker"], operation: Operation[E]) -> Operation[E]:
    """The operation, as far away as the endpoint's settings say for this face.

    Loopback hides the network between the emulator and its callers. Half of the time passes before
    a call is looked at, half before its answer leaves.
    """

    async def call(request: Request, endpoint: E) -> Response:
        latency = endpoint.settings.latency
        await _travel(latency.one_way(face))
        try:
            answer = await operation(request, endpoint)
        except EmulatorError:
            await _travel(latency.one_way(face))
            raise
        await _travel(latency.one_way(face))
        return answer

    return call


def with_faults(name: OperationName, operation: Operation[E]) -> Operation[E]:
    """The operation, subject to the rules in force."""

    async def call(request: Request, endpoint: E) -> Response:
        met = state_of(request.app).faults.meet(name, endpoint.settings.id)
        for fault in met:
            await asyncio.sleep(fault.delay_seconds)
            if fault.drop == "call":
                return Dropped()
            if fault.status is not None:
                headers = {"content-type": "application/json", **fault.headers}
                body = None if fault.status in BODILESS else fault.body
                return Response(body, fault.status, headers)
        answer = await operation(request, endpoint)
        return Dropped(answer) if any(fault.drop == "answer" for fault in met) else answer

    return call


def with_limits(
    name: OperationName, operation: Operation[QueueEndpoint]
) -> Operation[QueueEndpoint]:
    """The operation, refused when it is called too often."""

    async def call(request: Request, endpoint: QueueEndpoint) -> Response:
        limit = endpoint.settings.limit(name)
        if limit is None:
            return await operation(request, endpoint)
        meters = state_of(request.app).meters
        meter = meters.setdefault((endpoint.settings.id, name), Meter(limit, endpoint.queue.clock))
        with meter.admitted():
            return await operation(request, endpoint)

    return call


def behind_edge(operation: Operation[E]) -> Operation[E]:
    """The operation, answered 524 when it takes longer than RunPod's edge waits."""

    async def call(request: Request, endpoint: E) -> Response:
        try:
            async with asyncio.timeout(endpoint.settings.edge_timeout_seconds):
                return await operation(request, endpoint)
        except TimeoutError:
            return PlainTextResponse("error code: 524", 524)

    return call


async def _travel(bounds: tuple[float, float]) -> None:
    least, jitter = bounds
    if seconds := least + random.uniform(0, jitter):  # noqa: S311  # nothing to guess here
        await asyncio.sleep(seconds)
