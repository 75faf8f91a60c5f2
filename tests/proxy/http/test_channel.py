"""The proxy's door for workers: who may open a WebSocket there, and answers that come by it."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import msgspec
import pytest
import websockets.exceptions
import websockets.sync.client

from tests.proxy.backends.runpod.direct.conftest import event, frame
from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT
from tests.proxy.http.test_websockets import OFFER
from tests.proxy.process import Proxy
from tests.proxy.raw_http import all_of, connected, parsed
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

PUBLIC_URL = "https://proxy-1.example.com"


@pytest.fixture(scope="module")
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    proxy = Proxy(
        scripted_runpod[1],
        state_dir=tmp_path_factory.mktemp("state"),
        direct=True,
        public_url=PUBLIC_URL,
    )
    yield proxy
    proxy.close()


class Worker:
    """A worker that dials the proxy, as the last job's input says."""

    def __init__(self, proxy: Proxy, runpod: ScriptedRunPod) -> None:
        self.door = proxy.url.replace("http:", "ws:") + "/channel"
        self.told = runpod.jobs[-1]["input"]["proxy"]["channel"]
        self.nonce = self.told["nonce"]

    def dial(self, token: str | None = None) -> websockets.sync.client.ClientConnection:
        """Open a channel."""
        headers = {"authorization": f"Bearer {token or self.told['token']}"}
        return websockets.sync.client.connect(self.door, additional_headers=headers)

    def frames(self, *frames: dict[str, Any]) -> str:
        """A message with these frames."""
        return msgspec.json.encode([["frame", self.nonce, frame] for frame in frames]).decode()


@pytest.fixture
def answer(proxy: Proxy, runpod: ScriptedRunPod) -> Iterator[httpx.Response]:
    """A streamed chat whose job is in progress, with nothing to poll."""
    runpod.workers = {"idle": 1, "ready": 1}
    runpod.script = [Page("IN_PROGRESS")]
    with proxy.client.stream("POST", CHAT, json=chat(stream=True)) as response:
        wait_until(lambda: runpod.job_id != "")
        yield response


@pytest.fixture
def worker(proxy: Proxy, runpod: ScriptedRunPod, answer: httpx.Response) -> Worker:
    return Worker(proxy, runpod)


def refused(worker: Worker, token: str) -> int:
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        worker.dial(token)
    error = msgspec.json.decode(caught.value.response.body or b"")["error"]
    assert error["code"] == "invalid_api_key"
    assert "x-request-id" in caught.value.response.headers
    return caught.value.response.status_code


def test_a_job_names_the_door_and_an_answer_comes_by_it(
    worker: Worker, answer: httpx.Response, proxy: Proxy
) -> None:
    assert worker.told["url"] == "wss://proxy-1.example.com/channel"
    with worker.dial() as channel:
        channel.send(worker.frames(frame(0)))
        channel.send(worker.frames(frame(1), frame(2, end=True)))
        text = "".join(answer.iter_text())
        assert text.endswith("".join(map(event, range(3))))
        assert value(proxy.client, "proxy_channels", endpoint="ep") == 1
        got: list[Any] = []
        while ["got", worker.nonce, 3, 3] not in got:
            got += msgspec.json.decode(channel.recv(timeout=30))
    wait_until(lambda: value(proxy.client, "proxy_channels", endpoint="ep") == 0)


def test_a_token_is_good_once(worker: Worker) -> None:
    with worker.dial():
        assert refused(worker, worker.told["token"]) == 401


@pytest.mark.parametrize("token", ["wrong", KEY, "a" * 43])
def test_anything_else_opens_nothing(worker: Worker, token: str) -> None:
    assert refused(worker, token) == 401


def test_a_token_is_good_until_its_job_ends(proxy: Proxy, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [frame(0), frame(1, end=True)])]
    assert proxy.client.post(CHAT, json=chat(stream=True)).status_code == 200
    worker = Worker(proxy, runpod)
    assert refused(worker, worker.told["token"]) == 401


def test_a_client_that_leaves_is_told_to_the_worker(proxy: Proxy, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("IN_PROGRESS")]
    with ExitStack() as stack:
        with proxy.client.stream("POST", CHAT, json=chat(stream=True)):
            wait_until(lambda: runpod.job_id != "")
            worker = Worker(proxy, runpod)
            channel = stack.enter_context(worker.dial())
            channel.send(worker.frames(frame(0)))
        got: list[Any] = []
        while ["cancel", worker.nonce] not in got:
            got += msgspec.json.decode(channel.recv(timeout=30))


def test_a_message_that_is_too_large_ends_the_channel_and_not_the_answer(
    worker: Worker, answer: httpx.Response, runpod: ScriptedRunPod
) -> None:
    with suppress(websockets.exceptions.ConnectionClosed), worker.dial() as channel:
        channel.send(worker.frames(frame(0)))
        runpod.script = [Page("COMPLETED", [frame(1, end=True)])]
        channel.send(worker.frames(frame(1, "x" * 5 * 2**20)))
        while True:
            channel.recv(timeout=30)
    assert "".join(answer.iter_text()).endswith(event(0) + event(1))


@pytest.mark.parametrize("path", [b"/v1/responses", b"/channels", b"/channel/", b"/"])
def test_every_other_handshake_is_told_to_use_http(proxy: Proxy, path: bytes) -> None:
    with connected(proxy.url) as wire:
        wire.sendall(b"GET %s HTTP/1.1\r\nhost: x\r\n" % path + OFFER + b"\r\n")
        assert parsed(all_of(wire))[0] == 426


def test_without_an_offer_there_is_no_such_route(proxy: Proxy) -> None:
    assert proxy.client.get("/channel").status_code == 404


def test_a_handshake_while_another_request_is_answered_is_told_to_use_http(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [frame(0), frame(1, end=True)])]
    body = msgspec.json.encode(chat(stream=True))
    with connected(proxy.url) as wire:
        wire.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n"
            % (KEY.encode(), len(body))
            + body
            + b"GET /channel HTTP/1.1\r\nhost: x\r\n"
            + OFFER
            + b"\r\n"
        )
        received = all_of(wire)
    assert b"data: 1\n\n" in received
    assert b"HTTP/1.1 426 " in received


def test_a_channel_is_logged_and_counted_as_any_request(proxy: Proxy, worker: Worker) -> None:
    labels = {"model": "", "status": "101", "outcome": "completed"}
    before = value(proxy.client, "proxy_requests_total", **labels)
    with worker.dial():
        pass
    wait_until(lambda: value(proxy.client, "proxy_requests_total", **labels) == before + 1)


def test_without_a_public_url_there_is_no_door(client: httpx.Client, proxy_url: str) -> None:
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        websockets.sync.client.connect(proxy_url.replace("http:", "ws:") + "/channel")
    assert caught.value.response.status_code == 426


def test_a_worker_that_reads_no_answer_to_its_pings_is_cut_off(
    proxy: Proxy, worker: Worker
) -> None:
    with raw_channel(proxy, worker) as wire:
        assert is_cut_off(wire, (b"\x89\xfd" + bytes(4) + b"x" * 125) * 1_000)


def test_a_message_in_endless_pieces_is_cut_off(proxy: Proxy, worker: Worker) -> None:
    with raw_channel(proxy, worker) as wire:
        wire.sendall(b"\x01\x80" + bytes(4))
        assert is_cut_off(wire, (b"\x00\x80" + bytes(4)) * 10_000)


def is_cut_off(wire: socket.socket, endless: bytes) -> bool:
    """Whether the proxy hangs up on this, sent again and again."""
    try:
        for _ in range(2_000):
            wire.sendall(endless)
    except ConnectionError:
        return True
    return False


@contextmanager
def raw_channel(proxy: Proxy, worker: Worker) -> Iterator[socket.socket]:
    """A channel that is open, as a socket from which nothing is read any more."""
    with connected(proxy.url) as wire:
        authorization = f"authorization: Bearer {worker.told['token']}\r\n".encode()
        wire.sendall(b"GET /channel HTTP/1.1\r\nhost: x\r\n" + authorization + OFFER + b"\r\n")
        assert wire.recv(12) == b"HTTP/1.1 101"
        yield wire
