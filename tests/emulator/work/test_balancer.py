"""What the scaler learns from a balancer, and how a request words its wish."""

import asyncio

import pytest

from emulator.errors import NoWorker
from emulator.settings import EndpointSettings
from emulator.work.affinity import Affinity
from emulator.work.balancer import Balancer


@pytest.mark.parametrize(
    ("header", "affinity"),
    [
        ("", Affinity()),
        ("w1", Affinity("w1")),
        (" strict w1 ", Affinity("w1", is_strict=True)),
        ("strict-resume w1", Affinity("w1", is_strict=True, resumes=True)),
        ("strictly w1", Affinity("strictly w1")),
    ],
)
def test_a_wish_is_a_worker_and_how_firmly(header: str, affinity: Affinity) -> None:
    assert Affinity.parse(header) == affinity


async def test_a_resumed_worker_comes_on_top_of_those_that_stay() -> None:
    balancer = Balancer(EndpointSettings(id="ep", kind="load-balancing"))
    for worker_id in ("stays", "leaves", "gone"):
        balancer.prepare(worker_id)
    for worker_id in ("leaves", "gone"):
        balancer.drain(worker_id)
    balancer.lose_worker("gone")
    assert balancer.least_workers() == 0
    request = asyncio.create_task(balancer.acquire(Affinity.parse("strict-resume gone")))
    await asyncio.sleep(0)
    assert (balancer.urgent(9), balancer.least_workers()) == (1, 2)
    assert balancer.name_worker() == "gone"
    assert balancer.name_worker() != "gone", "it is resumed once"
    assert not request.done(), "it waits although the worker has no process yet"
    await balancer.close()
    with pytest.raises(NoWorker):
        await request
