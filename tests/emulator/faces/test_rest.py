"""RunPod's REST API: an endpoint's workers and a worker's log."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulator.running import LIGHT, Client, eventually, one_endpoint

SAYS = "import time; print('Loading weights', flush=True); time.sleep(600)"


def rest(client: Client, path: str = "", **options: Any) -> httpx.Response:
    """A call below the endpoint's workers."""
    url = client.url.replace("/v2/", "/v2/serverless/") + "/workers" + path
    return client.http.get(url, **options)


@pytest.mark.slow
def test_workers_are_listed_with_their_status(tmp_path: Path) -> None:
    with one_endpoint(worker=LIGHT, cold_start_delay_seconds=0.3) as client:
        assert rest(client).json() == {
            "endpointVersion": 1,
            "summary": dict.fromkeys(
                ("running", "idle", "initializing", "throttled", "unhealthy", "total"), 0
            ),
            "workers": [],
        }
        client.run({"until": str(tmp_path / "go")})
        eventually(lambda: rest(client).json()["summary"]["initializing"] == 1)
        [starting] = rest(client).json()["workers"]
        assert (starting["startedAt"], starting["uptimeSeconds"]) == (None, None)
        eventually(lambda: rest(client).json()["summary"]["running"] == 1)
        [worker] = rest(client).json()["workers"]
        assert (worker["id"], worker["status"], worker["isStale"]) == (
            starting["id"],
            "RUNNING",
            False,
        )
        assert worker["startedAt"].endswith("Z")
        assert worker["uptimeSeconds"] >= 0


@pytest.mark.slow
def test_a_workers_log_is_streamed_and_ends_with_the_worker() -> None:
    with one_endpoint(worker=f'python3 -c "{SAYS}"', min_workers=1) as client:
        eventually(lambda: rest(client).json()["workers"])
        [worker] = rest(client).json()["workers"]
        url = client.url.replace("/v2/", "/v2/serverless/") + f"/workers/{worker['id']}/logs"
        with client.http.stream("GET", url, params={"source": "container"}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.iter_lines()
            event_id = next(lines).removeprefix("id: ")
            data = json.loads(next(lines).removeprefix("data: "))
            assert (data["source"], data["line"]) == ("container", "Loading weights")
            assert event_id.startswith(data["ts"])
            assert next(lines) == ""
            client.control("POST", "/ep/crash")
            assert list(lines) == []
        assert rest(client, f"/{worker['id']}/logs", params={"tail": 6000}).status_code in (
            400,
            404,
        )


def test_its_errors_are_problems(by_hand: Client) -> None:
    missing = httpx.get(by_hand.url.replace("/v2/", "/v2/serverless/") + "/workers", timeout=60)
    assert missing.headers["content-type"] == "application/problem+json"
    assert missing.json() == {
        "title": "Unauthorized",
        "status": 401,
        "detail": "missing bearer token",
    }
    unknown = rest(by_hand, "/unknown/logs")
    assert unknown.json() == {"title": "Not Found", "status": 404, "detail": "resource not found"}
