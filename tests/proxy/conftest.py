"""A proxy in front of a RunPod that follows a script."""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from proxy.backends import refusals
from proxy.config.settings import Settings
from tests.leaving import call_to_leave
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.servers import serve

KEY = "sk-test"
AS_JSON = {"content-type": "application/json"}
STATE_DIR = tempfile.mkdtemp(prefix="proxy-test-")
atexit.register(shutil.rmtree, STATE_DIR, ignore_errors=True)


def settings_for(runpod_url: str, **changes: Any) -> Settings:
    """Settings for a test: quick deadlines, one model, one key."""
    values: dict[str, Any] = {
        "runpod_api_key": "rp-test",
        "runpod_endpoint_id": "ep",
        "runpod_endpoint_base_url": f"{runpod_url}/v2",
        "api_keys": KEY,
        "models": "m",
        "keep_alive_seconds": 1,
        "first_byte_hold_seconds": 0.2,
        "drain_seconds": 0,
        "state_dir": STATE_DIR,
    }
    if "admin_keys" in changes:  # it makes a database, which no other test's proxy is to find
        values["state_dir"] = tempfile.mkdtemp(dir=STATE_DIR)
    return Settings(**(values | changes))


@pytest.fixture(scope="session")
def scripted_runpod() -> Iterator[tuple[ScriptedRunPod, str]]:
    """One server for all tests, and its URL."""
    runpod = ScriptedRunPod()
    with serve(runpod.app) as url:
        yield runpod, url


@pytest.fixture(scope="session")
def proxies(scripted_runpod: tuple[ScriptedRunPod, str]) -> Iterator[Callable[..., str]]:
    """Proxies in front of it: one for each set of settings, started when first asked for."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def proxy(**changes: Any) -> str:
            if repr(changes) not in urls:
                app = create_app(settings_for(scripted_runpod[1], **changes))
                urls[repr(changes)] = stack.enter_context(serve(app))
            return urls[repr(changes)]

        yield proxy


@pytest.fixture
def runpod(scripted_runpod: tuple[ScriptedRunPod, str]) -> ScriptedRunPod:
    """The script that RunPod follows in this test."""
    scripted_runpod[0].reset()
    return scripted_runpod[0]


@pytest.fixture
def awake(runpod: ScriptedRunPod) -> None:
    """A worker is up before a fresh proxy first looks: its next look comes only seconds later."""
    runpod.workers = {"idle": 1, "ready": 1}


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of this test that differ: `@pytest.mark.parametrize("settings", [...])`."""
    changes: dict[str, Any] = getattr(request, "param", {})
    return changes


@pytest.fixture
def proxy_url(runpod: ScriptedRunPod, proxies: Callable[..., str], settings: dict[str, Any]) -> str:
    """The base URL of a proxy in front of it."""
    return proxies(**settings)


@pytest.fixture
def client(proxy_url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client that has the key."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=proxy_url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def fresh_client(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, settings: dict[str, Any]
) -> Iterator[httpx.Client]:
    """A client of a proxy that no other test has used: nothing is counted against RunPod yet."""
    app = create_app(settings_for(scripted_runpod[1], **settings))
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        serve(app) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
    ):
        yield client


@pytest.fixture
def believed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals that last for any time at all are believed."""
    monkeypatch.setattr(refusals, "GUST_SECONDS", 0.5)


def chat(**changes: Any) -> dict[str, Any]:
    """The body of a small chat request."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return body | changes


def asked(client: httpx.Client, **changes: Any) -> AbstractContextManager[None]:
    """Send a small chat request, of which nothing is read; its client leaves with the block."""
    url = str(client.base_url.join("/v1/chat/completions"))
    return call_to_leave(url, key=KEY, body=chat(**changes))
