"""A WebSocket's handshake is refused so that its client takes HTTP, and is logged and counted."""

import logging
import socket
from collections.abc import Iterator

import msgspec
import openai
import pytest
import websockets.exceptions
import websockets.sync.client

from tests.proxy.conftest import KEY
from tests.proxy.process import Proxy
from tests.proxy.raw_http import AUTHORIZED, all_of, connected, parsed
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

OFFER = (
    b"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture(scope="module")
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path_factory.mktemp("state"))
    yield proxy
    proxy.close()


@pytest.fixture
def wire(proxy: Proxy) -> Iterator[socket.socket]:
    with connected(proxy.url) as wire:
        yield wire


@pytest.mark.parametrize("key", [AUTHORIZED, b""], ids=["with a key", "without"])
@pytest.mark.parametrize("path", [b"/v1/responses", b"/v1/realtime?model=m", b"/", b"/no/such"])
def test_a_handshake_is_told_to_use_http(
    wire: socket.socket, runpod: ScriptedRunPod, path: bytes, key: bytes
) -> None:
    wire.sendall(b"GET %s HTTP/1.1\r\nhost: x\r\n" % path + key + OFFER + b"\r\n\x81\x85masked")
    received = all_of(wire)
    status, body = parsed(received)
    error = msgspec.json.decode(body)["error"]
    assert (status, error["code"]) == (426, "websockets_not_served")
    assert b"\r\nx-request-id: req_" in received
    assert b"\r\nupgrade: HTTP/1.1\r\n" in received
    assert runpod.jobs == []


def test_a_handshake_whose_body_never_comes_is_answered_all_the_same(wire: socket.socket) -> None:
    lines = b"GET /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n"
    wire.sendall(lines + OFFER + b"\r\n")
    assert parsed(all_of(wire))[0] == 426


def test_a_handshake_is_counted(proxy: Proxy) -> None:
    labels = {"model": "", "status": "426", "outcome": "websockets_not_served"}
    before = value(proxy.client, "proxy_requests_total", **labels)
    address = proxy.url.replace("http:", "ws:") + "/v1/responses"
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        websockets.sync.client.connect(address)
    assert refused.value.response.status_code == 426
    wait_until(lambda: value(proxy.client, "proxy_requests_total", **labels) == before + 1)


def test_openais_sdk_is_told_of_it_where_it_wants_one(proxy: Proxy) -> None:
    with (
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY) as client,
        pytest.raises(websockets.exceptions.InvalidStatus, match="426"),
        client.responses.connect(),
    ):
        pytest.fail("it is connected")


def test_another_server_that_speaks_websockets_says_the_same(
    proxy_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "proxy.access"):
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            websockets.sync.client.connect(proxy_url.replace("http:", "ws:") + "/v1/responses")
        wait_until(lambda: "/v1/responses 426" in caplog.text)
    response = refused.value.response
    assert response.body is not None
    assert msgspec.json.decode(response.body)["error"]["code"] == "websockets_not_served"
    assert response.headers["x-request-id"].startswith("req_")
