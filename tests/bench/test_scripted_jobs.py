"""The stopwatch on a worker: it plays RunPod, and these tests the worker's SDK."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.bench.http_server import Connection
from tests.bench.scripted_jobs import ScriptedJobs


@pytest.fixture
async def runpod() -> AsyncIterator[httpx.AsyncClient]:
    jobs = ScriptedJobs(jobs=2, tokens=3)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(jobs), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield client


async def times(runpod: httpx.AsyncClient) -> Any:
    return (await runpod.get("/bench/times")).json()


async def test_the_time_to_the_first_output_and_the_posts_are_noted(
    runpod: httpx.AsyncClient,
) -> None:
    began = time.monotonic()
    job = (await runpod.get("/v2/ep/job-take/w?gpu=x")).json()
    assert job["input"]["openai_input"]["max_tokens"] == 3
    for _ in range(3):
        await runpod.post(f"/v2/ep/job-stream/w/{job['id']}", json={"output": {}})
    told = await times(runpod)
    assert (told["posts"], told["tokens"], told["left"]) == (3, 6, 2)
    [seconds] = told["first_outputs"]
    assert 0 < seconds <= time.monotonic() - began


async def test_the_next_job_is_handed_out_when_one_is_done(runpod: httpx.AsyncClient) -> None:
    first = (await runpod.get("/v2/ep/job-take/w?gpu=x")).json()
    held = asyncio.create_task(runpod.get("/v2/ep/job-take-batch/w?gpu=x&batch_size=5"))
    await runpod.post(f"/v2/ep/job-done/w/{first['id']}", json={"output": []})
    [second] = (await held).json()
    assert second["id"] != first["id"]
    await runpod.post(f"/v2/ep/job-done/w/{second['id']}", json={"output": []})
    assert (await times(runpod))["left"] == 0
