"""A job that nobody waits for is cancelled, until RunPod says that it has ended."""

import threading
import time

import httpx
import pytest
from starlette.responses import Response

from proxy.backends.runpod import cancellation
from tests.proxy.conftest import asked, chat
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancels are repeated ten times as fast, and no more slowly each time."""
    monkeypatch.setattr(cancellation, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(cancellation, "MAX_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(cancellation, "RACE_SECONDS", 0.1)


def leave_after(client: httpx.Client, awaited: bytes) -> None:
    """Stream a chat, and close the connection once this has come."""
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        came, pieces = b"", response.iter_bytes()
        while awaited not in came:
            came += next(pieces)


def has_noticed(client: httpx.Client) -> bool:
    """Whether the proxy knows that one client has left, before there was anything to tell it."""
    return (
        value(client, "proxy_requests_total", model="m", status="499", outcome="client_left") == 1
    )


def submissions(client: httpx.Client) -> float:
    """How many jobs are being submitted, or wait for a worker."""
    return value(client, "proxy_jobs", endpoint="ep", phase="waiting")


def is_refused(client: httpx.Client) -> bool:
    """Whether the proxy knows that RunPod has not taken the first job."""
    refused = {"endpoint": "ep", "operation": "run", "outcome": "429"}
    return value(client, "runpod_calls_total", **refused) == 1


def test_a_client_that_leaves_mid_stream_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    leave_after(client, b"data: ")
    wait_until(lambda: runpod.cancelled == [runpod.job_id])


def test_a_client_that_leaves_during_the_cold_start_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    leave_after(client, b": queued")
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_a_client_that_leaves_a_plain_request_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS")]
    with asked(client):
        wait_until(lambda: runpod.stream_calls > 0)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@pytest.mark.parametrize("settings", [{"first_byte_hold_seconds": 60}], indirect=True)
def test_a_client_that_leaves_while_the_headers_are_held_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS")]
    with asked(client, stream=True):
        wait_until(lambda: runpod.stream_calls > 0)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_a_client_that_leaves_while_its_job_is_being_submitted_cancels_it(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    runpod.run_hold = threading.Event()
    with asked(fresh_client):
        wait_until(lambda: len(runpod.jobs) == 1)
    wait_until(lambda: has_noticed(fresh_client))
    assert runpod.cancelled == []
    runpod.run_hold.set()
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_a_client_that_leaves_before_its_job_is_taken_has_none(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "60"})]
    with asked(fresh_client):
        wait_until(lambda: is_refused(fresh_client))
    wait_until(lambda: submissions(fresh_client) == 0)
    assert runpod.jobs == []


@pytest.mark.slow
def test_a_client_that_leaves_before_its_turn_has_come_has_no_job(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "60"})]
    with asked(fresh_client):
        wait_until(lambda: is_refused(fresh_client))
        with asked(fresh_client):  # has to wait for that
            wait_until(lambda: submissions(fresh_client) == 2)
        wait_until(lambda: submissions(fresh_client) == 1)
    wait_until(lambda: submissions(fresh_client) == 0)
    assert runpod.jobs == []


@pytest.mark.slow
def test_a_submission_that_is_refused_when_its_client_has_left_is_not_repeated(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "1"})]
    runpod.run_hold = threading.Event()
    with asked(fresh_client):
        wait_until(lambda: runpod.run_answers == [])
    wait_until(lambda: has_noticed(fresh_client))
    assert submissions(fresh_client) == 1
    runpod.run_hold.set()
    wait_until(lambda: submissions(fresh_client) == 0)
    assert runpod.jobs == []


def test_a_cancel_of_a_job_not_seen_running_is_sent_twice(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    leave_after(client, b": queued")
    wait_until(lambda: runpod.cancelled == [runpod.job_id] * 2)


@pytest.mark.slow
def test_a_cancel_that_fails_is_repeated(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    runpod.cancel_answers = [
        Response(status_code=500),
        Response(status_code=429),
        Response('{"status": "IN_PROGRESS"}'),
    ]
    leave_after(client, b"data: ")
    wait_until(lambda: runpod.cancelled == [runpod.job_id])
    assert runpod.cancel_answers == []


@pytest.mark.slow
def test_a_cancel_that_is_refused_is_repeated_until_the_job_has_ended(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    runpod.cancel_answers = [Response(status_code=400) for _ in range(3)]
    # The first may be asked for by a look at which worker has answered.
    runpod.states = [{"status": "IN_PROGRESS"}, {"status": "IN_PROGRESS"}, {"status": "TIMED_OUT"}]
    leave_after(client, b"data: ")
    wait_until(lambda: runpod.states == [])
    left = len(runpod.cancel_answers)
    time.sleep(0.5)  # ten pauses: nothing is to happen, so there is nothing to wait for
    assert left == len(runpod.cancel_answers) <= 1
    assert runpod.cancelled == []


def test_a_finished_job_is_not_cancelled(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES)]
    leave_after(client, b"[DONE]")
    time.sleep(0.5)  # nothing is to happen, so there is nothing to wait for
    assert runpod.cancelled == []
