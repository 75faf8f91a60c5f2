"""The scripted queue behaves as RunPod's does towards a proxy."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.bench.http_server import Connection
from tests.bench.scripted_queue import LIMITS, ScriptedQueue

INPUT = {"openai_route": "/v1/chat/completions", "openai_input": {"model": "m", "stream": True}}


@pytest.fixture
async def queue() -> AsyncIterator[httpx.AsyncClient]:
    """A client of its endpoint."""
    queue = ScriptedQueue(network_seconds=0, worker_seconds=0, has_limits=True)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(queue), "127.0.0.1", 0)
    ticking = queue.metronome.start()
    port = server.sockets[0].getsockname()[1]
    async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v2/ep") as client:
        yield client
    ticking.cancel()


async def submitted(queue: httpx.AsyncClient, **changes: Any) -> str:
    given = INPUT | {"openai_input": INPUT["openai_input"] | changes}  # type: ignore[operator]
    answer = await queue.post("/run", json={"input": given})
    return str(answer.json()["id"])


async def outputs(queue: httpx.AsyncClient, job: str) -> list[Any]:
    found: list[Any] = []
    while True:
        page = (await queue.get(f"/stream/{job}?wait=1000")).json()
        found += [item["output"] for item in page["stream"]]
        if page["status"] == "COMPLETED":
            return found


async def test_each_frame_is_handed_out_once_and_kept_for_status(queue: httpx.AsyncClient) -> None:
    job = await submitted(queue, max_tokens=4)
    frames = await outputs(queue, job)
    assert [frame["seq"] for frame in frames] == [0, 1, 2, 3]
    assert frames[0]["status"] == 200
    assert frames[-1]["end"]
    assert frames[-1]["text"].endswith("data: [DONE]\n\n")
    state = (await queue.get(f"/status/{job}")).json()
    assert (state["status"], state["output"]) == ("COMPLETED", frames)


async def test_a_plain_job_is_one_frame(queue: httpx.AsyncClient) -> None:
    [frame] = await outputs(queue, await submitted(queue, stream=False))
    assert frame["content_type"] == "application/json"
    assert "A short answer" in frame["text"]


async def test_a_cancelled_job_releases_its_poll_and_makes_no_more(
    queue: httpx.AsyncClient,
) -> None:
    job = await submitted(queue, max_tokens=1000)
    await queue.get(f"/stream/{job}")
    held = asyncio.create_task(queue.get(f"/stream/{job}?wait=60000"))
    assert (await queue.post(f"/cancel/{job}")).json()["status"] == "CANCELLED"
    await held
    count = len((await queue.get(f"/status/{job}")).json()["output"])
    await asyncio.sleep(0.11)
    assert len((await queue.get(f"/status/{job}")).json()["output"]) == count


async def test_calls_beyond_the_limit_are_refused_and_counted(queue: httpx.AsyncClient) -> None:
    allowed, _ = LIMITS["cancel"]
    answers = [await queue.post("/cancel/none") for _ in range(allowed + 3)]
    assert [answer.status_code for answer in answers] == [404] * allowed + [429] * 3
    counts = (await queue.get(f"{queue.base_url.join('/bench/counts')}")).json()
    assert counts["cancel"] == {"admitted": allowed, "refused": 3}
