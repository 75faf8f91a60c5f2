"""Handing a job to RunPod: what it refuses, what is repeated, when it is no use to try."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from proxy.app import create_app
from proxy.backends.runpod import jobs
from tests.proxy.backends.runpod.test_cancellation import is_refused, submissions
from tests.proxy.conftest import KEY, asked, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import CHAT, FRAMES, PATIENT, last_error
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.servers import free_port, serve
from tests.waiting import wait_until


@PATIENT
@pytest.mark.parametrize("wants_stream", [True, False])
def test_a_job_that_runpod_refuses_is_not_followed(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, wants_stream: bool
) -> None:
    runpod.run_answers = [Response(status_code=401)]
    response = fresh_client.post(CHAT, json=chat(stream=wants_stream))
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_misconfigured"
    assert (runpod.stream_calls, runpod.cancelled) == (0, [])


@pytest.mark.parametrize(
    ("upstream", "status", "code"),
    [
        (401, 502, "upstream_misconfigured"),
        (403, 502, "upstream_misconfigured"),
        (404, 502, "upstream_misconfigured"),
        (400, 502, "worker_failed"),
        (500, 503, "upstream_unavailable"),
        (524, 503, "upstream_unavailable"),
        (302, 503, "upstream_unavailable"),
    ],
)
def test_what_runpod_answers_to_a_submission_becomes_our_own_error(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, upstream: int, status: int, code: str
) -> None:
    runpod.run_answers = [Response("secret detail", status_code=upstream)]
    response = fresh_client.post(CHAT, json=chat())
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert "secret" not in response.text
    assert "rp-test" not in response.text


@contextmanager
def full_port() -> Iterator[int]:
    """A port that takes no connection any more: one that is asked for is never answered."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.slow
def test_a_connection_that_takes_too_long_has_a_deadline_of_its_model(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    with full_port() as port:
        file.write_text(
            "[endpoints.ep]\n[models.m]\nendpoint = 'ep'\nconnect_timeout_seconds = 0.2"
        )
        settings = settings_for(
            f"http://127.0.0.1:{port}", config=file, connect_timeout_seconds=600
        )
        headers = {"authorization": f"Bearer {KEY}"}
        with serve(create_app(settings)) as url:
            response = httpx.post(f"{url}{CHAT}", json=chat(), headers=headers, timeout=60)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "connect_timeout")


@pytest.mark.parametrize("body", ["", "[]", "<html>"])
def test_a_submission_whose_answer_cannot_be_read_is_an_error(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, body: str
) -> None:
    runpod.run_answers = [Response(body)]
    response = fresh_client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (503, "upstream_unavailable")


@pytest.mark.parametrize("job_id", [None, 3, "", "a\nb", "a/../b"])
def test_a_submission_that_gets_no_job_id_is_an_error(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, job_id: object
) -> None:
    runpod.run_answers = [JSONResponse({"id": job_id, "status": "IN_QUEUE"})]
    response = fresh_client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")


@pytest.mark.slow
def test_a_submission_that_met_the_rate_limit_is_repeated_in_its_own_time(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "1"})] * 2
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    began = time.monotonic()
    assert fresh_client.post(CHAT, json=chat()).status_code == 200
    assert time.monotonic() - began >= 2
    assert len(runpod.jobs) == 1


def test_a_submission_that_may_have_started_a_job_is_not_repeated(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=500)]
    response = fresh_client.post(CHAT, json=chat())
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "false")
    assert runpod.jobs == []


@pytest.fixture
def unreachable() -> Iterator[tuple[httpx.Client, int]]:
    """A client of a proxy whose RunPod is not there yet, and the port it would have."""
    port = free_port()
    app = create_app(settings_for(f"http://127.0.0.1:{port}"))
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(app) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        yield client, port


def failed_calls(client: httpx.Client) -> float:
    """How often this proxy could not hand a job to RunPod."""
    return value(client, "runpod_calls_total", endpoint="ep", operation="run", outcome="error")


def test_a_submission_that_never_reached_runpod_is_repeated(
    unreachable: tuple[httpx.Client, int], runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, port = unreachable
    monkeypatch.setattr(jobs, "REPEATS", 100)  # RunPod may be long in coming up
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, CHAT, json=chat())
        wait_until(lambda: failed_calls(client) > 0)
        with serve(runpod.app, port=port):
            assert answer.result().status_code == 200


@pytest.mark.slow
def test_a_dead_endpoint_is_refused_at_once_and_tried_again_by_itself(
    unreachable: tuple[httpx.Client, int], runpod: ScriptedRunPod
) -> None:
    client, port = unreachable
    runpod.script = [Page("COMPLETED", [{"ok": True}])]

    def calls_for_a_refusal() -> float:
        before = failed_calls(client)
        answer = client.post(CHAT, json=chat())
        assert answer.json()["error"]["code"] == "upstream_unavailable"
        calls = failed_calls(client) - before
        assert calls > 0 or answer.headers["retry-after"]
        return calls

    assert [calls_for_a_refusal() for _ in range(5)] == [jobs.REPEATS + 1] * 5
    # At once, unless the machine stalls for so long that RunPod is to be tried again.
    wait_until(lambda: calls_for_a_refusal() == 0)
    with serve(runpod.app, port=port):
        wait_until(lambda: client.post(CHAT, json=chat()).status_code == 200)


@pytest.mark.parametrize("settings", [{"max_requests": 2}, {"max_waiting": 2}], indirect=True)
def test_too_many_requests_are_refused_without_a_job(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [
        Page("IN_QUEUE", hold=hold),
        Page("IN_QUEUE", hold=hold),
        Page("COMPLETED", FRAMES),
        Page("COMPLETED", FRAMES),
    ]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(fresh_client.post, CHAT, json=chat(stream=True)) for _ in range(2)]
        wait_until(lambda: len(runpod.jobs) == 2)
        refused = fresh_client.post(CHAT, json=chat())
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "endpoint_overloaded"
        assert refused.headers["retry-after"]
        assert "x-should-retry" not in refused.headers
        hold.set()
        assert {answer.result().status_code for answer in running} == {200}
    assert len(runpod.jobs) == 2


@pytest.mark.parametrize("settings", [{"max_requests": 1}], indirect=True)
def test_a_place_is_free_again_after_every_kind_of_end(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    for end in ("COMPLETED", "FAILED"):
        runpod.reset()
        runpod.script = [Page(end, [{"ok": True}] if end == "COMPLETED" else [])]
        assert fresh_client.post(CHAT, json=chat()).status_code == (
            200 if end == "COMPLETED" else 502
        )
        runpod.reset()
        runpod.script = [Page(end, FRAMES if end == "COMPLETED" else FRAMES[:1]), Page(end)]
        assert fresh_client.post(CHAT, json=chat(stream=True)).status_code == 200
        runpod.reset()
        runpod.run_answers = [Response(status_code=500)]
        assert fresh_client.post(CHAT, json=chat()).status_code == 503


@pytest.mark.parametrize("wants_stream", [True, False])
def test_a_deadline_holds_while_runpod_wants_no_submissions(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, wants_stream: bool
) -> None:
    runpod.run_answers = [Response(status_code=429, headers={"retry-after": "60"})]
    with asked(fresh_client):
        wait_until(lambda: is_refused(fresh_client))
        headers = {"x-cold-start-timeout": "1"}  # for one that must wait behind that refusal
        response = fresh_client.post(CHAT, json=chat(stream=wants_stream), headers=headers)
    error = last_error(response.text) if wants_stream else error_of(response)
    assert error["code"] == "cold_start_timeout"
    assert "for 1 s (x-cold-start-timeout): RunPod has not accepted the job" in error["message"]
    wait_until(lambda: submissions(fresh_client) == 0)
    assert runpod.jobs == []


@pytest.mark.slow
@pytest.mark.parametrize("late", ["run_hold", "run_drips"])
def test_a_submission_that_is_answered_after_a_deadline_is_cancelled(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, late: str
) -> None:
    answered = threading.Event()
    setattr(runpod, late, answered)
    response = fresh_client.post(CHAT, json=chat(), headers={"x-cold-start-timeout": "1"})
    assert error_of(response)["code"] == "cold_start_timeout"
    assert (len(runpod.jobs), runpod.cancelled) == (1, [])
    answered.set()
    wait_until(lambda: runpod.job_id in runpod.cancelled)
