"""A short storm; `make chaos` runs long ones."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.chaos.storm import Stack, storm, stormy_stack
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # A client that leaves leaves a generator of openai's and httpx's behind, which may be collected
    # in the emulator's thread.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"
    ),
]
SEED = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with stormy_stack() as stack:
        yield stack


@pytest.fixture
def direct_stack() -> Iterator[Stack]:
    with stormy_stack(direct=True) as stack:
        yield stack


def test_every_answer_is_exactly_right_or_an_honest_error(stack: Stack) -> None:
    print(f"CHAOS_SEED={SEED}")
    report = asyncio.run(storm(stack, seed=SEED, requests=150))
    print(report)
    assert report.wrong == []
    assert report.ends["broken off"] == 0
    assert report.ends["whole"] > (report.ends.total() - report.refused_starts) / 2
    stack.wait_until_answered()
    stack.wait_until_quiet()
    stack.wait_until_accounted(report)
    stack.leave_midway()


def test_a_storm_leaves_nothing_behind(stack: Stack) -> None:
    process = psutil.Process(stack.proxy.process.pid)
    before = process.memory_info().rss
    report = asyncio.run(storm(stack, seed=SEED + 1, requests=100))
    assert report.wrong == []
    stack.wait_until_quiet()
    # What is left open are idle connections, of which there are never more than clients at once.
    wait_until(lambda: _established(process) <= 60)
    assert process.num_threads() < 20
    assert process.memory_info().rss - before < 30 * 2**20
    stack.proxy.process.send_signal(signal.SIGTERM)
    assert stack.proxy.process.wait(timeout=60) == 0
    left = {path.name for path in stack.proxy.state_dir.glob("*-*")}
    assert not any(name.startswith(("jobs-", "ledger-")) for name in left)


def _established(process: psutil.Process) -> int:
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections())


def test_answers_stay_right_while_the_direct_road_breaks_at_random(direct_stack: Stack) -> None:
    report = asyncio.run(storm(direct_stack, seed=SEED, requests=200))
    print(report)
    assert report.wrong == []
    assert report.ends["broken off"] == 0
    assert report.ends["whole"] > (report.ends.total() - report.refused_starts) / 2
    assert report.roads["direct"] > 0
    assert report.spells.total() > 0
    direct_stack.wait_until_answered()
    direct_stack.wait_until_quiet()
    direct_stack.wait_until_accounted(report)
    direct_stack.leave_midway()
