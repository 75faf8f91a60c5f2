"""A proxy that is told to stop: streams finish in the grace time, the rest end honestly."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy.conftest import chat
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_streaming import BODY, CHAT, FRAMES, last_error

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Proxy]:
    proxy = Proxy(scripted_runpod[1], drain_seconds=request.param, state_dir=tmp_path)
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
