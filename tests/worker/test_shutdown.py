"""A worker that is about to end takes no new jobs, by what it tells RunPod's SDK."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from runpod.serverless.modules.rp_scale import JobScaler

from worker.shutdown import NoneLeft


async def asked_for(concurrency: int) -> list[int]:
    """How many jobs at a time the SDK asks for; it has none, and is given none."""
    asked = []

    async def fetch(session: Any, jobs_needed: int) -> None:
        asked.append(jobs_needed)
        await asyncio.sleep(60)

    scaler = JobScaler({"handler": None, "concurrency_modifier": lambda _: concurrency})
    scaler.jobs_fetcher = fetch
    with suppress(TimeoutError):
        await asyncio.wait_for(scaler.get_jobs(None), 1.5)
    return asked


@pytest.mark.slow
async def test_no_jobs_are_asked_for_once_none_are_left_whatever_the_number_was() -> None:
    for number in (1, 8):
        assert await asked_for(NoneLeft(number)) == []
        assert await asked_for(number) == [number]


def test_those_that_are_taken_are_started_as_before() -> None:
    assert NoneLeft(8) == 8
    assert max(NoneLeft(8), 7) == 8
