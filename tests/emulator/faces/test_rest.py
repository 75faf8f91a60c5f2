"""RunPod's REST API: an endpoint's workers and a worker's log."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from emulator.app import create_app
from emulator.settings import EmulatorSettings
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


@pytest.fixture(scope="module")
def written() -> Iterator[Client]:
    """An endpoint whose worker has written three lines and died."""
    worker = "sh -c 'echo one; echo two; echo three; exit 1'"
    with one_endpoint(
        worker=worker, min_workers=1, min_backoff_seconds=600, max_backoff_seconds=600
    ) as client:
        eventually(lambda: rest(client).json()["summary"]["unhealthy"] == 1)
        yield client


def log_of(client: Client, *, last_event_id: str = "", **params: Any) -> list[tuple[str, str]]:
    """The log of the endpoint's only worker as ids and lines, which ends since the worker has."""
    [worker] = rest(client).json()["workers"]
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    text = rest(client, f"/{worker['id']}/logs", params=params, headers=headers).text
    events = [event.split("\n") for event in text.split("\n\n") if event]
    return [
        (i.removeprefix("id: "), json.loads(d.removeprefix("data: "))["line"]) for i, d in events
    ]


@pytest.mark.slow
def test_the_tail_of_a_log_is_counted_among_the_lines_that_are_asked_for(written: Client) -> None:
    lines = [line for _, line in log_of(written, source="container", tail=2)]
    assert lines == ["two", "three"]
    [(_, last)] = log_of(written, source="system", tail=1)
    assert last.startswith("worker died")
    assert log_of(written, tail=0) == []


@pytest.mark.slow
def test_a_log_is_resumed_behind_the_event_that_was_seen_last(written: Client) -> None:
    events = log_of(written, source="container")
    assert [line for _, line in events] == ["one", "two", "three"]
    assert log_of(written, source="container", last_event_id=events[0][0], tail=0) == events[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["since", "last_event_id"])
def test_a_log_is_resumed_at_a_moment_whatever_its_offset(written: Client, name: str) -> None:
    events = log_of(written)
    first, last = (datetime.fromisoformat(events[n][0].partition("/")[0]) for n in (0, -1))
    east, west = timezone(timedelta(hours=12)), timezone(timedelta(hours=-12))
    before = (first - timedelta(hours=1)).astimezone(east).isoformat()
    after = (last + timedelta(hours=1)).astimezone(west).isoformat()
    from_before: dict[str, Any] = {name: before, "tail": 0}
    assert log_of(written, **from_before) == events
    assert log_of(written, **{name: after}) == []
    assert log_of(written, **{name: first.isoformat()}) == events, "from that moment on"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["yesterday", "2026-06-01T12:05:04", "2026-06-31T12:05:04Z", "7"]
)
def test_a_log_is_not_resumed_at_what_is_no_moment(written: Client, moment: str) -> None:
    [worker] = rest(written).json()["workers"]
    path = f"/{worker['id']}/logs"
    answer = rest(written, path, params={"since": moment})
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "since must be an RFC3339 timestamp",
    )
    answer = rest(written, path, headers={"last-event-id": moment})
    assert answer.status_code == 400


async def test_quotas_are_told_with_every_answer_and_refuse_what_is_beyond() -> None:
    settings = {"endpoints": [{"id": "ep"}], "rest_quotas": {"hour": 3000, "minute": 2}}
    app = create_app(EmulatorSettings.model_validate(settings))
    url = "http://x/v2/serverless/ep/workers"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as http:
        unknown = await http.get(url)
        http.headers["authorization"] = "Bearer rpa_local"
        answers = [await http.get(url), await http.get(url + "/unknown/logs"), await http.get(url)]
    assert unknown.status_code == 401
    assert "ratelimit" not in unknown.headers
    assert [answer.status_code for answer in answers] == [200, 404, 429]
    policy = '"minute";q=2;w=60, "hour";q=3000;w=3600'
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {policy}
    assert [answer.headers["ratelimit"].split(";t=")[0] for answer in answers] == [
        '"minute";r=1',
        '"minute";r=0',
        '"minute";r=0',
    ]
    assert answers[2].json() == {
        "title": "Too Many Requests",
        "status": 429,
        "detail": "rate limit exceeded for the minute window",
    }
    assert 0 < int(answers[2].headers["retry-after"]) <= 60


def test_without_quotas_there_are_no_headers_of_them(by_hand: Client) -> None:
    assert not {"ratelimit", "ratelimit-policy"} & set(rest(by_hand).headers)


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
