"""RunPod's REST API: what an endpoint's workers have cost."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from emulator.app import create_app
from emulator.faces.billing_query import timestamp
from emulator.fleet.bill import bucket_of
from emulator.fleet.slot import Start
from emulator.gateway.state import state_of
from emulator.settings import EmulatorSettings
from proxy.config.settings import DATABASE_FILE
from tests.emulator.running import API_KEY, LIGHT, eventually, one_endpoint
from tests.proxy.ledger.conftest import keep

PATH = "/v2/billing/serverless"
ROOT = Path(__file__).parents[3]


async def ask(starts: dict[str, list[Start]], key: str = "rpa_local", **params: Any) -> Any:
    """What an emulator tells whose workers were these, of endpoints at half a dollar a second."""
    endpoints = [{"id": name, "price_per_second": 0.5} for name in starts]
    app = create_app(EmulatorSettings.model_validate({"endpoints": endpoints}))
    for name, some in starts.items():
        state_of(app).endpoints[name].scaler.starts.extend(some)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as http:
        return await http.get(f"http://x{PATH}", params=params, headers=headers)


def worker(begun: datetime, seconds: float) -> Start:
    moment = begun.timestamp()
    return Start("w", moment - 5, placed_at=moment, ended_at=moment + seconds)


NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=2)
"""Two days ago: never in the bucket of now."""
STARTS = {
    "a": [worker(NOON, 10), worker(NOON + timedelta(hours=2), 3.5)],
    "b": [worker(NOON - timedelta(days=1), 2)],
    "idle": [],
}


async def test_a_record_tells_what_an_endpoint_has_cost_in_a_day() -> None:
    answer = (await ask(STARTS)).json()
    midnight = NOON.replace(hour=0)
    assert answer["records"][0] == {
        "startTime": timestamp(midnight),
        "endTime": timestamp(midnight + timedelta(days=1)),
        "serverlessId": "a",
        "totalAmount": 7.0,
        "gpuAmount": 7.0,
        "cpuAmount": 0.0,
        "diskAmount": 0.0,
        "feeAmount": 0.0,
    }
    assert [one["serverlessId"] for one in answer["records"]] == ["a", "b"]
    told = answer["metadata"]
    assert (told["recordCount"], told["uniqueServerlessCount"]) == (2, 2)
    assert told["totals"]["totalAmount"] == 8.0
    assert told["query"]["bucketSize"] == "day"
    assert told["query"]["serverlessId"] is None


async def test_buckets_are_as_long_as_is_asked_and_of_one_endpoint_if_it_is_named() -> None:
    hours = (await ask(STARTS, bucketSize="hour", serverlessId="a")).json()
    assert [one["startTime"] for one in hours["records"]] == [
        timestamp(NOON),
        timestamp(NOON + timedelta(hours=2)),
    ]
    assert hours["metadata"]["query"]["serverlessId"] == "a"


async def test_a_window_is_widened_to_whole_buckets() -> None:
    evening = (NOON + timedelta(hours=8)).astimezone().isoformat()
    answer = (await ask(STARTS, startTime=evening, endTime=evening)).json()
    assert [one["serverlessId"] for one in answer["records"]] == ["a"]
    midnight = NOON.replace(hour=0)
    asked = answer["metadata"]["query"]
    assert (asked["startTime"], asked["endTime"]) == (
        timestamp(midnight),
        timestamp(midnight + timedelta(days=1)),
    )
    before = (await ask(STARTS, endTime=timestamp(midnight))).json()
    assert [one["serverlessId"] for one in before["records"]] == ["b"]


async def test_the_last_buckets_end_with_the_one_of_now() -> None:
    answer = (await ask(STARTS, lastN=3)).json()
    assert [one["serverlessId"] for one in answer["records"]] == ["a"]
    now = datetime.now(UTC)
    assert answer["metadata"]["query"]["endTime"] in (
        timestamp(bucket_of(one, "day")[1]) for one in (now, now - timedelta(minutes=5))
    )


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"bucketSize": "minute"}, "bucketSize must be one of hour, day, week, month, year"),
        ({"lastN": 2, "endTime": "2026-06-01T00:00:00Z"}, "mutually exclusive"),
        ({"lastN": 0}, "lastN must be from 1 to"),
        ({"lastN": "9" * 9}, "lastN must be from 1 to"),
        ({"lastN": 9999, "bucketSize": "year"}, "out of range"),
        ({"startTime": "2026-06-01"}, "startTime must be an RFC3339 timestamp"),
        ({"startTime": "yesterday"}, "startTime must be an RFC3339 timestamp"),
        ({"endTime": "9999-12-31T12:00:00Z"}, "out of range"),
    ],
)
async def test_what_makes_no_sense_is_a_problem(params: dict[str, Any], says: str) -> None:
    refused = await ask({"a": []}, **params)
    assert refused.status_code == 400
    assert says in refused.json()["detail"]
    assert refused.headers["content-type"] == "application/problem+json"


async def test_a_key_is_needed() -> None:
    refused = await ask({"a": []}, key="wrong")
    assert (refused.status_code, refused.json()["title"]) == (401, "Unauthorized")


@pytest.mark.slow
def test_the_proxys_command_lays_the_emulators_bill_beside_its_ledger(tmp_path: Path) -> None:
    keep(f"sqlite:///{tmp_path}/{DATABASE_FILE}")
    with one_endpoint(worker=LIGHT, price_per_second=2, idle_timeout_seconds=0.1) as runpod:
        runpod.result(runpod.run({"a": 1}))
        eventually(lambda: runpod.control("GET", "")["endpoints"]["ep"]["starts"][0]["ended_at"])
        base = runpod.url.removesuffix("/v2/ep")
        variables = {
            "PROXY_STATE_DIR": str(tmp_path),
            "PROXY_API_KEYS": "sk-test",
            "RUNPOD_API_KEY": API_KEY,
            "RUNPOD_ENDPOINT_ID": "ep",
            "RUNPOD_REST_BASE_URL": base,
        }
        command = [sys.executable, "-m", "proxy", "--env-file", os.devnull, "usage", "--reconcile"]
        told = subprocess.run(
            [*command, "--csv"],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert told.returncode == 0, told.stderr
    names, line, *_ = [line.split(",") for line in told.stdout.splitlines()]
    found = dict(zip(names, line, strict=True))
    assert (found["requests"], found["endpoint"]) == ("0", "ep")
    assert float(found["billed"]) >= 2
