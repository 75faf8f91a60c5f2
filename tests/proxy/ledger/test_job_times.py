"""RunPod is asked how long jobs took: of so many at most, and not more often than may be."""

import asyncio
import itertools

import pytest

from proxy.api.answer import Course
from proxy.errors import JobNotFound, UpstreamUnavailable
from proxy.ledger import job_times
from proxy.ledger.job_times import PAUSES, JobTimes
from tests.virtual_time import run_virtually

TOLD = Course(execution_seconds=4.0)


async def asked(times: JobTimes, *answers: Course | Exception | None) -> tuple[int, list[Course]]:
    """Ask of one job that is answered so; how often it was, and what was told."""
    left, told = list(answers), list[Course]()

    async def ask() -> Course | None:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    times.ask(ask, told.append)
    assert times._asking is not None
    await times._asking
    return len(answers) - len(left), told


async def test_a_job_is_asked_for_until_it_has_ended() -> None:
    times = JobTimes(10_000)
    unknown, away = JobNotFound(), UpstreamUnavailable("RunPod answered HTTP 500.")
    assert await asked(times, None, away, TOLD, None) == (3, [TOLD])
    assert await asked(times, unknown, TOLD) == (1, [])
    assert await asked(times, *[None] * 9) == (len(PAUSES), [])
    await times.close()


async def test_of_more_jobs_than_may_wait_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_times, "MAX_JOBS", 2)
    times, told = JobTimes(10_000), list[Course]()

    async def ask() -> Course:
        return TOLD

    for _ in range(5):
        times.ask(ask, told.append)
    assert times._asking is not None
    await times._asking
    assert told == [TOLD] * 2
    await times.close()


@pytest.mark.parametrize(
    ("limit", "pauses"),
    [(10, [1.0] * 6), (16, [0.625] * 6), (25, [0, 0.8] * 3), (10_000, [0, 0, 0, 0, 1.0, 0])],
)
def test_calls_take_a_share_of_runpods_limit_and_are_few(limit: float, pauses: list[float]) -> None:
    async def moments() -> list[float]:
        times, found = JobTimes(limit), list[float]()

        async def ask() -> Course:
            found.append(asyncio.get_running_loop().time())
            return TOLD

        for _ in range(7):
            times.ask(ask, lambda _: None)
        assert times._asking is not None
        await times._asking
        return found

    found = [later - one for one, later in itertools.pairwise(run_virtually(moments()))]
    assert found == pytest.approx(pauses)
