"""An endpoint's daily budget: what stops when it is spent, and what goes on."""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.access.spending import Spending
from proxy.access.worker_costs import WorkerCosts
from proxy.app import create_app
from proxy.backends import health_monitor
from proxy.backends.ceiling import Ceiling, PaidWorkers
from proxy.backends.health import Health
from proxy.config.tables import EndpointConfig
from proxy.errors import InsufficientQuota
from tests.proxy.access.conftest import BEGINNING, FRAME
from tests.proxy.access.test_spending import Clock
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.servers import serve
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
UP = {"running": 1}
TABLES = """
[endpoints.ep]
price_per_second = 1000
daily_budget = {budget}
[endpoints.spare]
[models.m]
endpoint = "ep"
[models.safe]
endpoint = "ep"
fallback = "other"
[models.other]
endpoint = "spare"
"""

PRICED = EndpointConfig(price_per_second=0.5, daily_budget=2)
NONE, ONE = Health.of({}), Health.of({"workers": {"running": 1}})

Start = Callable[..., Any]


@pytest.fixture
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Start:
    """A proxy whose endpoint may cost so much, and a client of it."""
    monkeypatch.setattr(health_monitor, "LOOK_SECONDS", 0.5)

    @contextmanager
    def start(budget: float) -> Iterator[httpx.Client]:
        file = tmp_path / "proxy.toml"
        file.write_text(TABLES.format(budget=budget))
        settings = settings_for(scripted_runpod[1], config=file, state_dir=tmp_path / "state")
        app = create_app(settings)
        headers = {"authorization": f"Bearer {KEY}"}
        with (
            serve(app) as url,
            httpx.Client(base_url=url, headers=headers, timeout=60) as client,
        ):
            yield client

    return start


def spend(folder: Path, dollars: float) -> None:
    """So much has been spent today, before the proxy starts."""
    costs = WorkerCosts(Spending(folder / "state"))
    asyncio.run(costs.look("ep", None, price=1, job_seconds=dollars))
    costs.spending.close()


def state_of(client: httpx.Client, model: str = "m") -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/models/{model}").json()
    return found


def test_a_budget_that_is_spent_stops_requests_and_waking_and_says_so_everywhere(
    proxy: Start, runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    spend(tmp_path, 500)
    runpod.script = [Page("COMPLETED", [FRAME])]
    with proxy(budget=500) as client:
        refused = client.post(CHAT, json=chat())
        assert refused.status_code == 429
        error = error_of(refused)
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert "daily budget of $500 is spent" in error["message"]
        assert "00:00 UTC" in error["message"]
        assert "raises daily_budget" in error["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert 1 <= int(refused.headers["retry-after"]) <= 24 * 3600
        assert client.post("/v1/models/m/warm").status_code == 429
        assert runpod.jobs == []
        entry = state_of(client)
        assert entry["state"] == "paused"
        assert "daily budget" in entry["state_reason"]
        assert state_of(client, "other")["state"] != "paused"
        assert client.get("/ready").json() == {"status": "ready", "paused_endpoints": 1}
        assert value(client, "proxy_endpoint_budget_dollars", endpoint="ep") == 500
        assert value(client, "proxy_endpoint_spent_today_dollars", endpoint="ep") >= 500
        # What has a fallback goes on there.
        assert client.post(CHAT, json=chat(model="safe")).status_code == 200
        assert runpod.endpoints == ["spare"]


@pytest.mark.slow
def test_a_running_answer_ends_when_the_budget_does(proxy: Start, runpod: ScriptedRunPod) -> None:
    release = threading.Event()
    last = FRAME | {"seq": 1, "text": "data: [DONE]\n\n"}
    runpod.script = [
        Page("IN_PROGRESS", [BEGINNING]),
        Page("IN_PROGRESS", hold=release),
        Page("COMPLETED", [last]),
    ]
    with proxy(budget=1) as client, ThreadPoolExecutor() as pool:
        running = pool.submit(client.post, CHAT, json=chat(stream=True))
        wait_until(lambda: runpod.stream_calls == 2)
        runpod.workers = UP
        wait_until(lambda: state_of(client)["state"] == "paused")
        assert client.post(CHAT, json=chat()).status_code == 429
        release.set()
        answer = running.result()
    assert answer.status_code == 200
    assert answer.text.startswith(": hi\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert runpod.cancelled == []


@pytest.mark.slow
def test_a_job_that_waits_for_a_worker_is_given_up_when_the_budget_is_spent(
    proxy: Start, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    with proxy(budget=1) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.post, CHAT, json=chat())
        wait_until(lambda: runpod.stream_calls > 0)
        runpod.workers = UP
        refused = waiting.result()
        assert (refused.status_code, error_of(refused)["code"]) == (429, "insufficient_quota")
        wait_until(lambda: len(runpod.cancelled) == 1)
        assert len(runpod.jobs) == 1


@pytest.mark.slow
def test_it_is_kept_over_a_restart_and_raised_or_lifted_without_one(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    spend(tmp_path, 5)
    runpod.script = [Page("COMPLETED", [FRAME])]
    file = tmp_path / "proxy.toml"
    file.write_text(TABLES.format(budget=5))
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path / "state", config=file)

    def reload(text: str) -> None:
        file.write_text(text)
        proxy.process.send_signal(signal.SIGHUP)

    def paused() -> int:
        return int(proxy.client.get("/ready").json().get("paused_endpoints", 0))

    try:
        assert proxy.client.post(CHAT, json=chat()).status_code == 429
        reload(TABLES.format(budget=900_000))
        wait_until(lambda: paused() == 0)
        assert proxy.client.post(CHAT, json=chat()).status_code == 200
        reload(TABLES.format(budget=4))
        wait_until(lambda: paused() == 1)
        reload('[endpoints.spare]\n[models.other]\nendpoint = "spare"\n')
        wait_until(lambda: paused() == 0)
    finally:
        proxy.close()


@pytest.mark.slow
def test_the_endpoint_is_looked_at_though_nobody_asks(proxy: Start, runpod: ScriptedRunPod) -> None:
    runpod.workers = UP
    with proxy(budget=1) as client:
        wait_until(lambda: client.get("/ready").json().get("paused_endpoints") == 1)
    assert runpod.jobs == []


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC))


async def test_it_is_logged_once_when_it_is_spent_and_at_midnight_what_was(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ceiling, looks = Ceiling("ep", WorkerCosts(Spending(tmp_path, clock))), list[int]()
    ceiling.set(PRICED, lambda: looks.append(1))
    for second in (50, 52, 54, 56):
        clock.now = clock.now.replace(second=second)
        await ceiling.note_look(ONE)
        assert ceiling.is_reached == (second >= 54)
    with pytest.raises(InsufficientQuota, match="2026-12-01 00:00 UTC") as refused:
        ceiling.check()
    assert refused.value.retry_after_seconds == 4
    assert caplog.text.count("endpoint ep is paused") == 1
    clock.now = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC)
    ceiling.check()
    await ceiling.note_look(NONE)
    said = "endpoint ep: about $3.00 of its daily budget of $2 were spent on 2026-11-30"
    assert caplog.text.count(said) == 1
    assert len(looks) == 6


async def test_jobs_count_where_runpod_does_not_tell_its_workers(
    tmp_path: Path, clock: Clock
) -> None:
    ceiling = Ceiling("ep", WorkerCosts(Spending(tmp_path, clock)))
    ceiling.set(PRICED, lambda: None)
    ceiling.note_job(3)
    await ceiling.note_look(None)
    assert ceiling.dollars_today == 1.5
    await ceiling.note_look(NONE)
    ceiling.note_job(3)  # its worker was seen
    await ceiling.note_look(None)
    assert ceiling.dollars_today == 1.5


def look(waiting: int = 0, **workers: int) -> Health:
    return Health.of({"workers": workers, "jobs": {"inQueue": waiting}})


@pytest.mark.parametrize(
    ("health", "call", "paid"),
    [
        (look(idle=3, ready=3), {}, 0),  # kept ready, or idle for long
        (look(running=2, idle=1, ready=1), {}, 2),
        (look(1, initializing=2), {}, 2),
        (look(initializing=2), {}, 0),  # its image comes, and nobody waits
        (look(initializing=2), {"is_awaited": True}, 2),
        (look(1, running=1), {}, 1),
        (look(throttled=2, unhealthy=1), {}, 0),
        (look(ready=2), {"is_working": True}, 1),
    ],
)
def test_those_workers_are_paid_for_that_work_or_start(
    health: Health, call: dict[str, bool], paid: int
) -> None:
    assert PaidWorkers(10).count(health, 0.0, **call) == paid
    assert PaidWorkers(10, active=1).count(health, 0.0, **call) == max(1, paid)


def test_an_idle_worker_is_paid_for_until_its_idle_timeout_is_over() -> None:
    workers = PaidWorkers(10)
    idle = look(idle=3, ready=3)
    seen = [
        (0, look(running=2)),
        (5, idle),
        (10, idle),
        (11, idle),
        (12, look(running=1)),
        (15, NONE),
    ]
    assert [workers.count(health, at) for at, health in seen] == [2, 2, 2, 0, 1, 0]
