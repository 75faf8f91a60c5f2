"""The face RunPod does not have."""

from typing import Any

import httpx
import pytest

from tests.emulator.running import LIGHT, Client, eventually, one_endpoint


def test_the_control_api_asks_for_the_key_as_well(by_hand: Client) -> None:
    url = by_hand.url.partition("/v2/")[0] + "/_emulator"
    assert httpx.get(url, timeout=60).status_code == 401


def test_it_shows_jobs_workers_and_faults() -> None:
    with one_endpoint() as client:
        client.inject(operation="run", skip=1)
        client.run({"a": 1})
        worker_id, job_id = client.take("w1")
        client.chunk(worker_id, job_id, "unread")
        inside = client.control("GET", "")
        assert inside["faults"][0]["hits"] == 0
        endpoint = inside["endpoints"]["ep"]
        assert endpoint["health"] == client.health()
        assert endpoint["workers"] == [{"id": "w1", "jobs": [job_id], "stopping": []}]
        assert endpoint["jobs"] == [{**client.status(job_id), "input": {"a": 1}, "unread": 1}]
        client.run({"a": 1})
        assert client.control("GET", "")["faults"][0]["hits"] == 1


def test_a_fault_that_makes_no_sense_is_refused(by_hand: Client) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        by_hand.inject(operation="nonsense")


def test_a_reset_forgets_jobs_counts_and_faults() -> None:
    with one_endpoint() as client:
        client.inject(operation="stream", status=500)
        client.run({"a": 1})
        worker_id, finished = client.take()
        client.done(worker_id, finished, {"output": 1})
        client.run({"a": 1})
        client.take(worker_id)
        client.control("POST", "/reset")
        assert client.get(f"/stream/{finished}").status_code == 404
        assert set(client.health()["jobs"].values()) == {0}
        assert client.get(f"/job-stop/{worker_id}").json()["jobsToStop"]


@pytest.mark.slow
def test_a_crash_kills_the_workers(caplog: pytest.LogCaptureFixture) -> None:
    with one_endpoint(worker=LIGHT, min_workers=1) as client:
        eventually(lambda: client.workers("idle") == 1)
        [worker] = client.control("GET", "")["endpoints"]["ep"]["workers"]
        assert client.control("POST", "/ep/crash") == {"killed": [worker["id"]]}
        eventually(lambda: f"worker {worker['id']} died (SIGKILL)" in caplog.text)
        eventually(lambda: client.workers("idle") == 1)
        [successor] = client.control("GET", "")["endpoints"]["ep"]["workers"]
        assert successor["id"] != worker["id"]


@pytest.mark.slow
def test_it_tells_of_every_start_of_a_worker() -> None:
    with one_endpoint(worker=LIGHT) as client:
        client.run({"exit": 3})
        eventually(lambda: len(client.control("GET", "")["endpoints"]["ep"]["starts"]) >= 2)
        first, second = client.control("GET", "")["endpoints"]["ep"]["starts"][:2]
        assert first["exit_code"] == 3
        assert first["started_at"] < first["ended_at"] <= second["started_at"]
        client.control("POST", "/reset")
        assert client.control("GET", "")["endpoints"]["ep"]["starts"] == []


@pytest.mark.slow
def test_while_throttled_no_worker_starts() -> None:
    with one_endpoint(worker=LIGHT) as client:
        client.control("POST", "/ep/throttle")
        job_id = client.run({"a": 1})
        assert client.stream(job_id, 1000)["status"] == "IN_QUEUE"
        assert client.workers("throttled") == 1
        client.control("DELETE", "/ep/throttle")
        assert client.result(job_id)["output"] == {"a": 1}
        assert client.workers("throttled") == 0


def test_the_road_to_workers_ports_is_as_it_is_told(by_hand: Client) -> None:
    def conditions() -> Any:
        return by_hand.control("GET", "")["endpoints"]["ep"]["road"]["conditions"]

    calm = conditions()
    by_hand.control("PUT", "/ep/road", {"drop": "both", "latency_seconds": 0.5})
    assert conditions() == calm | {"drop": "both", "latency_seconds": 0.5}
    by_hand.control("PUT", "/ep/road", {"dials": "refuse"})
    assert conditions() == calm | {"dials": "refuse"}, "what is left out is as if nothing was said"
    by_hand.control("DELETE", "/ep/road")
    assert conditions() == calm
    by_hand.control("PUT", "/ep/road", {"dials": "refuse"})
    by_hand.control("POST", "/reset")
    assert conditions() == calm
    assert by_hand.control("POST", "/ep/road/cut") == {"cut": 0}
    assert by_hand.control("POST", "/ep/road/move")["workers"] == {}
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        by_hand.control("PUT", "/ep/road", {"drop": "sometimes"})
