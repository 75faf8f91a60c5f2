"""The network between RunPod and those who call it."""

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from starlette.responses import Response

from emulator.latency import distant
from emulator.settings import EndpointSettings
from tests.emulator.running import Client, eventually, one_endpoint
from tests.virtual_time import run_virtually

FAR = 0.3


def seconds(call: Callable[[], object]) -> float:
    """How long the call takes."""
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def jobs_inside(client: Client) -> int:
    """How many jobs there are, seen from where there is no latency."""
    return len(client.control("GET", "")["endpoints"]["ep"]["jobs"])


def test_clients_can_be_far_away() -> None:
    with one_endpoint(latency={"client_seconds": FAR}) as client:
        assert seconds(client.health) >= FAR
        assert seconds(lambda: client.get("/status/nobody")) >= FAR, "a refusal travels as far"


def test_workers_can_be_far_away_and_clients_near() -> None:
    """A worker's chunks come one round trip apart, since each is waited for."""
    with one_endpoint(latency={"worker_seconds": FAR, "client_seconds": 0}) as client:
        client.run({"a": 1})
        worker_id, job_id = client.take()
        assert seconds(lambda: client.chunk(worker_id, job_id, "x")) >= FAR
        assert client.stream(job_id)["stream"] == [{"output": "x"}]


def test_a_call_has_its_effect_half_way() -> None:
    with one_endpoint(latency={"client_seconds": 2}) as client, ThreadPoolExecutor() as pool:
        call = pool.submit(client.run, {"a": 1})
        assert jobs_inside(client) == 0
        eventually(lambda: jobs_inside(client) == 1)
        assert not call.done()


def test_jitter_makes_each_round_trip_longer_by_a_little() -> None:
    async def round_trips() -> list[float]:
        async def answer(_: Any, __: Any) -> Response:
            return Response()

        latency = {"client_seconds": 1, "client_jitter_seconds": 0.5}
        settings = EndpointSettings.model_validate({"id": "ep", "latency": latency})
        call = distant("client", answer)
        clock = asyncio.get_running_loop()
        moments = [clock.time()]
        for _ in range(50):
            await call(None, SimpleNamespace(settings=settings))  # type: ignore[arg-type]
            moments.append(clock.time())
        return [later - earlier for earlier, later in itertools.pairwise(moments)]

    found = run_virtually(round_trips())
    assert 1 <= min(found) < 1.25 < max(found) <= 1.5
