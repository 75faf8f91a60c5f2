"""Fair turns over the whole road: a flood beside another key, and a queue that RunPod scales by."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from tests.emulator.running import API_KEY, LIGHT, Client, one_endpoint
from tests.end_to_end.conftest import Road, road
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.test_metrics import value
from tests.servers import serve
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OTHER_KEY = "sk-other"
FLOOD = 300
ASKED = 5
TOKEN_SECONDS = 0.1


@pytest.fixture
def shared_road() -> Iterator[Road]:
    """One worker that runs four requests at once, and two keys that share it."""
    settings = {
        "api_keys": f"{KEY},{OTHER_KEY}",
        "worker_concurrency": 4,
        "queue_timeout_seconds": 600,
    }
    # More than ever come: RunPod's SDK counts a job twice until it begins on it, and takes nothing
    # for a second when it is full by that.
    env = {"MAX_CONCURRENCY": "20"}
    with road(min_workers=1, settings=settings, worker_env=env) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        yield stack


def answer(tokens: int) -> dict[str, Any]:
    """A chat whose answer takes its time."""
    return chat(script={"tokens": tokens, "delay_seconds": TOKEN_SECONDS})


async def seconds_of(client: httpx.AsyncClient) -> float:
    """How long the other key waits for an answer, in the middle of several."""
    headers = {"authorization": f"Bearer {OTHER_KEY}"}
    took = []
    for _ in range(ASKED):
        began = time.monotonic()
        response = await client.post("/chat/completions", json=answer(10), headers=headers)
        assert response.status_code == 200
        took.append(time.monotonic() - began)
    return statistics.median(took)


def test_a_flood_does_not_double_what_another_key_waits(shared_road: Road) -> None:
    async def measure() -> tuple[float, float]:
        limits = httpx.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(
            base_url=shared_road.url, headers=headers, timeout=600, limits=limits
        ) as client:
            alone = await seconds_of(client)
            flood = [
                asyncio.create_task(client.post("/chat/completions", json=answer(5 + n % 11)))
                for n in range(FLOOD)
            ]
            most = FLOOD * 0.9
            await asyncio.to_thread(wait_until, lambda: waiting(shared_road) >= most)
            beside = await seconds_of(client)
            assert await asyncio.to_thread(waiting, shared_road) > FLOOD / 2
            for request in flood:
                request.cancel()
            await asyncio.gather(*flood, return_exceptions=True)
            return alone, beside

    alone, beside = asyncio.run(measure())
    assert beside < 2 * alone, (alone, beside)
    wait_until(lambda: waiting(shared_road) == 0)
    shared_road.wait_for_no_jobs()


def waiting(stack: Road) -> float:
    """How many requests wait for their turn."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=stack.url.removesuffix("/v1"), headers=headers) as client:
        return value(client, "proxy_turns_waiting", endpoint="ep")


def state_of(runpod: Client) -> tuple[int, int, int]:
    """Its workers that run, its jobs that run, and those in its queue."""
    health = runpod.health()
    jobs, workers = health["jobs"], health["workers"]
    return workers["running"], jobs["inProgress"], jobs["inQueue"]


@pytest.mark.parametrize(
    "scaler",
    [
        {"scaler": "request_count", "scaler_value": 1},
        {"scaler": "queue_delay", "scaler_value": 0.3},
    ],
    ids=["request count", "queue delay"],
)
def test_all_workers_are_started_that_are_without_turns(
    scaler: dict[str, Any], tmp_path: Path
) -> None:
    until = tmp_path / "all are up"
    with one_endpoint(worker=LIGHT, max_workers=3, **scaler) as runpod:
        settings = settings_for(
            runpod.url.removesuffix("/v2/ep"),
            runpod_api_key=API_KEY,
            api_keys=f"{KEY},{OTHER_KEY}",
            worker_concurrency=1,
            queue_timeout_seconds=60,
        )
        headers = {"authorization": f"Bearer {KEY}"}

        async def ask(url: str) -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
                body = chat(until=str(until))
                asked = [
                    asyncio.create_task(client.post("/v1/chat/completions", json=body))
                    for _ in range(8)
                ]
                await asyncio.to_thread(wait_until, lambda: state_of(runpod) == (3, 3, 1))
                until.touch()
                return await asyncio.gather(*asked)

        with serve(create_app(settings)) as url:
            assert [answer.status_code for answer in asyncio.run(ask(url))] == [200] * 8
