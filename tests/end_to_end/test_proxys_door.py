"""The direct channel that a real worker opens at the proxy's public URL."""

from collections.abc import Iterator

import httpx
import pytest

from tests.end_to_end.conftest import Road, endpoint_settings, road
from tests.end_to_end.test_direct_channel import SLOWLY, TEXT, last_output, said
from tests.proxy.conftest import KEY
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
    assert counted(with_door, "proxy_roads_total", road="direct", obstacle="") >= 1
    assert counted(with_door, "proxy_channels") == 1


def test_a_client_that_leaves_stops_the_engine_by_the_channel(with_door: Road) -> None:
    with_door.runpod.inject(operation="cancel", times=0, delay_seconds=30)
    aborted = with_door.engine()["aborted"]
    with with_door.sdk() as sdk:
        stream = sdk.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            extra_body={"script": {"tokens": 100_000, "delay_seconds": 0.02}},
        )
        next(iter(stream))
        stream.close()
    wait_until(lambda: with_door.engine()["aborted"] == aborted + 1, seconds=15)
    with_door.runpod.control("DELETE", "/faults")
