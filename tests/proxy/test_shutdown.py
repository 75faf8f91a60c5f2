"""A proxy that is told to stop: streams finish in the grace time, the rest end honestly."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.proxy.conftest import KEY, chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_streaming import BODY, CHAT, FRAMES, last_error
from tests.servers import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class Proxy:
    """A proxy in a process of its own."""

    def __init__(
        self, runpod_url: str, drain_seconds: float, state_dir: str | Path | None = None
    ) -> None:
        self.port = free_port()
        environment = os.environ | {
            "RUNPOD_API_KEY": "rp-test",
            "RUNPOD_ENDPOINT_ID": "ep",
            "RUNPOD_ENDPOINT_BASE_URL": f"{runpod_url}/v2",
            "PROXY_API_KEYS": KEY,
            "PROXY_MODELS": "m",
            "PROXY_PORT": str(self.port),
            "PROXY_KEEP_ALIVE_SECONDS": "1",
            "PROXY_DRAIN_SECONDS": str(drain_seconds),
            "PROXY_STATE_DIR": str(state_dir or tempfile.mkdtemp(prefix="proxy-test-")),
        }
        self.process = subprocess.Popen([sys.executable, "-m", "proxy"], cwd=ROOT, env=environment)
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"authorization": f"Bearer {KEY}"}
        )
        wait_until(self.is_up, seconds=30)

    def is_up(self) -> bool:
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], request: pytest.FixtureRequest
) -> Iterator[Proxy]:
    proxy = Proxy(scripted_runpod[1], request.param)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("proxy", [20], indirect=True)
def test_a_stream_that_ends_in_the_grace_time_is_whole(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("COMPLETED", FRAMES[1:], hold=hold)]
    with proxy.client.stream("POST", CHAT, json=chat(stream=True)) as response:
        pieces = response.iter_bytes()
        first = next(pieces)
        proxy.process.send_signal(signal.SIGTERM)
        assert next(pieces) == b": running\n\n"
        hold.set()
        rest = b"".join(pieces)
    assert (first + rest).replace(b": running\n\n", b"").decode() == BODY
    assert proxy.process.wait(timeout=30) == 0
    assert runpod.cancelled == []


@pytest.mark.parametrize("proxy", [1], indirect=True)
def test_a_stream_that_does_not_end_gets_an_error_and_its_job_is_cancelled(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    with proxy.client.stream("POST", CHAT, json=chat(stream=True), timeout=30) as response:
        pieces = response.iter_bytes()
        first = next(pieces)
        proxy.process.send_signal(signal.SIGTERM)
        text = (first + b"".join(pieces)).decode()
    assert last_error(text)["code"] == "shutting_down"
    assert proxy.process.wait(timeout=30) == 0
    assert runpod.cancelled == [runpod.job_id]


@pytest.mark.parametrize("proxy", [20], indirect=True)
def test_an_idle_proxy_stops_at_once(proxy: Proxy) -> None:
    proxy.client.close()
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(timeout=10) == 0
