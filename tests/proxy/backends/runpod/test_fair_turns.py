"""Fair turns before RunPod's queue: who waits, what it hears, and how its waiting ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.backends.fair_turns import NOT_ITS_TURN
from tests.leaving import call_to_leave
from tests.proxy.conftest import chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import CHAT, FRAMES, last_error
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.waiting import wait_until

KEYS = {"api_keys": "sk-test,sk-other,sk-third"}
NARROW = KEYS | {"worker_concurrency": 1}
"""With one worker, two jobs may be at RunPod."""


def with_settings(**changes: Any) -> pytest.MarkDecorator:
    """A proxy where keys take turns for one worker that runs one request at a time."""
    return pytest.mark.parametrize("settings", [NARROW | changes], indirect=True)


@pytest.fixture(autouse=True)
def busy(runpod: ScriptedRunPod) -> Iterator[None]:
    """One worker is up, and no job ends before its client leaves."""
    runpod.workers = {"idle": 1, "ready": 1}
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES, hold=hold)]
    yield
    hold.set()


def asking(
    client: httpx.Client, *, key: str = "sk-test", text: str = "hi"
) -> AbstractContextManager[None]:
    """A chat of this key, which is left at the end of the block."""
    url = str(client.base_url.join(CHAT))
    body = chat(messages=[{"role": "user", "content": text}])
    return call_to_leave(url, key=key, body=body)


def said(runpod: ScriptedRunPod) -> list[str]:
    """The texts of all jobs, in the order in which RunPod was given them."""
    return [job["input"]["openai_input"]["messages"][0]["content"] for job in runpod.jobs]


def in_line(client: httpx.Client) -> float:
    """How many requests wait for their turn."""
    return value(client, "proxy_turns_waiting", endpoint="ep")


@with_settings()
def test_a_key_that_comes_later_does_not_wait_behind_a_flood(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    with ExitStack() as flood, ExitStack() as other:
        running = [flood.enter_context(ExitStack()) for _ in range(2)]
        for number, stack in enumerate(running, start=1):
            stack.enter_context(asking(fresh_client, text="flood"))
            wait_until(lambda number=number: len(runpod.jobs) == number)  # type: ignore[misc]
        for number in range(1, 11):
            flood.enter_context(asking(fresh_client, text="flood"))
            wait_until(lambda number=number: in_line(fresh_client) == number)  # type: ignore[misc]
        other.enter_context(asking(fresh_client, key="sk-other", text="other"))
        wait_until(lambda: in_line(fresh_client) == 11)
        assert said(runpod) == ["flood"] * 2
        for stack in running:
            stack.close()
        wait_until(lambda: len(runpod.jobs) == 4)
        assert said(runpod)[2:] == ["flood", "other"]


@pytest.mark.parametrize(
    "settings",
    [KEYS, {"worker_concurrency": 1}],
    indirect=True,
    ids=["no concurrency", "one key"],
)
def test_without_keys_that_share_or_a_concurrency_nothing_waits(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(asking(fresh_client))
        wait_until(lambda: len(runpod.jobs) == 8)
        assert in_line(fresh_client) == 0


@pytest.mark.slow
@with_settings()
def test_a_worker_that_starts_lets_more_through(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(asking(fresh_client))
        wait_until(lambda: (len(runpod.jobs), in_line(fresh_client)) == (2, 4))
        runpod.workers = {"idle": 0, "ready": 1, "initializing": 2}
        wait_until(lambda: (len(runpod.jobs), in_line(fresh_client)) == (4, 2))


@with_settings()
def test_a_client_that_leaves_the_line_makes_no_job_and_keeps_no_place(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    with ExitStack() as running:
        for number in (1, 2):
            running.enter_context(asking(fresh_client, text="first"))
            wait_until(lambda number=number: len(runpod.jobs) == number)  # type: ignore[misc]
        with asking(fresh_client, text="left"):
            wait_until(lambda: in_line(fresh_client) == 1)
        wait_until(lambda: in_line(fresh_client) == 0)
        with asking(fresh_client, text="last"):
            wait_until(lambda: in_line(fresh_client) == 1)
            running.close()
            wait_until(lambda: len(runpod.jobs) == 3)
    assert said(runpod) == ["first", "first", "last"]
    wait_until(lambda: value(fresh_client, "proxy_jobs", endpoint="ep", phase="waiting") == 0)


@pytest.mark.slow
@with_settings()
def test_when_all_have_left_all_room_is_there_again(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    for _ in range(5):  # each end lets one in that is about to leave
        with ExitStack() as stack:
            for key in ["sk-test", "sk-other", "sk-third"] * 4:
                stack.enter_context(asking(fresh_client, key=key))
            wait_until(lambda: in_line(fresh_client) == 10)
    wait_until(lambda: value(fresh_client, "proxy_jobs", endpoint="ep", phase="waiting") == 0)
    made = len(runpod.jobs)
    with asking(fresh_client), asking(fresh_client, key="sk-other"):
        wait_until(lambda: len(runpod.jobs) == made + 2)
    wait_until(lambda: len(set(runpod.cancelled)) == made + 2)


@with_settings(queue_timeout_seconds=0.5, first_byte_hold_seconds=30)
def test_the_queue_timeout_holds_for_those_whose_turn_does_not_come(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    with asking_patiently(fresh_client, runpod):
        response = fresh_client.post(CHAT, json=chat(stream=True))
        assert (response.status_code, error_of(response)["code"]) == (503, "cold_start_timeout")
        assert NOT_ITS_TURN in error_of(response)["message"]
        assert len(runpod.jobs) == 2
        assert in_line(fresh_client) == 0


def asking_patiently(client: httpx.Client, runpod: ScriptedRunPod) -> ExitStack:
    """The two requests that have all the room; a worker has their jobs, so no deadline is near."""
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", FRAMES[:1])]
    stack = ExitStack()
    for number in (1, 2):
        stack.enter_context(asking(client))
        wait_until(lambda number=number: runpod.stream_calls >= number)  # type: ignore[misc]
    return stack


@with_settings(max_waiting=3)
def test_those_in_line_count_among_those_that_wait(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(asking(fresh_client))
        wait_until(lambda: in_line(fresh_client) == 1)
        response = fresh_client.post(CHAT, json=chat())
        assert (response.status_code, error_of(response)["code"]) == (429, "endpoint_overloaded")


@with_settings(first_byte_hold_seconds=0.1)
def test_a_stream_that_waits_for_its_turn_is_kept_alive_and_then_answered(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(asking(fresh_client))
        wait_until(lambda: len(runpod.jobs) == 2)
        with fresh_client.stream("POST", CHAT, json=chat(stream=True)) as response:
            pieces = response.iter_text()
            assert next(pieces).startswith(": queued")
            assert in_line(fresh_client) == 1
            runpod.script = [Page("COMPLETED", FRAMES)]
            runpod.stream_calls = 0
            running.close()
            assert "".join(pieces).endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_a_proxy_that_stops_ends_those_in_line(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    settings: dict[str, Any] = NARROW | {"first_byte_hold_seconds": 0.1, "drain_seconds": 1}
    with closing(Proxy(scripted_runpod[1], state_dir=tmp_path, **settings)) as proxy:
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(asking(proxy.client))
            wait_until(lambda: len(runpod.jobs) == 2)
            with proxy.client.stream("POST", CHAT, json=chat(stream=True)) as response:
                pieces = response.iter_text()
                assert next(pieces).startswith(": queued")
                proxy.process.send_signal(signal.SIGTERM)
                assert last_error("".join(pieces))["code"] == "shutting_down"
        assert proxy.process.wait(timeout=30) == 0
    assert len(runpod.jobs) == 2
