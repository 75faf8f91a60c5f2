"""The edge in front of RunPod's API: it gives up on a call that is not answered in time."""

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from emulator.operations import E, Operation


def behind_edge(operation: Operation[E]) -> Operation[E]:
    """The operation, answered 524 when it takes longer than the edge waits."""

    async def call(request: Request, endpoint: E) -> Response:
        try:
            async with asyncio.timeout(endpoint.settings.edge_timeout_seconds):
                return await operation(request, endpoint)
        except TimeoutError:
            return PlainTextResponse("error code: 524", 524)

    return call
