"""RunPod's HTTP API, as we call it: whatever httpx raises becomes an error of ours."""

import asyncio
import logging
import socket
import traceback

import pytest

from proxy.backends.connections import Client
from proxy.backends.health_monitor import HealthMonitor, State
from proxy.backends.runpod.endpoint import CallLimits, Endpoint, create_client
from proxy.backends.starts import Starts
from proxy.config.limits import CallLimit
from proxy.errors import NotSent, UpstreamMisconfigured
from proxy.memory import Memory
from proxy.telemetry.metrics import Metrics
from tests.proxy.raw_server import heard, raw_server

LIMITS = CallLimits(*[CallLimit(1000, 100)] * 4)
URL = "http://127.0.0.1:9/v2/ep"
UNSENDABLE = pytest.mark.parametrize(
    ("url", "key"),
    [
        (URL, "rpa_SECRET\u200b"),
        (URL, "rpa_SECRET\u2013x"),
        (URL, "rpa_SECRET\u00a0"),
        ("http://127.0.0.1:99999/v2/ep", "rpa_SECRET"),
        ("http://[::1/v2/ep", "rpa_SECRET"),
        ("http://\u2028/v2/ep", "rpa_SECRET"),
        ("http://127.0.0.1:9/v2\n/ep", "rpa_SECRET"),
        ("http:///v2/ep", "rpa_SECRET"),
    ],
)


def endpoint_at(client: Client, url: str, key: str) -> Endpoint:
    return Endpoint(
        client,
        url,
        name="ep",
        api_key=key,
        limits=LIMITS,
        metrics=Metrics(),
        memory=Memory(2**30),
    )


@UNSENDABLE
def test_what_cannot_be_sent_is_an_error_of_ours_that_shows_no_key(url: str, key: str) -> None:
    async def call() -> None:
        async with create_client(connect_timeout_seconds=5) as client:
            await endpoint_at(client, url, key).health()

    with pytest.raises(UpstreamMisconfigured) as raised:
        asyncio.run(call())
    assert "SECRET" not in "".join(traceback.format_exception(raised.value))


@UNSENDABLE
def test_the_look_at_an_endpoint_that_cannot_be_called_goes_on_without_a_word_of_the_key(
    url: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def look() -> State:
        async with create_client(connect_timeout_seconds=5) as client:
            monitor = HealthMonitor(
                "ep", endpoint_at(client, url, key).health, Starts("ep", pause_seconds=0)
            )
            state = await monitor.current_state()
            await monitor.close()
            return state

    assert asyncio.run(look()) is State.UNKNOWN
    assert "SECRET" not in caplog.text


def test_a_key_that_would_end_its_header_line_is_not_sent() -> None:
    key = "rpa_SECRET\nx: y"

    async def call() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1")
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, create_client(connect_timeout_seconds=60) as client:
            await endpoint_at(client, url, key).health()

    with pytest.raises(UpstreamMisconfigured) as raised:
        asyncio.run(call())
    assert "SECRET" not in "".join(traceback.format_exception(raised.value))


def test_a_job_is_not_sent_when_a_proxy_makes_no_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: socket.socket) -> None:
        heard(connection)
        connection.sendall(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")

    async def call() -> None:
        async with create_client(connect_timeout_seconds=30) as client:
            endpoint = endpoint_at(client, "https://runpod.invalid/v2/ep", "k")
            await endpoint.run(b"{}", connect_seconds=30, on_turn=lambda: None)

    with raw_server(refuse) as proxy_url:
        monkeypatch.setenv("https_proxy", proxy_url)
        with pytest.raises(NotSent):
            asyncio.run(call())
