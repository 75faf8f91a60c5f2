"""A worker is woken on request or by the clock, by a job that generates nothing."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import httpx
import pytest

from proxy.api.answer import Answer, LocalAnswer
from proxy.api.call import Call
from proxy.app import create_app
from proxy.backends.backend import InFlight
from proxy.backends.deadlines import Terms
from proxy.config.tables import ModelConfig
from proxy.serving.models import Model
from proxy.serving.terms import model_terms
from proxy.serving.warmup import Warmer
from proxy.telemetry.metrics import Metrics
from tests.proxy.conftest import KEY, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve
from tests.virtual_time import run_virtually
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


class EmptyAnswer(LocalAnswer):
    """The answer of a worker that serves no model."""

    async def open(self) -> bytes:
        """All of it."""
        return b"{}"


@dataclass(eq=False)
class RecordingBackend:
    """A backend that notes when it is woken, by the clock that it is given."""

    now: Callable[[], float]
    moments: list[datetime] = field(default_factory=list)
    served: dict[str, int | None] = field(default_factory=dict)
    monitor: None = None

    def ask(self, call: Call, served_as: str | None, terms: Terms) -> Answer:
        """At once."""
        self.moments.append(datetime.fromtimestamp(self.now(), UTC))
        return EmptyAnswer()

    def in_flight(self) -> InFlight:
        """None ever is."""
        return InFlight(0, 0)

    async def close(self, seconds: float) -> None:
        """Nothing is open."""


@pytest.fixture
def summer_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC in winter and an hour later from March's last Sunday on, 01:00 UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "STD0DST-1,M3.5.0/1,M10.5.0/2")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("summer_time")
@pytest.mark.parametrize(
    ("start", "moments"),
    [
        (datetime(2027, 3, 27, tzinfo=UTC), ["27 03:30", "28 02:30", "29 02:30"]),
        (datetime(2027, 10, 30, tzinfo=UTC), ["30 02:30", "31 03:30", "01 03:30"]),
    ],
)
def test_a_schedule_follows_the_clock_when_it_is_changed_to_summer_time_and_back(
    monkeypatch: pytest.MonkeyPatch, start: datetime, moments: list[str]
) -> None:
    async def three_days() -> list[datetime]:
        clock = asyncio.get_running_loop()

        def now() -> float:
            return start.timestamp() + clock.time()

        class Datetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Self:
                return cls.fromtimestamp(now(), tz)

        monkeypatch.setattr("proxy.serving.warmup.time", SimpleNamespace(time=now))
        monkeypatch.setattr("proxy.serving.warmup.datetime", Datetime)
        backend = RecordingBackend(now)
        terms = model_terms(ModelConfig(endpoint="one"), settings_for("http://x"))
        warmer = Warmer()
        model = Model("m", "m", backend, terms, Metrics(), warm_schedule="30 3 * * *")
        warmer.schedule([model])
        await asyncio.sleep(timedelta(days=3).total_seconds())
        await warmer.close()
        return backend.moments

    woken = run_virtually(three_days())
    assert [f"{moment:%d %H:%M}" for moment in woken] == moments


@pytest.mark.slow
def test_a_proxy_that_stops_cancels_what_it_was_waking(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE", hold=threading.Event())]
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(create_app(settings_for(scripted_runpod[1]))) as url:
        httpx.post(f"{url}/v1/models/m/warm", headers=headers, timeout=30)
        wait_until(lambda: len(runpod.jobs) == 1)
    wait_until(lambda: runpod.job_id in runpod.cancelled)
