"""The direct channel that a real worker opens at the proxy's public URL."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.emulator.running import API_KEY, emulator
from tests.end_to_end.conftest import Road, endpoint_settings, road
from tests.end_to_end.scripted_streams import leave, said
from tests.end_to_end.test_direct_channel import SLOWLY, TEXT, last_output
from tests.proxy.conftest import KEY
from tests.proxy.process import Proxy
from tests.proxy.test_metrics import value
from tests.servers import free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def with_door() -> Iterator[Road]:
    """A stack whose worker has no public port, and may dial the proxy."""
    port = free_port()
    settings = {"direct": True, "public_url": f"http://127.0.0.1:{port}"}
    env = endpoint_settings()["env"] | {"WORKER_DIRECT_DIAL_HOSTS": "127.0.0.1"}
    with road(min_workers=1, env=env, proxy_port=port, settings=settings) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        yield stack


def counted(stack: Road, name: str, **labels: str) -> float:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=stack.url.removesuffix("/v1"), headers=headers) as client:
        return value(client, name, endpoint="ep", **labels)


def test_a_worker_without_a_public_port_opens_the_channel_itself(with_door: Road) -> None:
    with with_door.sdk() as sdk:
        assert said(sdk, text=TEXT, **SLOWLY) == TEXT  # it dials, and the queue helps out
        wait_until(lambda: counted(with_door, "proxy_channels") == 1)
        assert said(sdk, text=TEXT, **SLOWLY) == TEXT
    assert last_output(with_door)["summary"]["posted"] == 0
    assert counted(with_door, "proxy_roads_total", road="direct", reason="") >= 1
    assert counted(with_door, "proxy_channels") == 1


def test_a_client_that_leaves_stops_the_engine_by_the_channel(with_door: Road) -> None:
    with_door.runpod.inject(operation="cancel", times=0, delay_seconds=30)
    aborted = with_door.engine()["aborted"]
    with with_door.sdk() as sdk:
        leave(sdk)
    wait_until(lambda: with_door.engine()["aborted"] == aborted + 1, seconds=15)
    with_door.runpod.control("DELETE", "/faults")


def test_a_proxy_that_stops_ends_the_stream_that_came_by_the_channel(tmp_path: Path) -> None:
    port = free_port()
    env = endpoint_settings()["env"] | {"WORKER_DIRECT_DIAL_HOSTS": "127.0.0.1"}
    with emulator(ep=endpoint_settings() | {"min_workers": 1, "env": env}) as client:
        runpod = client("ep")
        proxy = Proxy(
            runpod.url.removesuffix("/v2/ep"),
            runpod_api_key=API_KEY,
            state_dir=tmp_path,
            port=port,
            direct=True,
            public_url=f"http://127.0.0.1:{port}",
        )
        try:
            wait_until(lambda: runpod.workers("idle") == 1, seconds=60)
            with (
                openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY, timeout=60) as sdk,
                ThreadPoolExecutor(1) as pool,
            ):
                stream = pool.submit(said, sdk, text=TEXT, **SLOWLY)
                wait_until(lambda: value(proxy.client, "proxy_channels", endpoint="ep") == 1)
                proxy.process.send_signal(signal.SIGTERM)
                assert stream.result() == TEXT
            assert proxy.process.wait(60) == 0
        finally:
            proxy.close()
