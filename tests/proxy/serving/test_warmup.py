"""A worker is woken on request or by the clock, by a job that generates nothing."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from proxy.app import create_app
from tests.proxy.conftest import KEY, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

TOLD = [{"id": "m", "max_model_len": 4321}]
FRAME = {
    "seq": 0,
    "status": 200,
    "content_type": "application/json",
    "models": TOLD,
    "text": "{}",
    "end": True,
}
CONFIG = """
[endpoints.one]
[endpoints.two]
[models.m]
endpoint = "one"
[models.early]
endpoint = "two"
warm_schedule = "{schedule}"
[keys.ui]
env = "UI_KEY"
[keys.ops]
env = "OPS_KEY"
may_warm = true
models = ["m"]
"""
CONFIG_OF_ONE = """
[endpoints.one]
[models.m]
endpoint = "one"
warm_schedule = "{schedule}"
"""


@pytest.fixture
def client(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[httpx.Client]:
    monkeypatch.setenv("UI_KEY", "sk-ui")
    monkeypatch.setenv("OPS_KEY", "sk-ops")
    path = tmp_path / "proxy.toml"
    path.write_text(CONFIG.format(schedule=getattr(request, "param", "0 0 1 1 *")))
    runpod.script = [Page("COMPLETED", [FRAME])]
    with ExitStack() as stack:
        url = stack.enter_context(serve(create_app(settings_for(scripted_runpod[1], config=path))))
        headers = {"authorization": f"Bearer {KEY}"}
        yield stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30))


def test_waking_answers_at_once_and_asks_for_no_text(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", [FRAME], hold=hold)]
    response = client.post("/v1/models/m/warm")
    assert response.status_code == 202
    assert response.json()["id"] == "m"
    wait_until(lambda: len(runpod.jobs) == 1)
    assert runpod.jobs[0]["input"]["openai_route"] == "/v1/models"
    assert runpod.jobs[0]["input"]["openai_input"] == {}
    hold.set()
    wait_until(lambda: client.get("/v1/models/m").json().get("max_model_len") == 4321)
    assert runpod.cancelled == []


def test_an_endpoint_is_woken_once_at_a_time(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", [FRAME], hold=hold)]
    for _ in range(5):
        assert client.post("/v1/models/m/warm").status_code == 202
    wait_until(lambda: len(runpod.jobs) == 1)
    hold.set()
    wait_until(lambda: "max_model_len" in client.get("/v1/models/m").json())
    assert len(runpod.jobs) == 1


@pytest.mark.parametrize(
    ("key", "model", "status", "code"),
    [
        ("sk-ui", "m", 403, "permission_denied"),
        ("sk-ops", "m", 202, None),
        ("sk-ops", "early", 404, "model_not_found"),
        ("sk-nobody", "m", 401, "invalid_api_key"),
        (KEY, "early", 202, None),
        (KEY, "nothing", 404, "model_not_found"),
    ],
)
def test_only_a_key_with_the_right_may_wake(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    key: str,
    model: str,
    status: int,
    code: str | None,
) -> None:
    client.headers["authorization"] = f"Bearer {key}"
    response = client.post(f"/v1/models/{model}/warm")
    assert response.status_code == status
    if code is None:
        wait_until(lambda: len(runpod.jobs) == 1)
    else:
        assert error_of(response)["code"] == code
        assert runpod.jobs == []


@pytest.mark.slow
@pytest.mark.parametrize("client", ["* * * * * *"], indirect=True)
def test_a_schedule_wakes_its_own_model_by_the_clock(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    wait_until(lambda: len(runpod.jobs) > 1)
    assert set(runpod.endpoints) == {"two"}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_schedule_follows_the_clock_when_it_is_changed_to_summer_time(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    for seconds in (20, 40):  # that the proxy has to come up in
        # Local time is UTC until `change`, when an hour is left out, and back again half a year
        # later.
        change = datetime.now(UTC) + timedelta(seconds=seconds)
        back = change + timedelta(days=180)
        monkeypatch.setenv("TZ", f"STD0DST-1,{_day_and_time(change)},{_day_and_time(back)}")
        moment = change + timedelta(hours=1, seconds=3)
        config = tmp_path / "proxy.toml"
        schedule = f"{moment.second} {moment.minute} {moment.hour} * * *"
        config.write_text(CONFIG_OF_ONE.format(schedule=schedule))
        proxy = Proxy(scripted_runpod[1], state_dir=tmp_path, config=config)
        if datetime.now(UTC) < change:
            break
        proxy.close()
        runpod.jobs.clear()
    else:
        pytest.fail("the machine is too slow for this test")
    try:
        assert runpod.jobs == []
        wait_until(lambda: len(runpod.jobs) == 1, seconds=60)
        assert datetime.now(UTC) >= change
    finally:
        proxy.close()


def _day_and_time(when: datetime) -> str:
    """As TZ has it (POSIX): the day of the year counted from 0, and the time of day."""
    return f"{when.timetuple().tm_yday - 1}/{when:%H:%M:%S}"


def test_a_proxy_that_stops_cancels_what_it_was_waking(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE", hold=threading.Event())]
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(create_app(settings_for(scripted_runpod[1]))) as url:
        httpx.post(f"{url}/v1/models/m/warm", headers=headers, timeout=30)
        wait_until(lambda: len(runpod.jobs) == 1)
    wait_until(lambda: runpod.job_id in runpod.cancelled)
