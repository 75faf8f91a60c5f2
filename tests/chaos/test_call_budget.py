"""Hundreds of streams at once against RunPod's documented limits, enforced strictly."""

import asyncio
import itertools
import statistics
import time

import openai
import psutil
import pytest

from tests.chaos.stack import stack_of_processes
from tests.chaos.storm import Stack
from tests.proxy.conftest import KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
CHUNKS = 15
CHUNK_SECONDS = 1.0


async def _read(client: openai.AsyncOpenAI) -> list[tuple[float, float]]:
    """When each chunk of a stream was made, and when it was here."""
    script = {"tokens": CHUNKS, "delay_seconds": CHUNK_SECONDS, "stamp": True}
    stream = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"script": script},
    )
    times: list[tuple[float, float]] = []
    async for chunk in stream:
        if made := chunk.choices[0].delta.content:
            times.append((float(made), time.monotonic()))
    assert len(times) == CHUNKS
    assert times == sorted(times)
    return times


async def _read_all(url: str, streams: int) -> list[list[tuple[float, float]]]:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=180
    ) as client:
        return await asyncio.gather(*(_read(client) for _ in range(streams)))


def test_three_hundred_streams_fit_runpods_limits() -> None:
    with stack_of_processes(streams=300, rate_limits=True) as stack:
        assert _share_of_refusals(stack, 300) < 0.01


def test_a_fifth_of_the_streams_fits_a_fifth_of_the_limits() -> None:
    """The same pressure for a fifth of the work, so that a small machine measures the pacing."""
    limits = {"stream": {"calls_per_10_seconds": 400, "concurrent": 80}}
    settings = {"stream_limit": "400/80"}
    with stack_of_processes(
        streams=60, settings=settings, rate_limits=True, limits=limits
    ) as stack:
        assert _share_of_refusals(stack, 60) < 0.01


def _share_of_refusals(stack: Stack, streams: int) -> float:
    """Read that many streams at once, and print what was seen; the share of refused calls."""
    process = psutil.Process(stack.proxy.process.pid)
    before = sum(process.cpu_times()[:2])
    read = asyncio.run(_read_all(stack.proxy.url, streams))
    busy = sum(process.cpu_times()[:2]) - before
    here = [[arrival for _, arrival in times] for times in read]
    gaps = [b - a for times in here for a, b in itertools.pairwise(times) if b - a > 0.005]
    added = [arrival - made for times in read for made, arrival in times]
    calls = _calls(stack)
    made = sum(count["admitted"] + count["refused"] for count in calls.values())
    refused = sum(count["refused"] for count in calls.values()) / made
    print(
        f"{streams} streams, a chunk every {CHUNK_SECONDS:g} s: gap {_spread(gaps)}; "
        f"added to a chunk {_spread(added)}; {made} calls, {refused:.2%} refused, "
        f"{1000 * busy / made:.1f} ms of the proxy's CPU for each"
    )
    return refused


def _spread(values: list[float]) -> str:
    p99 = statistics.quantiles(values, n=100)[98]
    return f"p50 {statistics.median(values):.2f} s, p99 {p99:.2f} s"


def _calls(stack: Stack) -> dict[str, dict[str, int]]:
    base = stack.runpod.url.removesuffix("/v2/ep")
    view = stack.runpod.http.get(f"{base}/_emulator").raise_for_status().json()
    calls: dict[str, dict[str, int]] = view["endpoints"]["ep"]["calls"]
    return calls
