"""RunPod refuses calls for seconds, or does not know a job yet: no job is given up for it."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.responses import Response

from proxy.backends import refusals
from tests.proxy.backends.runpod.test_cancellation import leave_after
from tests.proxy.conftest import asked, chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import BODY, CHAT, FRAMES, PATIENT, last_error, stream
from tests.proxy.scripted_runpod import Fault, Page, ScriptedRunPod
from tests.waiting import wait_until

GUSTS = pytest.mark.parametrize("status", [401, 403, 404])
OK = [Page("COMPLETED", [{"ok": True}])]


@pytest.mark.slow
@GUSTS
def test_streams_go_on_after_a_gust_of_refusals(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, status: int
) -> None:
    gust = [Fault(status)] * 3
    middle = Page("IN_PROGRESS", FRAMES[1:2])
    end = Page("COMPLETED", FRAMES[2:])
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), *gust, middle, *gust, end]
    assert stream(fresh_client) == (200, BODY)
    assert runpod.cancelled == []


@PATIENT
@pytest.mark.parametrize("times", [1, 3, 5])
def test_a_job_that_runpod_does_not_know_yet_is_waited_for(
    client: httpx.Client, runpod: ScriptedRunPod, times: int
) -> None:
    runpod.script = [*[Fault(404)] * times, Page("COMPLETED", FRAMES)]
    assert stream(client) == (200, BODY)
    assert runpod.cancelled == []


@GUSTS
def test_an_aggregate_that_is_refused_for_a_moment_is_fetched_all_the_same(
    client: httpx.Client, runpod: ScriptedRunPod, status: int
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("COMPLETED")]
    runpod.final = {"status": "COMPLETED", "output": FRAMES}
    runpod.status_faults = [Response(status_code=status)] * 2
    assert stream(client) == (200, BODY)
    assert runpod.status_faults == []


@GUSTS
def test_a_new_request_outlasts_refusals_of_a_key_that_has_just_worked(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, status: int
) -> None:
    runpod.script = OK
    assert fresh_client.post(CHAT, json=chat()).status_code == 200
    runpod.refusal = Response(status_code=status)
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(fresh_client.post, CHAT, json=chat()) for _ in range(10)]
        wait_until(lambda: runpod.refused["run"] > 20)  # more than the breaker takes
        runpod.refusal = None
        assert {answer.result().status_code for answer in answers} == {200}


@pytest.mark.slow
def test_polls_that_go_well_show_that_the_key_works(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "GUST_SECONDS", 2.5)
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    with asked(fresh_client), ThreadPoolExecutor(1) as pool:
        wait_until(lambda: runpod.stream_calls > 0)
        runpod.refusal, runpod.refused_operations = Response(status_code=403), {"run"}
        answer = pool.submit(fresh_client.post, CHAT, json=chat())
        time.sleep(4)  # refused for longer than that; polls, held for a second each, are not
        assert not answer.done()
        runpod.script = OK
        runpod.refusal = None
        assert answer.result().status_code == 200


@pytest.mark.slow
def test_a_job_outlasts_refusals_while_other_calls_show_that_the_key_works(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "GUST_SECONDS", 1.0)
    runpod.script = OK
    runpod.refusal, runpod.refused_operations = Response(status_code=403), {"stream"}
    with ThreadPoolExecutor() as pool:
        answers = []
        for _ in range(8):  # each is submitted, which goes well, and then polled for in vain
            answers.append(pool.submit(fresh_client.post, CHAT, json=chat()))
            time.sleep(0.3)
        runpod.refusal = None
        assert [answer.result().status_code for answer in answers] == [200] * 8


@pytest.mark.slow
def test_a_key_that_worked_long_ago_is_tried_as_long_as_one_that_just_has(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "GUST_SECONDS", 1.0)
    runpod.script = OK
    assert fresh_client.post(CHAT, json=chat()).status_code == 200
    time.sleep(1.5)
    runpod.refusal = Response(status_code=403)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(fresh_client.post, CHAT, json=chat())
        wait_until(lambda: runpod.refused["run"] > 1)
        runpod.refusal = None
        assert answer.result().status_code == 200


def test_refusals_far_apart_are_not_one_gust_but_what_is_believed_stays_so() -> None:
    clock = iter(
        [
            *(0, 16, 18),  # between the first two there was no call
            *(25, 30),
            *(32, 3600),  # sixteen seconds without a gap, and then a long one
            3601,
        ]
    )
    gust = refusals.Gust(clock=lambda: next(clock))
    assert [gust.has_lasted() for _ in range(5)] == [False] * 5
    assert [gust.has_lasted() for _ in range(2)] == [True] * 2
    gust.end()
    assert not gust.has_lasted()


@GUSTS
def test_a_key_that_never_worked_is_told_at_once_and_not_tried_again(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, status: int
) -> None:
    runpod.refusal = Response(status_code=status)
    response = fresh_client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (502, "upstream_misconfigured")
    assert response.headers["x-should-retry"] == "false"
    assert runpod.refused["run"] == 1


@PATIENT
@pytest.mark.usefixtures("believed_at_once")
def test_a_job_that_runpod_never_comes_to_know_is_an_error_and_is_cancelled(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Fault(404)]
    response = client.post(CHAT, json=chat(stream=True))
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@GUSTS
@pytest.mark.usefixtures("believed_at_once")
def test_refusals_that_last_are_believed_and_the_job_is_cancelled(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, status: int
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Fault(status)]
    _, text = stream(fresh_client)
    code = "worker_failed" if status == 404 else "upstream_misconfigured"
    assert last_error(text)["code"] == code
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_cancel_outlasts_refusals_and_its_job_stays_in_the_journal(
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "proxy.backends.runpod.cancellation")
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    runpod.cancel_answers = [Response(status_code=status)] * 2
    leave_after(fresh_client, b"data: ")
    wait_until(lambda: runpod.cancelled == [runpod.job_id])
    assert runpod.cancel_answers == []
    about_it = [m for m in caplog.messages if runpod.job_id in m]
    wait_until(lambda: "has ended" in caplog.text)
    assert sum("is repeated" in message for message in about_it) == (status != 404)
    assert "cannot cancel" not in caplog.text


@pytest.mark.usefixtures("believed_at_once")
def test_a_cancel_of_a_job_that_runpod_has_long_forgotten_ends(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.backends.runpod.cancellation")
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    runpod.cancel_answers = [Response(status_code=404)] * 100
    leave_after(fresh_client, b"data: ")
    wait_until(lambda: f"job {runpod.job_id} has ended" in caplog.text)
    assert len(runpod.cancel_answers) > 90


@pytest.mark.slow
def test_a_deadline_that_passes_during_refusals_says_what_kept_the_request(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = OK
    assert fresh_client.post(CHAT, json=chat()).status_code == 200
    runpod.refusal = Response(status_code=403)
    response = fresh_client.post(CHAT, json=chat(), headers={"x-cold-start-timeout": "1"})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (503, "cold_start_timeout")
    assert (
        "RunPod has not accepted the job: RunPod refused the proxy's API key." in error["message"]
    )
    assert len(runpod.jobs) == 1


def test_a_client_that_leaves_during_refusals_has_no_job(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = OK
    assert fresh_client.post(CHAT, json=chat()).status_code == 200
    runpod.refusal = Response(status_code=403)
    with asked(fresh_client):
        wait_until(lambda: runpod.refused["run"] > 1)
    runpod.refusal = None
    assert fresh_client.post(CHAT, json=chat()).status_code == 200
    assert len(runpod.jobs) == 2
