"""Latency: the network between the emulator and those who call it, which loopback hides.

Half of the time passes before a call is looked at, half before its answer leaves.
"""

import asyncio
import random
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from emulator.errors import EmulatorError
from emulator.operations import E, Operation


def distant(face: Literal["client", "worker"], operation: Operation[E]) -> Operation[E]:
    """The operation, as far away as the endpoint's settings say for this face."""

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


async def _travel(bounds: tuple[float, float]) -> None:
    least, jitter = bounds
    if seconds := least + random.uniform(0, jitter):  # noqa: S311  # nothing to guess here
        await asyncio.sleep(seconds)
