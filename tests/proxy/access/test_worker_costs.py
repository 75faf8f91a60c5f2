"""What the workers of an endpoint cost: between two looks, whoever looks."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.access.shared_worker_costs import SharedWorkerCosts
from proxy.access.spending import FILE, Spending, Spent
from proxy.access.worker_costs import MAX_GAP_SECONDS, WorkerCosts
from proxy.storage.shared_state import SharedState
from tests.proxy.access.test_spending import Clock
from tests.redis_server import RedisServer, redis_server

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
PRICE = 0.5


def seconds(dollars: float, number: float) -> Spent:
    return Spent(pytest.approx(dollars), pytest.approx(number))  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON)


def later(clock: Clock, seconds: float) -> None:
    clock.now += timedelta(seconds=seconds)


async def test_between_two_looks_as_many_workers_are_paid_for_as_the_first_has_seen(
    tmp_path: Path, clock: Clock
) -> None:
    costs = WorkerCosts(Spending(tmp_path, clock))
    for workers, passed in ((0, 100), (2, 5), (1, 10), (0, 1000)):
        await costs.look("ep", workers, price=PRICE)
        later(clock, passed)
    assert await costs.look("ep", 1, price=PRICE) == seconds(10.0, 20.0)
    assert costs.today("other") == Spent()
    later(clock, 3600)  # nobody has looked for an hour
    assert await costs.look("ep", 1, price=PRICE) == seconds(40.0, 20.0 + MAX_GAP_SECONDS)
    later(clock, 12 * 3600)
    assert costs.today("ep") == Spent()
    costs.spending.close()


async def test_a_restart_and_a_second_proxy_with_the_same_folder_count_on(
    tmp_path: Path, clock: Clock
) -> None:
    one, other = (WorkerCosts(Spending(tmp_path, clock)) for _ in range(2))
    await one.look("ep", 1, price=PRICE)
    for _ in range(5):
        for costs in (one, other):
            later(clock, 1)
            await costs.look("ep", 1, price=PRICE)
    one.spending.close()
    other.spending.close()
    later(clock, 2)
    again = WorkerCosts(Spending(tmp_path, clock))
    assert again.today("ep") == seconds(5.0, 10.0)
    assert await again.look("ep", 0, price=PRICE) == seconds(6.0, 12.0)
    again.spending.close()


async def test_where_runpod_does_not_tell_the_seconds_of_jobs_count(
    tmp_path: Path, clock: Clock
) -> None:
    costs = WorkerCosts(Spending(tmp_path, clock))
    later(clock, 10)
    assert await costs.look("ep", None, price=PRICE, job_seconds=3) == seconds(1.5, 3.0)
    costs.spending.close()


async def test_a_file_that_cannot_be_written_is_made_good_for(tmp_path: Path, clock: Clock) -> None:
    costs = WorkerCosts(Spending(tmp_path, clock))
    await costs.look("ep", 1, price=PRICE)
    busy = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    later(clock, 10)
    assert await costs.look("ep", 1, price=PRICE) == seconds(5.0, 10.0)
    busy.execute("ROLLBACK")
    busy.close()
    later(clock, 10)
    found = await costs.look("ep", 0, price=PRICE)
    assert 20.0 <= found.seconds <= 30.0  # of the time without a file a part may count twice
    costs.spending.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


async def test_copies_count_each_moment_once_and_know_what_others_have_counted(
    redis: RedisServer, tmp_path: Path
) -> None:
    states = [SharedState(redis.url) for _ in range(3)]
    clocks = [Clock(NOON) for _ in states]
    one, other, new = (
        SharedWorkerCosts(Spending(tmp_path / str(number), clock), state)
        for number, (clock, state) in enumerate(zip(clocks, states, strict=True))
    )
    # By the clock of Redis next to no time passes; what was told of jobs is what can be counted on.
    await one.look("ep", None, price=PRICE, job_seconds=100)
    await other.look("ep", None, price=PRICE, job_seconds=10)
    assert (await one.look("ep", 1, price=PRICE)).dollars == pytest.approx(55.0)
    first = await new.look("ep", 1, price=PRICE)
    second = await new.look("ep", 1, price=PRICE)
    assert 110.0 <= first.seconds <= second.seconds < 200.0
    redis.stop()
    assert (await one.look("ep", 1, price=PRICE)).dollars == pytest.approx(50.0)
    redis.start()  # and has forgotten all
    assert (await other.look("ep", 1, price=PRICE)).dollars == pytest.approx(5.0)
    for costs, state in zip((one, other, new), states, strict=True):
        await state.close()
        costs.spending.close()
