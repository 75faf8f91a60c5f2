"""The deadlines of one call: which one it is under, and what passing it says."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.backends.deadlines import Deadlines, Shutdown, Terms
from proxy.errors import (
    ColdStartTimeout,
    FirstTokenTimeout,
    IdleTimeout,
    ProxyError,
    Stopping,
    TotalTimeout,
    UpstreamUnavailable,
)

PHASES = ("connect", "queue", "first_token", "idle", "total")


def deadlines(*, shutdown: Any = None, **timeouts: Any) -> Deadlines:
    """Deadlines of a call that has just begun; those not named are far away."""
    seconds: dict[str, Any] = {
        f"{name}_timeout_seconds": timeouts.get(name, 600.0) for name in PHASES
    }
    terms = Terms(
        **seconds,
        keep_alive_seconds=600,
        first_byte_hold_seconds=600,
        keep_alive_mode="off",
    )
    return Deadlines(terms, shutdown or Shutdown(), lambda: "no GPU is free")


def nothing(call: Deadlines) -> None:
    """The call waits for a worker."""


def started(call: Deadlines) -> None:
    """A worker that is up has the call."""
    call.note_started()


def at_work(call: Deadlines) -> None:
    """The worker has put something out."""
    call.note_started()
    call.note_output()


@pytest.mark.parametrize(
    ("passed", "reach", "error", "text"),
    [
        ("queue", nothing, ColdStartTimeout, "0 s (queue_timeout_seconds): no GPU is free"),
        ("first_token", started, FirstTokenTimeout, "0 s (first_token_timeout_seconds)"),
        ("idle", at_work, IdleTimeout, "0 s (idle_timeout_seconds)"),
        ("total", nothing, TotalTimeout, "0 s (total_timeout_seconds)"),
        ("total", at_work, TotalTimeout, "0 s (total_timeout_seconds)"),
    ],
)
def test_each_phase_has_its_deadline_and_says_which_setting_it_was(
    passed: str, reach: Callable[[Deadlines], None], error: type[ProxyError], text: str
) -> None:
    call = deadlines(**{passed: 0})
    reach(call)
    with pytest.raises(error) as raised:
        call.seconds_left()
    assert text in raised.value.message


@pytest.mark.parametrize("others", [["queue", "first_token"], ["queue", "idle"]])
def test_only_the_deadline_of_the_phase_that_a_call_is_in_counts(others: list[str]) -> None:
    call = deadlines(**dict.fromkeys(others, 0))
    call.note_started()
    if "first_token" in others:
        call.note_output()
    assert 0 < call.seconds_left() <= 600


def test_a_call_whose_worker_was_lost_waits_under_the_queue_deadline_again() -> None:
    call = deadlines(first_token=0)
    call.note_started()
    call.note_requeued()
    assert call.seconds_left() > 0


def test_a_call_that_has_output_never_goes_back_to_another_phase() -> None:
    call = deadlines(queue=0, first_token=0)
    call.note_output()
    call.note_started()
    call.note_requeued()
    assert call.seconds_left() > 0


def test_a_pause_of_the_reader_is_held_against_the_total_alone() -> None:
    call = deadlines(idle=1)
    call.note_output()
    call.exclude(300)
    assert 200 < call.seconds_left() <= 301


def test_what_kept_us_from_seeing_the_call_is_the_error_when_a_deadline_passes() -> None:
    failure = UpstreamUnavailable("RunPod answered HTTP 500.")
    with pytest.raises(UpstreamUnavailable):
        deadlines(queue=0).seconds_left(failure)


def test_the_end_of_the_grace_time_is_a_deadline_of_every_call() -> None:
    shutdown = Shutdown()
    call = deadlines(shutdown=shutdown)
    shutdown.begin(100)
    assert 0 < call.seconds_left() <= 100
    shutdown.begin(0)
    with pytest.raises(Stopping):
        call.seconds_left(UpstreamUnavailable("RunPod answered HTTP 500."))


def test_work_that_outlasts_a_deadline_is_left_as_it_is() -> None:
    async def outlast() -> None:
        work = asyncio.get_running_loop().create_future()
        call = deadlines(total=0.01)
        with pytest.raises(TotalTimeout):
            await call.result(work)
        assert not work.done()

    asyncio.run(outlast())


def test_work_that_is_done_is_worth_more_than_a_deadline_that_has_passed() -> None:
    async def be_late() -> str:
        work = asyncio.get_running_loop().create_future()
        work.set_result("done")
        result: str = await deadlines(total=0).result(work)
        return result

    assert asyncio.run(be_late()) == "done"
