"""What the proxy tells of an endpoint while its workers crash, are throttled, or may not exist."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from proxy import watch
from proxy.app import create_app
from tests.emulator.running import API_KEY, Client, emulator
from tests.proxy.conftest import KEY, chat, settings_for
from tests.servers import serve
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
CRASHES = f"{sys.executable} -c 'raise SystemExit(1)'"
SLEEPS = f"{sys.executable} -c 'import time; time.sleep(600)'"


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a minute of looks takes seconds."""
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(watch, "STARTLESS_SECONDS", 1.0)


@contextmanager
def stack(**endpoint: Any) -> Iterator[tuple[httpx.Client, Client]]:
    with ExitStack() as both:
        runpod = both.enter_context(emulator(ep=endpoint))("ep")
        base = runpod.url.removesuffix("/v2/ep")
        app = create_app(settings_for(base, runpod_api_key=API_KEY, queue_timeout_seconds=8))
        url = both.enter_context(serve(app))
        headers = {"authorization": f"Bearer {KEY}"}
        client = httpx.Client(base_url=url, headers=headers, timeout=30)
        yield both.enter_context(client), runpod


def state_of(client: httpx.Client) -> str:
    return str(client.get("/v1/models/m").json()["state"])


def refusal(client: httpx.Client) -> str:
    """What a client is told whom no worker served."""
    response = client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "cold_start_timeout"
    return str(error["message"])


@pytest.mark.usefixtures("quick_looks")
def test_an_endpoint_at_rest_is_cold_and_one_that_starts_is_warming() -> None:
    with stack(worker=SLEEPS) as (client, _):
        wait_until(lambda: state_of(client) == "cold")
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
            pieces = response.iter_bytes()
            next(pieces)
            wait_until(lambda: state_of(client) == "warming")


@pytest.mark.usefixtures("quick_looks")
def test_workers_that_crash_are_told_from_workers_that_start() -> None:
    with stack(worker=CRASHES) as (client, _):
        assert "crash" in refusal(client)
        assert state_of(client) == "unhealthy"


@pytest.mark.usefixtures("quick_looks")
def test_an_endpoint_without_workers_is_told_from_a_cold_one() -> None:
    with stack(worker=SLEEPS, max_workers=0) as (client, _):
        wait_until(lambda: state_of(client) == "cold")
        assert "maximum may be 0" in refusal(client)
        assert state_of(client) == "unhealthy"


@pytest.mark.usefixtures("quick_looks")
def test_a_throttled_endpoint_is_told_from_a_cold_one() -> None:
    with stack(worker=SLEEPS) as (client, runpod):
        base = runpod.url.removesuffix("/v2/ep")
        runpod.http.post(f"{base}/_emulator/ep/throttle").raise_for_status()
        assert "no free GPU" in refusal(client)
        assert state_of(client) == "throttled"
