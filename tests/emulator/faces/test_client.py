"""The client's face over HTTP; the test plays the worker, call by call."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.emulator.running import API_KEY, Client, Json, eventually, one_endpoint, while_held
from tests.leaving import call_to_leave


@pytest.fixture
def running(by_hand: Client) -> tuple[str, str]:
    """A job in a worker's hands: the worker's id and the job's."""
    by_hand.run({"a": 1})
    return by_hand.take()


# Who may call


def request(client: Client, headers: dict[str, str]) -> httpx.Response:
    return httpx.get(f"{client.url}/health", headers=headers, timeout=60)


@pytest.mark.parametrize("key", [API_KEY, f"Bearer {API_KEY}"])
def test_the_key_is_accepted_with_and_without_bearer(by_hand: Client, key: str) -> None:
    assert request(by_hand, {"Authorization": key}).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_call_without_the_right_key_is_refused(by_hand: Client, headers: dict[str, str]) -> None:
    answer = request(by_hand, headers)
    assert answer.status_code == 401
    assert set(answer.json()) == {"error"}


def test_an_unknown_endpoint_is_not_found(by_hand: Client) -> None:
    url = by_hand.url.replace("/v2/ep", "/v2/unknown")
    answer = httpx.get(f"{url}/health", headers={"Authorization": API_KEY}, timeout=60)
    assert answer.status_code == 404


# Submitting


def test_a_caller_that_leaves_while_it_sends_is_no_mishap(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with one_endpoint() as client:
        url = httpx.URL(client.url)
        with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
            head = f"POST {url.path}/run HTTP/1.1\r\nHost: x\r\nAuthorization: {API_KEY}\r\n"
            connection.sendall(f"{head}Content-Length: 9\r\n\r\nhalf".encode())
            time.sleep(0.2)  # it arrives: nothing shows that from outside
    assert "ASGI" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"input": null}',
        b'{"input": "text"}',
        b'{"input": {"a": 1}, "policy": []}',
        b'{"input": {"a": 1}, "policy": {"ttl": "soon"}}',
        b'{"input": {"a": 1}, "policy": {"ttl": 1%s}}' % (b"0" * 400),
        b'{"input": {"a": 1}, "policy": {"executionTimeout": -1}}',
    ],
)
@pytest.mark.parametrize("route", ["/run", "/runsync"])
def test_a_body_that_makes_no_sense_is_refused(by_hand: Client, route: str, body: bytes) -> None:
    answer = by_hand.http.post(by_hand.url + route, content=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_run_answers_at_once_with_an_id(by_hand: Client) -> None:
    answer = by_hand.post("/run", {"input": {"a": 1}})
    assert answer.text == f'{{"id":"{answer.json()["id"]}","status":"IN_QUEUE"}}'


def test_runsync_returns_the_finished_job(by_hand: Client) -> None:
    with ThreadPoolExecutor() as pool:
        call = pool.submit(by_hand.post, "/runsync", {"input": {"a": 1}})
        worker_id, job_id = by_hand.take()
        by_hand.done(worker_id, job_id, {"output": 42})
        answer = call.result().json()
    assert job_id.startswith("sync-")
    assert answer["status"] == "COMPLETED"
    assert answer["output"] == 42
    assert answer["workerId"] == worker_id


@pytest.mark.slow
def test_runsync_answers_with_the_queued_job_when_its_wait_ends(by_hand: Client) -> None:
    answer = by_hand.post("/runsync?wait=1000", {"input": {"a": 1}})
    assert answer.status_code == 200
    assert answer.json() == {"id": answer.json()["id"], "status": "IN_QUEUE"}


def test_payloads_above_the_limit_are_refused() -> None:
    with one_endpoint(max_run_bytes=100, max_runsync_bytes=200) as client:
        body = {"input": {"text": "x" * 120}}
        assert client.post("/run", body).status_code == 400
        with ThreadPoolExecutor() as pool:
            call = pool.submit(client.post, "/runsync", body)
            worker_id, job_id = client.take()
            client.done(worker_id, job_id, {"output": "y" * 120})
            assert call.result().json()["output"] == "y" * 120


def test_a_result_above_the_limit_is_refused_and_the_job_completes_empty() -> None:
    with one_endpoint(max_run_bytes=100) as client:
        client.run({"a": 1})
        worker_id, job_id = client.take()
        answer = client.post(f"/job-done/{worker_id}/{job_id}", {"output": "x" * 120})
        assert answer.status_code == 400
        assert client.status(job_id)["status"] == "COMPLETED"
        assert "output" not in client.status(job_id)


def test_an_execution_timeout_is_counted_in_milliseconds() -> None:
    with one_endpoint() as client:
        client.run({"a": 1}, policy={"executionTimeout": 200})
        _, job_id = client.take()
        assert client.result(job_id)["status"] == "TIMED_OUT"


# The stream


def test_a_stream_hands_out_each_chunk_once(by_hand: Client, running: tuple[str, str]) -> None:
    worker_id, job_id = running
    by_hand.chunk(worker_id, job_id, "a")
    by_hand.chunk(worker_id, job_id, {"b": None})
    both = [{"output": "a"}, {"output": {"b": None}}]
    assert by_hand.stream(job_id) == {"status": "IN_PROGRESS", "stream": both}
    by_hand.chunk(worker_id, job_id, "c")
    assert by_hand.stream(job_id) == {"status": "IN_PROGRESS", "stream": [{"output": "c"}]}


def test_the_last_chunks_come_with_the_terminal_status(
    by_hand: Client, running: tuple[str, str]
) -> None:
    worker_id, job_id = running
    by_hand.chunk(worker_id, job_id, "last")
    by_hand.done(worker_id, job_id, {"output": ["last"]})
    assert by_hand.stream(job_id) == {"status": "COMPLETED", "stream": [{"output": "last"}]}
    assert by_hand.stream(job_id) == {"status": "COMPLETED", "stream": []}


def held_stream(client: Client, job_id: str, act: Callable[[], object]) -> Json:
    """The answer to a /stream call that is being held while `act` happens."""
    return while_held(lambda: client.stream(job_id, 20_000), act)


def test_a_held_stream_ends_with_the_first_chunk(by_hand: Client, running: tuple[str, str]) -> None:
    worker_id, job_id = running
    answer = held_stream(by_hand, job_id, lambda: by_hand.chunk(worker_id, job_id, "x"))
    assert answer == {"status": "IN_PROGRESS", "stream": [{"output": "x"}]}


def test_a_held_stream_ends_when_the_job_does(by_hand: Client, running: tuple[str, str]) -> None:
    worker_id, job_id = running
    answer = held_stream(by_hand, job_id, lambda: by_hand.done(worker_id, job_id, {"error": "e"}))
    assert answer == {"status": "FAILED", "stream": []}


def test_a_held_stream_ends_when_the_job_is_cancelled(
    by_hand: Client, running: tuple[str, str]
) -> None:
    _, job_id = running
    answer = held_stream(by_hand, job_id, lambda: by_hand.post(f"/cancel/{job_id}"))
    assert answer == {"status": "CANCELLED", "stream": []}


def test_a_held_stream_of_a_purged_job_is_not_found(by_hand: Client) -> None:
    job_id = by_hand.run({"a": 1})
    answer = while_held(
        lambda: by_hand.get(f"/stream/{job_id}", wait=20_000),
        lambda: by_hand.post("/purge-queue"),
    )
    assert answer.status_code == 404


def test_a_stream_with_nothing_to_tell_is_held_and_then_empty() -> None:
    with one_endpoint(stream_hold_seconds=0.1) as client:
        job_id = client.run({"a": 1})
        assert client.stream(job_id) == {"status": "IN_QUEUE", "stream": []}


def test_the_wait_of_a_stream_is_at_least_a_second(by_hand: Client) -> None:
    """As on RunPod; a client that asks for less is held for longer than it thinks."""
    job_id = by_hand.run({"a": 1})
    begun = time.monotonic()
    assert by_hand.stream(job_id, 1) == {"status": "IN_QUEUE", "stream": []}
    assert time.monotonic() - begun > 0.9


def test_a_reader_that_has_left_takes_no_chunks_with_it(
    by_hand: Client, running: tuple[str, str]
) -> None:
    worker_id, job_id = running
    with call_to_leave(f"{by_hand.url}/stream/{job_id}?wait=20000", key=API_KEY):
        time.sleep(0.1)  # for the call to be held, which shows nowhere
    by_hand.chunk(worker_id, job_id, "kept")
    assert by_hand.stream(job_id)["stream"] == [{"output": "kept"}]


@pytest.mark.slow
def test_a_hundred_streams_are_held_at_once() -> None:
    with one_endpoint() as client, ThreadPoolExecutor(100) as pool:
        jobs = [client.run({"n": n}) for n in range(100)]
        taken = client.get("/job-take-batch/w1", gpu="x", batch_size=100).json()
        assert [job["id"] for job in taken] == jobs
        calls = [pool.submit(client.stream, job_id, 20_000) for job_id in jobs]
        for job_id in jobs:
            client.chunk("w1", job_id, job_id)
        answers = [call.result(timeout=60)["stream"] for call in calls]
    assert answers == [[{"output": job_id}] for job_id in jobs]


# The other operations


def test_a_cancel_is_answered_with_the_new_status(by_hand: Client) -> None:
    job_id = by_hand.run({"a": 1})
    assert by_hand.post(f"/cancel/{job_id}").json() == {"id": job_id, "status": "CANCELLED"}
    assert by_hand.status(job_id) == {"id": job_id, "status": "CANCELLED"}


def test_a_failed_job_can_be_retried(by_hand: Client, running: tuple[str, str]) -> None:
    worker_id, job_id = running
    assert by_hand.post(f"/retry/{job_id}").status_code == 400
    by_hand.done(worker_id, job_id, {"error": "boom"})
    assert by_hand.post(f"/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    assert by_hand.take()[1] == job_id


def test_a_purge_counts_the_queued_jobs(by_hand: Client) -> None:
    by_hand.run({"n": 1})
    by_hand.run({"n": 2})
    assert by_hand.post("/purge-queue").json() == {"removed": 2, "status": "completed"}


@pytest.mark.parametrize("operation", ["status", "stream", "status-sync"])
def test_an_unknown_job_is_not_found(by_hand: Client, operation: str) -> None:
    assert by_hand.get(f"/{operation}/nope-u1").status_code == 404


def test_a_finished_job_is_forgotten_after_its_retention() -> None:
    with one_endpoint(retention_seconds=0.5) as client:
        client.run({"a": 1})
        worker_id, job_id = client.take()
        ended = time.monotonic()
        client.done(worker_id, job_id, {"output": 1})
        eventually(lambda: client.get(f"/status/{job_id}").status_code == 404)
        assert time.monotonic() - ended > 0.4


def test_health_counts_jobs_and_workers() -> None:
    with one_endpoint() as client:
        for _ in range(3):
            client.run({"a": 1})
        worker_id, first = client.take("w1")
        client.done(worker_id, first, {"output": 1})
        client.take("w1")
        client.get("/job-take/w2", gpu="x")
        client.post("/job-done/w2/unknown-u1", {"output": 1})
        assert client.health() == {
            "jobs": {"completed": 1, "failed": 0, "inProgress": 2, "inQueue": 0, "retried": 0},
            "workers": {
                "idle": 0,
                "initializing": 0,
                "ready": 0,
                "running": 2,
                "throttled": 0,
                "unhealthy": 0,
            },
        }


# Beside the jobs


def test_what_stands_beside_the_input_reaches_the_worker_as_it_came(by_hand: Client) -> None:
    s3 = {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "d"}
    extras = {"webhook": "http://127.0.0.1:9/", "webhookV2": "http://127.0.0.1:9/", "s3Config": s3}
    job_id = by_hand.run({"a": 1}, **extras, policy={"ttl": 60_000}, unknown=1)
    job = by_hand.get("/job-take/w1", gpu="x").json()
    assert job == {"id": job_id, "input": {"a": 1}, **extras}


def test_status_can_shorten_a_jobs_life(by_hand: Client) -> None:
    job_id = by_hand.run({"a": 1})
    assert by_hand.get(f"/status/{job_id}", ttl=150).json()["status"] == "IN_QUEUE"
    eventually(lambda: by_hand.get(f"/status/{job_id}").status_code == 404)


@pytest.mark.parametrize("ttl", ["soon", "-1", "1.5", "", "9" * 400, "9" * 5000])
def test_a_ttl_that_is_no_number_is_refused(by_hand: Client, ttl: str) -> None:
    job_id = by_hand.run({"a": 1})
    assert by_hand.get(f"/status/{job_id}", ttl=ttl).status_code == 400


def test_metrics_name_the_ready_workers() -> None:
    with one_endpoint() as client:
        client.run({"a": 1})
        client.take("w1")
        expected = {"readyWorkers": ["w1"], "workers": client.health()["workers"]}
        assert client.get("/metrics").json() == expected
