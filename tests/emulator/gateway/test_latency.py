"""The network between RunPod and those who call it."""

import asyncio
import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from emulator.app import create_app
from emulator.gateway.layers import with_latency
from emulator.settings import EmulatorSettings, EndpointSettings
from tests.emulator.running import one_endpoint, queue_of
from tests.virtual_time import run_virtually

FAR = 0.3
ALMOST = 0.95 * FAR
"""The server's clock counts in whole milliseconds."""


def seconds(call: Callable[[], object]) -> float:
    """How long the call takes."""
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def test_clients_can_be_far_away() -> None:
    with one_endpoint(latency={"client_seconds": FAR}) as client:
        assert seconds(client.health) >= ALMOST
        assert seconds(lambda: client.get("/status/unknown")) >= ALMOST, "a refusal travels as far"


def test_workers_can_be_far_away_and_clients_near() -> None:
    """A worker's chunks come one round trip apart, since each is waited for."""
    with one_endpoint(latency={"worker_seconds": FAR, "client_seconds": 0}) as client:
        client.run({"a": 1})
        worker_id, job_id = client.take()
        assert seconds(lambda: client.chunk(worker_id, job_id, "x")) >= ALMOST
        assert client.stream(job_id)["stream"] == [{"output": "x"}]


def test_a_call_has_its_effect_half_way() -> None:
    async def moments() -> tuple[float, float]:
        endpoint = {"id": "ep", "latency": {"client_seconds": 2}}
        app = create_app(EmulatorSettings.model_validate({"endpoints": [endpoint]}))
        transport = httpx.ASGITransport(app=app)
        headers = {"authorization": "rpa_local"}
        clock = asyncio.get_running_loop()
        async with httpx.AsyncClient(transport=transport, headers=headers) as http:
            call = asyncio.create_task(http.post("http://x/v2/ep/run", json={"input": {"a": 1}}))
            await queue_of(app).arrivals.wait()
            effect = clock.time()
            assert (await call).status_code == 200
        return effect, clock.time()

    effect, end = run_virtually(moments())
    assert effect == pytest.approx(1, abs=0.02)
    assert end == pytest.approx(2, abs=0.02)


def test_jitter_makes_each_round_trip_longer_by_a_little() -> None:
    async def round_trips() -> list[float]:
        async def answer(_: Any, __: Any) -> Response:
            return Response()

        latency = {"client_seconds": 1, "client_jitter_seconds": 0.5}
        settings = EndpointSettings.model_validate({"id": "ep", "latency": latency})
        call = with_latency("client", answer)
        clock = asyncio.get_running_loop()
        moments = [clock.time()]
        for _ in range(50):
            await call(None, SimpleNamespace(settings=settings))  # type: ignore[arg-type]
            moments.append(clock.time())
        return [later - earlier for earlier, later in itertools.pairwise(moments)]

    found = run_virtually(round_trips())
    assert 1 <= min(found) < 1.25 < max(found) <= 1.5
