"""The state of an endpoint, from what RunPod's /health says once or again and again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends import start_clock, starts
from proxy.backends.fair_turns import AHEAD, FairTurns, Flow, Place
from proxy.backends.health import OLD_SECONDS, Health
from proxy.backends.health_monitor import (
    LOOK_SECONDS,
    NO_WORKERS,
    REASONS,
    STARTLESS_SECONDS,
    UNSEEN_SECONDS,
    HealthMonitor,
    State,
)
from proxy.backends.start_clock import LOADING_SECONDS
from proxy.backends.starts import JUST_SECONDS, UNKNOWN_CAUSE, Starts
from proxy.errors import UpstreamUnavailable
from tests.proxy.conftest import chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import FRAMES
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.virtual_time import run_virtually
from tests.waiting import wait_until


async def _never(*_: Any) -> Mapping[str, Any]:
    raise AssertionError("nobody asked")


Look = tuple[dict[str, int], int]


def seen(*looks: Look, apart: float = 5.0) -> HealthMonitor:
    """A monitor that has taken these looks: counters of workers, and jobs in queue."""
    monitor = HealthMonitor("ep", _never, Starts("ep", pause_seconds=300))
    for number, (workers, in_queue) in enumerate(looks):
        health = Health.of({"workers": workers, "jobs": {"inQueue": in_queue}})
        monitor.observe(health, 100 + number * apart)
    return monitor


@pytest.mark.parametrize(
    ("workers", "state"),
    [
        ({}, State.COLD),
        ({"ready": 0, "idle": 0}, State.COLD),
        ({"initializing": 1}, State.WARMING),
        ({"initializing": 1, "ready": 1}, State.READY),
        ({"running": 1}, State.READY),
        ({"idle": 1, "unhealthy": 1}, State.READY),
        ({"throttled": 3}, State.THROTTLED),
        ({"throttled": 1, "initializing": 1}, State.WARMING),
        ({"unhealthy": 1}, State.UNHEALTHY),
        ({"unhealthy": 1, "initializing": 1}, State.UNHEALTHY),
    ],
)
async def test_one_look_tells_how_the_workers_are(workers: dict[str, int], state: State) -> None:
    assert seen((workers, 1)).state is state


async def test_a_start_that_failed_is_told_until_a_worker_is_up() -> None:
    starting: Look = ({"initializing": 1}, 1)
    gone: Look = ({}, 1)
    assert seen(starting, gone).state is State.COLD
    monitor = seen(starting, gone, starting, gone)
    assert (monitor.state, monitor.reason) == (State.UNHEALTHY, UNKNOWN_CAUSE)
    assert seen(starting, gone, starting, gone, starting).state is State.UNHEALTHY
    healed = seen(starting, gone, starting, gone, ({"ready": 1}, 0), gone)
    assert healed.state is State.COLD


async def test_looks_that_are_far_apart_are_not_taken_for_one_long_wait() -> None:
    waiting: Look = ({}, 1)
    starting: Look = ({"initializing": 1}, 1)
    assert seen(waiting, waiting, apart=3600).state is State.COLD
    assert seen(starting, waiting, starting, waiting, apart=3600).state is State.COLD
    assert seen(starting, ({"unhealthy": 1}, 1), apart=3600).starts.failure is None


async def test_a_state_that_was_seen_long_ago_is_not_told_as_todays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monitor = seen(({"ready": 1}, 0))
    states = [str(monitor.state)]
    now = time.monotonic()
    # Its clock alone, for servers of other tests run by the real one.
    later = SimpleNamespace(monotonic=lambda: now + OLD_SECONDS + 1)
    monkeypatch.setattr("proxy.backends.health_monitor.time", later)
    states.append(str(monitor.state))
    assert monitor.reason == REASONS[State.UNKNOWN]
    monitor.note_answer()
    assert [*states, str(monitor.state)] == ["ready", "unknown", "ready"]


async def test_a_worker_that_stops_because_there_is_no_job_has_not_crashed() -> None:
    starting: Look = ({"initializing": 1}, 0)
    gone: Look = ({}, 0)
    assert seen(starting, gone, starting, gone, starting, gone).state is State.COLD


async def test_jobs_that_wait_without_any_worker_wait_in_vain() -> None:
    waiting: Look = ({}, 3)
    assert seen(waiting, waiting).state is State.COLD
    monitor = seen(waiting, waiting, apart=STARTLESS_SECONDS + 1)
    assert (monitor.state, monitor.reason) == (State.UNHEALTHY, NO_WORKERS)
    assert seen(waiting, ({}, 0), waiting, apart=STARTLESS_SECONDS + 1).state is State.COLD


async def test_a_worker_that_answers_is_up_whatever_the_last_look_said() -> None:
    monitor = seen(({"initializing": 1}, 1), ({}, 1), ({"initializing": 1}, 1))
    monitor.note_answer()
    states = [str(monitor.state)]
    monitor.observe(Health.of({"jobs": {"inQueue": 1}}), 200)
    assert [*states, str(monitor.state)] == ["ready", "cold"]


@pytest.mark.parametrize(
    ("seconds", "has_ended", "state"),
    [
        (1, False, State.READY),
        (JUST_SECONDS + 1, False, State.WARMING),  # the worker may have died in mid-stream
        (JUST_SECONDS + 1, True, State.READY),
    ],
)
async def test_a_worker_between_two_jobs_is_no_start(
    monkeypatch: pytest.MonkeyPatch, seconds: float, has_ended: bool, state: State
) -> None:
    now, answer = 0.0, object()
    monkeypatch.setattr(start_clock, "LOADING_SECONDS", 0)
    monkeypatch.setattr(starts, "time", SimpleNamespace(monotonic=lambda: now))
    monitor = HealthMonitor("ep", _never, Starts("ep", pause_seconds=300))
    monitor.starts.note_answer(answer)
    monitor.note_answer()
    took_nothing = Health.of({"workers": {"running": 1}, "jobs": {"inQueue": 1, "inProgress": 0}})
    with monitor.waiting():
        now += seconds
        if has_ended:
            monitor.starts.note_end(answer)
        monitor.observe(took_nothing, time.monotonic())
        found = monitor.state, monitor.clock.elapsed_seconds is not None
    await monitor.close()
    assert found == (state, state is State.WARMING)


@pytest.mark.parametrize("jobs", [{"inQueue": 0, "inProgress": 1}, {"inQueue": 1, "inProgress": 0}])
async def test_a_worker_that_has_just_taken_its_first_job_is_no_start_unless_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, jobs: dict[str, int]
) -> None:
    now = 100.0
    monkeypatch.setattr(start_clock, "time", SimpleNamespace(monotonic=lambda: now))
    monitor = seen(({"initializing": 1}, 0))  # as after the death of the worker before
    running = Health.of({"workers": {"running": 1}, "jobs": jobs})
    with monitor.waiting():
        monitor.observe(running, 101)
        assert not monitor.clock.has_met_start(100)
        now += LOADING_SECONDS + 1
        monitor.observe(running, 107)
        assert monitor.clock.has_met_start(100)
    with monitor.waiting():
        monitor.observe(Health.of({"workers": {"initializing": 1}}), 108)
        assert monitor.clock.elapsed_seconds is not None
    await monitor.close()


@pytest.mark.parametrize(
    ("before", "apart", "is_start"),
    [
        ({}, 5, True),
        ({}, 11, False),  # what was in between has not been seen
        ({"initializing": 1}, 5, False),
        ({"ready": 1}, 5, False),
        ({"running": 1}, 5, False),
    ],
)
async def test_a_worker_at_work_where_none_was_a_moment_ago_was_started(
    before: dict[str, int], apart: int, is_start: bool
) -> None:
    began = time.monotonic()
    monitor = seen((before, 0))
    at_work = Health.of({"workers": {"running": 1}, "jobs": {"inProgress": 1}})
    with monitor.waiting():
        monitor.observe(at_work, 100 + apart)
        assert monitor.clock.has_met_start(began) is is_start
    await monitor.close()


@pytest.mark.parametrize(
    ("workers", "has_answered"), [({"running": 1}, True), ({"ready": 1, "running": 1}, False)]
)
async def test_a_worker_that_was_up_and_dies_at_its_first_request_is_no_failed_start(
    workers: dict[str, int], has_answered: bool
) -> None:
    monitor = seen(({"initializing": 1}, 1))
    with monitor.waiting():
        monitor.observe(
            Health.of({"workers": workers, "jobs": {"inQueue": 0, "inProgress": 1}}), 100.5
        )
        if has_answered:
            monitor.note_answer()
        monitor.observe(Health.of({"workers": {"unhealthy": 1}, "jobs": {"inQueue": 1}}), 101)
    await monitor.close()
    assert monitor.starts.failure is None


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.dictionaries(st.sampled_from(["workers", "jobs", "ready"]), inner),
    )
)
async def test_any_answer_gives_some_state(answer: Any) -> None:
    monitor = HealthMonitor("ep", _never, Starts("ep", pause_seconds=300))
    monitor.observe(Health.of(answer if isinstance(answer, dict) else {}), 0)
    assert monitor.state in State


def state_of(client: httpx.Client) -> str:
    return str(client.get("/v1/models").json()["data"][0]["state"])


def test_the_list_tells_the_state_and_asks_only_while_somebody_does(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.workers = {"initializing": 1}
    wait_until(lambda: state_of(fresh_client) == "warming")
    began, calls = time.monotonic(), looks_of(fresh_client)
    for _ in range(50):
        state_of(fresh_client)
    calls = looks_of(fresh_client) - calls
    assert calls <= 1 + (time.monotonic() - began) / LOOK_SECONDS
    assert runpod.jobs == []


def looks_of(client: httpx.Client) -> float:
    """How often this proxy has asked; those of other tests do, too."""
    calls = {"endpoint": "ep", "operation": "health", "outcome": "200"}
    return value(client, "runpod_calls_total", **calls)


def test_a_model_that_has_just_answered_is_listed_as_ready(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.workers, runpod.script = {"initializing": 1}, [Page("COMPLETED", FRAMES)]
    wait_until(lambda: state_of(fresh_client) == "warming")

    def is_ready_after_an_answer() -> bool:
        fresh_client.post("/v1/chat/completions", json=chat(stream=True))
        return state_of(fresh_client) == "ready"

    wait_until(is_ready_after_an_answer)  # at once, unless it looked again in between


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"queue_timeout_seconds": 1}], indirect=True)
@pytest.mark.parametrize(
    ("workers", "said"), [({"throttled": 1}, "no free GPU"), ({"unhealthy": 1}, "crash")]
)
def test_a_cold_start_that_takes_too_long_says_why(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, workers: dict[str, int], said: str
) -> None:
    runpod.workers, runpod.script = workers, [Page("IN_QUEUE")]
    wait_until(lambda: state_of(fresh_client) in ("throttled", "unhealthy"))
    refused = fresh_client.post("/v1/chat/completions", json=chat())
    assert said in error_of(refused)["message"]


def monitored(
    ask: Callable[[], Awaitable[Mapping[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> tuple[HealthMonitor, Place]:
    """A monitor on the loop's own clock, and a place that waits for its turn at one worker."""
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr("proxy.backends.health_monitor.time", clock)
    turns = FairTurns(1)
    *_, place = [turns.place(Flow("k")) for _ in range(1 + AHEAD + 1)]
    return HealthMonitor("ep", ask, Starts("ep", pause_seconds=300), turns=turns), place


def test_looks_that_fail_let_nobody_pass_before_they_have_failed_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_away = False

    async def ask() -> Mapping[str, Any]:
        if is_away:
            raise UpstreamUnavailable("RunPod is away.")
        return {"workers": {"running": 1}}

    async def run() -> None:
        nonlocal is_away
        monitor, place = monitored(ask, monkeypatch)
        with monitor.waiting():
            await asyncio.sleep(1)
        await asyncio.sleep(3600)  # nobody asks, and nobody looks
        is_away = True
        with monitor.waiting():
            await asyncio.sleep(UNSEEN_SECONDS - 1)
            assert place.is_waiting
            is_away = False
            await asyncio.sleep(2)
            is_away = True
            await asyncio.sleep(UNSEEN_SECONDS - 1)
            assert place.is_waiting
            await asyncio.sleep(3)
            assert not place.is_waiting
        await monitor.close()

    run_virtually(run())


def test_a_look_that_hangs_counts_from_when_it_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> Mapping[str, Any]:
        await asyncio.sleep(UNSEEN_SECONDS + 1)
        raise UpstreamUnavailable("RunPod is away.")

    async def run() -> None:
        monitor, place = monitored(ask, monkeypatch)
        with monitor.waiting():
            await asyncio.sleep(UNSEEN_SECONDS)
            assert place.is_waiting
            await asyncio.sleep(2)
            assert not place.is_waiting
        await monitor.close()

    run_virtually(run())
