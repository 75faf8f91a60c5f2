"""What the proxy tells of an endpoint while its workers crash, are throttled, or may not exist."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from proxy.backends import health_monitor as monitor
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
    monkeypatch.setattr(monitor, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(monitor, "STARTLESS_SECONDS", 1.0)


@contextmanager
def stack(**endpoint: Any) -> Iterator[tuple[httpx.Client, Client]]:
    with ExitStack() as both:
        runpod = both.enter_context(emulator(ep=endpoint))("ep")
        base = runpod.url.removesuffix("/v2/ep")
        app = create_app(settings_for(base, runpod_api_key=API_KEY, queue_timeout_seconds=90))
        url = both.enter_context(serve(app))
        headers = {"authorization": f"Bearer {KEY}"}
        client = httpx.Client(base_url=url, headers=headers, timeout=100)
        yield both.enter_context(client), runpod


def state_of(client: httpx.Client) -> str:
    return str(client.get("/v1/models/m").json()["state"])


@contextmanager
def job_that_waits(client: httpx.Client) -> Iterator[None]:
    """While there is one, what it tells of the endpoint stays as it is."""
    with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        pieces = response.iter_bytes()  # that is kept, or the answer would be closed
        next(pieces)
        yield


def refusal(client: httpx.Client, code: str = "cold_start_timeout") -> str:
    """What a client is told whom no worker served."""
    patience = {"x-cold-start-timeout": "2"}
    response = client.post("/v1/chat/completions", json=chat(), headers=patience)
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == code
    return str(error["message"])


@pytest.mark.usefixtures("quick_looks")
def test_an_endpoint_at_rest_is_cold_and_one_that_starts_is_warming() -> None:
    with stack(worker=SLEEPS) as (client, _):
        wait_until(lambda: state_of(client) == "cold")
        with job_that_waits(client):
            wait_until(lambda: state_of(client) == "warming")


@pytest.mark.usefixtures("quick_looks")
def test_workers_that_crash_are_told_from_workers_that_start() -> None:
    with stack(worker=CRASHES) as (client, _):
        assert "before they are ready" in refusal(client, "model_start_failed")
        assert state_of(client) == "unhealthy"


@pytest.mark.usefixtures("quick_looks")
def test_an_endpoint_without_workers_is_told_from_a_cold_one() -> None:
    with stack(worker=SLEEPS, max_workers=0) as (client, _):
        wait_until(lambda: state_of(client) == "cold")
        with job_that_waits(client):
            wait_until(lambda: state_of(client) == "unhealthy")
            assert "maximum may be 0" in refusal(client)


@pytest.mark.usefixtures("quick_looks")
def test_a_throttled_endpoint_is_told_from_a_cold_one() -> None:
    with stack(worker=SLEEPS) as (client, runpod):
        runpod.control("POST", "/ep/throttle")
        with job_that_waits(client):
            wait_until(lambda: state_of(client) == "throttled")
            assert "no free GPU" in refusal(client)
