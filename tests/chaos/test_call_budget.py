"""300 streams at once against RunPod's documented limits, enforced strictly."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

import openai
import pytest

from tests.chaos.storm import Stack
from tests.emulator.running import API_KEY, emulator
from tests.proxy.conftest import KEY
from tests.proxy.process import Proxy
from tests.road.conftest import endpoint_settings
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STREAMS = 300
WORDS = 15
WORD_SECONDS = 1.0


@pytest.fixture
def strict_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose RunPod refuses every call beyond its limits."""
    settings = endpoint_settings() | {"rate_limits": True, "min_workers": 1, "scaler_value": 1000}
    settings["env"] |= {"MAX_CONCURRENCY": str(STREAMS + 50)}
    with ExitStack() as stack:
        runpod = stack.enter_context(emulator(ep=settings))("ep")
        proxy = Proxy(
            runpod.url.removesuffix("/v2/ep"),
            runpod_api_key=API_KEY,
            state_dir=tmp_path_factory.mktemp("state"),
        )
        stack.callback(proxy.close)
        wait_until(lambda: runpod.workers("idle") == 1, seconds=60)
        yield Stack(proxy, runpod, int(settings["env"]["WORKER_VLLM_PORT"]))


async def _read(client: openai.AsyncOpenAI, number: int) -> tuple[str, list[float]]:
    """A stream's text, and when its chunks came."""
    text = " ".join(f"{number}-{i}" for i in range(WORDS))
    stream = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"script": {"text": text, "delay_seconds": WORD_SECONDS}},
    )
    got, times = "", []
    async for chunk in stream:
        got += chunk.choices[0].delta.content or ""
        times.append(time.monotonic())
    assert got == text
    return text, times


async def _read_all(url: str) -> list[tuple[str, list[float]]]:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=180
    ) as client:
        return await asyncio.gather(*(_read(client, number) for number in range(STREAMS)))


def test_three_hundred_streams_fit_runpods_limits(strict_stack: Stack) -> None:
    read = asyncio.run(_read_all(strict_stack.proxy.url))
    gaps = [b - a for _, times in read for a, b in itertools.pairwise(times) if b > a]
    calls = _calls(strict_stack)
    made = sum(count["admitted"] + count["refused"] for count in calls.values())
    refused = sum(count["refused"] for count in calls.values()) / made
    print(
        f"{STREAMS} streams, a chunk every {WORD_SECONDS} s: "
        f"gap p50 {statistics.median(gaps):.2f} s, "
        f"p99 {statistics.quantiles(gaps, n=100)[98]:.2f} s; {made} calls, "
        f"{refused:.2%} refused"
    )
    assert refused < 0.01


def _calls(stack: Stack) -> dict[str, dict[str, int]]:
    base = stack.runpod.url.removesuffix("/v2/ep")
    view = stack.runpod.http.get(f"{base}/_emulator").raise_for_status().json()
    calls: dict[str, dict[str, int]] = view["endpoints"]["ep"]["calls"]
    return calls
