"""The worker's face over HTTP, as the SDK's source says it calls; no SDK here."""

import time

import httpx
import pytest

from emulator.app import create_app
from emulator.settings import EmulatorSettings, EndpointSettings
from tests.emulator.running import API_KEY, Client, eventually, one_endpoint, queue_of, while_held
from tests.leaving import call_to_leave

SDK_POST_HEADERS = {
    "Authorization": API_KEY,
    "Content-Type": "application/x-www-form-urlencoded",
    "charset": "utf-8",
}


def test_a_single_take_is_answered_with_an_object(by_hand: Client) -> None:
    job_id = by_hand.run({"a": 1}, webhook="http://127.0.0.1:9/x")
    answer = by_hand.get("/job-take/w1", gpu="x", job_in_progress=0).json()
    assert answer == {"id": job_id, "input": {"a": 1}, "webhook": "http://127.0.0.1:9/x"}


def test_a_batch_take_is_answered_with_at_most_batch_size_jobs(by_hand: Client) -> None:
    jobs = [by_hand.run({"n": n}) for n in range(3)]
    first = by_hand.get("/job-take-batch/w1", gpu="x", batch_size=2, job_in_progress=0).json()
    second = by_hand.get("/job-take-batch/w1", gpu="x", batch_size=2, job_in_progress=1).json()
    assert [job["id"] for job in first] == jobs[:2]
    assert [job["id"] for job in second] == jobs[2:]


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_a_batch_of_a_strange_size_is_refused(by_hand: Client, size: str) -> None:
    assert by_hand.get("/job-take-batch/w1", batch_size=size).status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "route", ["/job-take/w1", "/job-take-batch/w1?batch_size=3", "/job-stop/w1"]
)
def test_an_empty_poll_is_held_and_then_204(route: str) -> None:
    with one_endpoint(take_hold_seconds=0.5, stop_hold_seconds=0.5) as client:
        begun = time.monotonic()
        assert client.http.get(client.url + route).status_code == 204
        assert time.monotonic() - begun > 0.4


def test_a_held_take_ends_with_the_first_job(by_hand: Client) -> None:
    answer = while_held(lambda: by_hand.get("/job-take/w1", gpu="x"), lambda: by_hand.run({"a": 1}))
    assert answer.json()["input"] == {"a": 1}


def test_a_job_is_not_given_to_a_poller_that_has_left() -> None:
    with one_endpoint() as client:
        with call_to_leave(f"{client.url}/job-take/gone?gpu=x", key=API_KEY):
            eventually(lambda: client.workers("idle") == 1)  # it has come
        job_id = client.run({"a": 1})
        assert client.get("/job-take/alive", gpu="x").json()["id"] == job_id


def test_a_body_labelled_as_a_form_is_read_as_json(by_hand: Client) -> None:
    job_id = by_hand.run({"a": 1})
    by_hand.get("/job-take/w1", gpu="x")
    for route, body in [
        ("job-stream", '{"output": "größe 100%&x=1 🙂"}'),
        ("job-done", '{"output": ["größe 100%&x=1 🙂"]}'),
    ]:
        url = f"{by_hand.url}/{route}/w1/{job_id}?gpu=x&isStream=false"
        answer = httpx.post(url, content=body.encode(), headers=SDK_POST_HEADERS, timeout=60)
        assert answer.status_code == 200
    assert by_hand.outputs(job_id) == ["größe 100%&x=1 🙂"]
    assert by_hand.status(job_id)["output"] == ["größe 100%&x=1 🙂"]


@pytest.mark.parametrize("route", ["job-stream", "job-done"])
def test_a_post_for_an_unknown_job_is_not_found(by_hand: Client, route: str) -> None:
    assert by_hand.post(f"/{route}/w1/nope-u1", {"output": 1}).status_code == 404


@pytest.mark.parametrize("route", ["job-stream", "job-done"])
def test_a_post_for_a_job_that_is_over_is_accepted_and_ignored(by_hand: Client, route: str) -> None:
    job_id = by_hand.run({"a": 1})
    by_hand.get("/job-take/w1", gpu="x")
    by_hand.post(f"/cancel/{job_id}")
    assert by_hand.post(f"/{route}/w1/{job_id}", {"output": 1}).status_code == 200
    assert by_hand.status(job_id)["status"] == "CANCELLED"
    assert by_hand.stream(job_id) == {"status": "CANCELLED", "stream": []}


def test_progress_shows_as_output_of_a_running_job(by_hand: Client) -> None:
    job_id = by_hand.run({"a": 1})
    by_hand.get("/job-take/w1", gpu="x")
    by_hand.post(f"/job-done/w1/{job_id}", {"status": "IN_PROGRESS", "output": "40 %"})
    assert by_hand.status(job_id)["status"] == "IN_PROGRESS"
    assert by_hand.status(job_id)["output"] == "40 %"


def test_a_held_stop_poll_ends_with_the_cancelled_job() -> None:
    with one_endpoint() as client:
        job_id = client.run({"a": 1})
        client.get("/job-take/w1", gpu="x")
        answer = while_held(
            lambda: client.get("/job-stop/w1", gpu="x"),
            lambda: client.post(f"/cancel/{job_id}"),
        )
        assert answer.json() == {"jobsToStop": [job_id]}


@pytest.mark.slow
def test_a_stop_comes_again_until_a_ping_no_longer_lists_the_job() -> None:
    with one_endpoint(stop_repeat_seconds=0.05, stop_hold_seconds=0.3) as client:
        job_id = client.run({"a": 1})
        client.get("/job-take/w1", gpu="x")
        client.post(f"/cancel/{job_id}")
        for _ in range(3):
            assert client.get("/job-stop/w1", gpu="x").json() == {"jobsToStop": [job_id]}
            client.get("/ping/w1", job_id=job_id, runpod_version="1.12.0")

        def is_silent() -> bool:
            client.get("/ping/w1", runpod_version="1.12.0")
            return client.get("/job-stop/w1", gpu="x").status_code == 204

        eventually(is_silent)


def test_a_job_absent_from_the_pings_is_handed_out_again() -> None:
    with one_endpoint(lease_seconds=0.3) as client:
        job_id = client.run({"a": 1})
        client.get("/job-take/w1", gpu="x")
        client.get("/ping/w1", gpu="x")
        assert client.get("/job-take/w2", gpu="x").json()["id"] == job_id
        assert client.status(job_id)["retries"] == 1
        assert client.result(job_id)["error"] == "job timed out after 1 retries"


def test_a_ping_that_says_unhealthy_shows_in_health() -> None:
    with one_endpoint(take_hold_seconds=0.05) as client:
        client.get("/job-take/w1", gpu="x")
        assert client.workers("idle") == 1
        client.get("/ping/w1", gpu="x", status="unhealthy", check="disk", reason="full")
        assert client.workers("unhealthy") == 1
        assert client.workers("idle") == 0


async def test_a_job_whose_taker_leaves_at_that_moment_stays_in_the_queue() -> None:
    """Spoken to without a socket: no real connection breaks at so exact a moment."""
    settings = EmulatorSettings(endpoints=(EndpointSettings(id="ep"),))
    app = create_app(settings)
    job = queue_of(app).submit({"a": 1})

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v2/ep/job-take/w1",
        "query_string": b"gpu=x",
        "headers": [(b"authorization", b"rpa_local")],
    }
    await app(scope, receive, send)
    assert job.status == "IN_QUEUE"
    assert job.retries == 0
