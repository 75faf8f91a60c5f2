"""A load-balancing endpoint: plain HTTP to a worker, waited for, passed on, and hung up on."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.app import create_app
from proxy.backends import health_monitor
from tests.proxy.conftest import KEY, asked, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import BODY, event, last_error, stream
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
SSE = "text/event-stream"
CONFIG = """
[endpoints.lb]
kind = "load-balancing"
url = "{url}"
[models.m]
endpoint = "lb"
served_as = "org/m"
queue_timeout_seconds = {queue}
idle_timeout_seconds = {idle}
"""
NOBODY = [
    Reply(400, [b'{"error": "timed out waiting for worker"}'], headers={}),
    Reply(400, [b"no workers available"], headers={}, content_type="text/plain"),
    Reply(503, [], headers={}),
]
OK = Reply(200, [b'{"ok":  true}'])


@pytest.fixture
def server_at() -> Iterator[tuple[ScriptedServer, str]]:
    """A server of this test alone: a call that another one gave up may still come in."""
    server = ScriptedServer()
    with serve(server.app) as url:
        yield server, url


@pytest.fixture
def server(server_at: tuple[ScriptedServer, str]) -> ScriptedServer:
    return server_at[0]


Start = Callable[..., Any]


@pytest.fixture
def start(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    server_at: tuple[ScriptedServer, str],
    tmp_path: Path,
) -> Start:
    """A client of a proxy in front of the scripted server."""

    @contextmanager
    def begin(
        queue: float = 60, idle: float = 60, url: str = "", **changes: Any
    ) -> Iterator[httpx.Client]:
        path = tmp_path / "proxy.toml"
        path.write_text(CONFIG.format(url=url or server_at[1], queue=queue, idle=idle))
        settings = settings_for(scripted_runpod[1], config=path, **changes)
        headers = {"authorization": f"Bearer {KEY}"}
        with (
            serve(create_app(settings)) as address,
            httpx.Client(base_url=address, headers=headers, timeout=30) as client,
        ):
            yield client

    return begin


@pytest.fixture
def client(start: Start, server: ScriptedServer) -> Iterator[httpx.Client]:
    with start() as client:
        yield client


def test_a_request_reaches_the_worker_with_our_key_and_the_workers_name(
    client: httpx.Client, server: ScriptedServer
) -> None:
    server.replies = [OK]
    response = client.post(CHAT, json=chat(x=[1, 2.50]), headers={"x-request-id": "req-me"})
    assert (response.status_code, response.text) == (200, '{"ok":  true}')
    (request,) = server.requests
    assert request["path"] == CHAT
    assert request["headers"]["authorization"] == "Bearer rp-test"
    assert request["headers"]["x-request-id"] == "req-me"
    assert KEY not in str(request)
    assert httpx.Response(200, content=request["body"]).json() == chat(x=[1, 2.50], model="org/m")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_arrives_byte_for_byte_however_it_was_cut(
    start: Start, server: ScriptedServer, size: int
) -> None:
    raw = BODY.encode()
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
    server.replies = [Reply(200, pieces, content_type=SSE)]
    with start(first_byte_hold_seconds=20, keep_alive_seconds=20) as client:  # no comments
        response = client.post(CHAT, json=chat(stream=True))
    assert response.content == raw
    assert response.headers["content-type"].startswith(SSE)


@pytest.mark.slow
@pytest.mark.parametrize("wants_stream", [True, False])
def test_a_cold_start_is_waited_out(
    client: httpx.Client, server: ScriptedServer, wants_stream: bool
) -> None:
    done = Reply(200, [BODY.encode()], content_type=SSE) if wants_stream else OK
    server.replies = [*NOBODY, done]
    response = client.post(CHAT, json=chat(stream=wants_stream))
    assert response.status_code == 200
    assert response.text.endswith(BODY if wants_stream else '{"ok":  true}')
    assert len(server.requests) == 4


def test_an_answer_that_is_no_workers_does_not_make_the_endpoint_ready(
    client: httpx.Client, server: ScriptedServer
) -> None:
    server.replies = [Reply(404, [b"{}"], headers={})]
    assert client.post(CHAT, json=chat()).status_code == 404
    assert client.get("/v1/models/m").json()["state"] != "ready"


@pytest.mark.slow
@pytest.mark.parametrize("reply", NOBODY)
def test_a_worker_that_does_not_come_in_time_is_a_cold_start_timeout(
    start: Start, server: ScriptedServer, reply: Reply
) -> None:
    server.replies = [reply]
    with start(queue=1) as client:
        response = client.post(CHAT, json=chat())
    assert response.status_code == 503
    assert error_of(response)["code"] == "cold_start_timeout"
    assert response.headers["retry-after"]


def test_comments_come_while_the_worker_is_awaited(
    client: httpx.Client, server: ScriptedServer
) -> None:
    hold = threading.Event()
    server.replies = [NOBODY[0], Reply(200, [BODY.encode()], content_type=SSE, hold=hold)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        pieces = response.iter_bytes()
        assert next(pieces).startswith(b": ")
        hold.set()
        assert b"".join(pieces).endswith(BODY.encode())


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
def test_an_error_of_the_worker_itself_keeps_its_status_and_body(
    client: httpx.Client, server: ScriptedServer, status: int
) -> None:
    body = b'{"error": {"message": "too long", "code": 400}}'
    server.replies = [Reply(status, [body])]
    response = client.post(CHAT, json=chat())
    assert (response.status_code, response.content) == (status, body)
    assert len(server.requests) == 1


def test_a_key_that_runpod_refuses_is_our_mistake_and_not_the_clients(
    client: httpx.Client, server: ScriptedServer
) -> None:
    server.replies = [Reply(401, [b'{"title":"Unauthorized"}'], headers={})]
    response = client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (502, "upstream_misconfigured")


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
def test_refusals_of_a_key_that_has_just_worked_are_waited_out(
    client: httpx.Client, server: ScriptedServer, status: int
) -> None:
    server.replies = [OK, *[Reply(status, [b"<html>"], headers={})] * 3, OK]
    assert [client.post(CHAT, json=chat()).status_code for _ in range(2)] == [200, 200]
    assert len(server.requests) == 5


@pytest.mark.parametrize("status", [502, 504, 524])
def test_a_call_that_a_worker_may_have_begun_on_is_not_repeated(
    client: httpx.Client, server: ScriptedServer, status: int
) -> None:
    server.replies = [Reply(status, [b"<html>"], headers={}, content_type="text/html"), OK]
    response = client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (503, "upstream_unavailable")
    assert response.headers["x-should-retry"] == "false"
    assert len(server.requests) == 1


@pytest.mark.slow
def test_a_server_that_is_not_there_yet_is_asked_again(
    start: Start, runpod: ScriptedRunPod
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with start(queue=1, url=url) as client:
            assert error_of(client.post(CHAT, json=chat()))["code"] == "cold_start_timeout"


def test_a_connection_that_breaks_mid_stream_is_an_error_and_no_end(
    client: httpx.Client, server: ScriptedServer
) -> None:
    first = event("a").encode()
    server.replies = [Reply(200, [first, first[:10]], content_type=SSE, breaks=True)]
    _, text = stream(client)
    assert text.startswith(event("a"))
    assert last_error(text)["code"] == "worker_failed"


def test_a_stream_that_just_stops_is_an_error_and_no_end(
    client: httpx.Client, server: ScriptedServer
) -> None:
    server.replies = [Reply(200, [event("a").encode(), b"data: {"], content_type=SSE)]
    _, text = stream(client)
    assert text.startswith(event("a"))
    assert last_error(text)["code"] == "worker_failed"


STOP = b'data:{"choices":[{"finish_reason":"stop","index":0}]}\n\n'
WHOLE_STREAMS = [
    (CHAT, [BODY.replace("\n", "\r\n").encode()], BODY),
    (CHAT, [BODY.replace("\n", "\r").encode()], BODY),
    (CHAT, [b"\xef\xbb\xbf", BODY.encode()], BODY),
    (CHAT, [b"data:{}\n\ndata:[DONE]\n\n"], "data:{}\n\ndata:[DONE]\n\n"),
    (CHAT, [b"data: {}\n\ndata: [DONE]\n\n: bye\n\n"], "data: {}\n\ndata: [DONE]\n\n: bye\n\n"),
    (CHAT, [b"data: {}\n\ndata: [DONE]"], "data: {}\n\ndata: [DONE]\n\n"),
    (CHAT, [STOP[:9], STOP[9:]], STOP.decode() + "data: [DONE]\n\n"),
    (CHAT, [STOP.rstrip()], STOP.decode() + "data: [DONE]\n\n"),
    (
        "/v1/responses",
        [b'data: {"type":"response.completed"}\n\n'],
        'data: {"type":"response.completed"}\n\n',
    ),
    (
        "/v1/responses",
        [b'event: response.completed\ndata: {"type":"response.completed"}\n\ndata: [DONE]\n\n'],
        'event: response.completed\ndata: {"type":"response.completed"}\n\ndata: [DONE]\n\n',
    ),
    (
        "/v1/messages",
        [b'data: {"type":"message_stop"}\nevent: message_stop\n\n'],
        'data: {"type":"message_stop"}\nevent: message_stop\n\n',
    ),
]


@pytest.mark.parametrize(("path", "pieces", "wanted"), WHOLE_STREAMS)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_whole_stream_of_any_server_is_whole(
    start: Start, server: ScriptedServer, path: str, pieces: list[bytes], wanted: str, is_cut: bool
) -> None:
    if is_cut:
        pieces = [bytes([byte]) for byte in b"".join(pieces)]
    server.replies = [Reply(200, pieces, content_type=SSE)]
    with start(first_byte_hold_seconds=20, keep_alive_seconds=20) as client:  # no comments
        response = client.post(path, json=chat(stream=True, input="hi", max_tokens=5))
    assert (response.status_code, response.text) == (200, wanted)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (CHAT, 'data: {"choices":[{"finish_reason":null,"index":0}]}\n\n'),
        (CHAT, STOP.decode() + 'data: {"choices":[{"finish_reason":null,"index":1}]}\n\n'),
        (CHAT, 'data: {"choices":[{"delta":{"content":"[DONE]"},"index":0}]}\n\n'),
        ("/v1/responses", 'data: {"type":"response.created"}\n\ndata: [DONE]\n\n'),
        ("/v1/messages", 'event: message_start\ndata: {"type":"message_start"}\n\n'),
    ],
)
def test_a_stream_that_only_closes_in_order_is_not_whole(
    client: httpx.Client, server: ScriptedServer, path: str, text: str
) -> None:
    server.replies = [Reply(200, [text.encode()], content_type=SSE)]
    response = client.post(path, json=chat(stream=True, input="hi", max_tokens=5))
    assert response.text.startswith(text)
    assert "worker_failed" in response.text.removeprefix(text) or path == "/v1/messages"
    assert '"error"' in response.text.removeprefix(text)


@pytest.mark.slow
def test_a_worker_that_falls_silent_is_hung_up_on(start: Start, server: ScriptedServer) -> None:
    pieces = [event("a").encode(), event("b").encode()]
    server.replies = [Reply(200, pieces, content_type=SSE, hold=threading.Event())]
    with start(idle=2) as client:
        _, text = stream(client)
        assert last_error(text)["code"] == "idle_timeout"
        wait_until(lambda: server.open == 0)


@pytest.mark.parametrize("wants_stream", [True, False])
def test_a_client_that_leaves_closes_the_connection_to_the_worker(
    client: httpx.Client, server: ScriptedServer, wants_stream: bool
) -> None:
    pieces = [event("a").encode(), event("b").encode()]
    server.replies = [Reply(200, pieces, content_type=SSE, hold=threading.Event())]
    with asked(client, stream=wants_stream):
        wait_until(lambda: server.open == 1)
    assert len(server.requests) == 1
    wait_until(lambda: server.open == 0)


@pytest.mark.slow
def test_an_answer_that_is_long_in_coming_is_not_asked_for_again(
    client: httpx.Client, server: ScriptedServer
) -> None:
    done = threading.Event()
    server.replies = [Reply(200, OK.pieces, head_hold=done)]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, CHAT, json=chat())
        wait_until(lambda: len(server.requests) > 0)
        with suppress(FutureTimeout):
            answer.result(timeout=3)  # longer than a poll: nothing but a deadline ends the call
        done.set()
        assert answer.result().status_code == 200
    assert len(server.requests) == 1


@pytest.mark.parametrize("bound", ["max_requests", "max_waiting"])
def test_too_many_requests_are_refused_and_places_become_free_again(
    start: Start, server: ScriptedServer, bound: str
) -> None:
    hold = threading.Event()
    streaming = Reply(200, [event("a").encode(), b"data: [DONE]\n\n"], content_type=SSE, hold=hold)
    server.replies = [streaming if bound == "max_requests" else Reply(503, headers={})]
    with start(**{bound: 1}) as client, ThreadPoolExecutor() as pool:
        running = pool.submit(client.post, CHAT, json=chat(stream=True))
        wait_until(lambda: len(server.requests) >= 1)
        refused = client.post(CHAT, json=chat())
        assert (refused.status_code, error_of(refused)["code"]) == (429, "endpoint_overloaded")
        server.replies = [streaming]
        hold.set()
        assert running.result().status_code == 200
        assert client.post(CHAT, json=chat(stream=True)).text.endswith("data: [DONE]\n\n")


def test_calls_under_way_are_counted(start: Start, server: ScriptedServer) -> None:
    hold = threading.Event()
    pieces = [event("a").encode(), b"data: [DONE]\n\n"]
    server.replies = [Reply(200, pieces, content_type=SSE, hold=hold)]

    def running(client: httpx.Client) -> float:
        page = client.get("/metrics").text.splitlines()
        found = [line for line in page if "proxy_jobs{" in line and '"running"' in line]
        return sum(float(line.split()[1]) for line in found)

    with start() as client, ThreadPoolExecutor() as pool:
        stream = pool.submit(client.post, CHAT, json=chat(stream=True))
        wait_until(lambda: running(client) == 1)
        hold.set()
        assert stream.result().status_code == 200
        assert running(client) == 0


def test_the_openai_sdk_sees_nothing_odd(client: httpx.Client, server: ScriptedServer) -> None:
    server.replies = [NOBODY[0], Reply(200, [BODY.encode()], content_type=SSE)]
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, max_retries=0) as sdk:
        chunks = sdk.chat.completions.create(**chat(stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Grüße 🌍, \u2028ok"


def test_a_call_is_not_repeated_when_the_endpoints_daily_budget_is_spent(
    start: Start,
    server: ScriptedServer,
    runpod: ScriptedRunPod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health_monitor, "LOOK_SECONDS", 0.5)
    hold = threading.Event()
    running = Reply(200, [event("a").encode(), BODY.encode()], content_type=SSE, hold=hold)
    server.replies = [running, NOBODY[0]]
    changes = {"daily_budget": 1, "price_per_second": 1000, "state_dir": tmp_path / "state"}
    with (
        start(**changes) as client,
        ThreadPoolExecutor() as pool,
        client.stream("POST", CHAT, json=chat(stream=True)) as response,
    ):
        pieces = response.iter_bytes()
        seen = next(pieces)
        waiting = pool.submit(client.post, CHAT, json=chat())
        wait_until(lambda: len(server.requests) > 1)
        runpod.workers = {"ready": 1}
        refused = waiting.result()
        assert (refused.status_code, error_of(refused)["code"]) == (429, "insufficient_quota")
        asked_so_far = len(server.requests)
        assert client.post(CHAT, json=chat()).status_code == 429
        assert len(server.requests) == asked_so_far
        hold.set()
        assert (seen + b"".join(pieces)).endswith(BODY.encode())
