"""A job that nobody waits for is cancelled, until RunPod says that it has ended."""

import threading
import time

import httpx
import pytest
from starlette.responses import Response

from tests.proxy.conftest import chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_streaming import CHAT, FRAMES
from tests.waiting import wait_until


def leave(client: httpx.Client, *, after_bytes: bool, wants_stream: bool = True) -> None:
    """Send a chat and close the connection: once something came, or without waiting."""
    timeout = httpx.Timeout(10, read=10 if after_bytes else 0.5)
    body = chat(stream=wants_stream)
    try:
        with client.stream("POST", CHAT, json=body, timeout=timeout) as response:
            next(response.iter_bytes())
    except httpx.ReadTimeout:
        assert not after_bytes


def test_a_client_that_leaves_mid_stream_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    leave(client, after_bytes=True)
    wait_until(lambda: runpod.cancelled == [runpod.job_id])


def test_a_client_that_leaves_during_the_cold_start_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    leave(client, after_bytes=True)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_a_client_that_leaves_a_plain_request_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS")]
    leave(client, after_bytes=False, wants_stream=False)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@pytest.mark.parametrize("settings", [{"first_byte_hold_seconds": 30}], indirect=True)
def test_a_client_that_leaves_while_the_headers_are_held_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS")]
    leave(client, after_bytes=False)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_a_client_that_leaves_while_its_job_is_being_submitted_cancels_it(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    runpod.run_delay_seconds = 1.5
    leave(client, after_bytes=False)
    assert runpod.cancelled == []
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_a_client_that_leaves_before_its_job_is_taken_has_none(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "2"})]
    leave(client, after_bytes=False, wants_stream=False)
    assert runpod.run_answers == []  # it was tried once
    time.sleep(3)  # nothing is to happen, so there is nothing to wait for
    assert runpod.jobs == []


@pytest.mark.slow
def test_a_client_that_leaves_before_its_turn_has_come_has_no_job(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "2"})]
    for _ in range(2):  # the first one is refused, the second one has to wait for that
        leave(fresh_client, after_bytes=False, wants_stream=False)
    assert runpod.run_answers == []
    time.sleep(3)  # nothing is to happen, so there is nothing to wait for
    assert runpod.jobs == []


@pytest.mark.slow
def test_a_submission_that_is_refused_when_its_client_has_left_is_not_repeated(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "1"})]
    runpod.run_delay_seconds = 1
    leave(fresh_client, after_bytes=False, wants_stream=False)
    time.sleep(3)  # nothing is to happen, so there is nothing to wait for
    assert runpod.jobs == []


def test_a_cancel_of_a_job_not_seen_running_is_sent_twice(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    leave(client, after_bytes=True)
    wait_until(lambda: runpod.cancelled == [runpod.job_id] * 2)


def test_a_cancel_that_fails_is_repeated(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    runpod.cancel_answers = [
        Response(status_code=500),
        Response(status_code=429),
        Response('{"status": "IN_PROGRESS"}'),
    ]
    leave(client, after_bytes=True)
    wait_until(lambda: runpod.cancelled == [runpod.job_id])
    assert runpod.cancel_answers == []


@pytest.mark.slow
def test_a_cancel_that_is_refused_is_repeated_until_the_job_has_ended(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    runpod.cancel_answers = [Response(status_code=400) for _ in range(3)]
    runpod.states = [{"status": "IN_PROGRESS"}, {"status": "TIMED_OUT"}]
    leave(client, after_bytes=True)
    wait_until(lambda: runpod.states == [])
    time.sleep(2.5)  # nothing is to happen, so there is nothing to wait for
    assert (len(runpod.cancel_answers), runpod.cancelled) == (1, [])


def test_a_finished_job_is_not_cancelled(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES)]
    leave(client, after_bytes=True)
    time.sleep(0.5)  # nothing is to happen, so there is nothing to wait for
    assert runpod.cancelled == []
