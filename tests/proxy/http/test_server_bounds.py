"""What a connection may cost: slow, huge and broken requests over raw sockets, and many of them.

The proxies are processes of their own, one with short deadlines and one with the usual ones. No
test measures how long one takes: a client that is too slow waits until it is closed, and one that
is in time does not wait at all.
"""

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.process import ROOT, Proxy
from tests.proxy.raw_http import (
    AUTHORIZED,
    JSON,
    PATIENCE_SECONDS,
    all_of,
    connected,
    head,
    parsed,
    read_until,
    refusal,
    send,
)
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 1.0
MAX_HEADER_BYTES = 10_000
GET_HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy that waits for a request as long as usual."""
    state_dir = tmp_path_factory.mktemp("state")
    proxy = Proxy(scripted_runpod[1], state_dir=state_dir, max_header_bytes=MAX_HEADER_BYTES)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def hasty(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy that a client on a slow machine may easily be too late for."""
    proxy = Proxy(
        scripted_runpod[1],
        state_dir=tmp_path_factory.mktemp("state"),
        max_header_bytes=MAX_HEADER_BYTES,
        header_timeout_seconds=DEADLINE_SECONDS,
        body_timeout_seconds=DEADLINE_SECONDS,
    )
    yield proxy
    proxy.close()


Connect = Callable[[Proxy], socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes connections to a proxy."""
    with ExitStack() as stack:

        def connect(proxy: Proxy) -> socket.socket:
            return stack.enter_context(connected(proxy.url))

        yield connect


@pytest.fixture
def wire(connect: Connect, proxy: Proxy) -> socket.socket:
    """A connection to the proxy that is not in a hurry."""
    return connect(proxy)


@pytest.fixture
def use(connect: Connect) -> Connect:
    """Makes connections that are served already: no deadline runs before the next request."""

    def use(proxy: Proxy) -> socket.socket:
        used: list[socket.socket] = []

        def is_served_in_time() -> bool:
            used.append(connect(proxy))
            return is_used(used[-1])

        wait_until(is_served_in_time)
        return used[-1]

    return use


def is_served(proxy: Proxy) -> bool:
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        return httpx.get(f"{proxy.url}/v1/models", headers=headers, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def drip(wire: socket.socket, data: bytes) -> int:
    """Send byte by byte, slowly, until the proxy answers or closes; how many bytes it took."""
    wire.settimeout(DEADLINE_SECONDS / 20)
    try:
        for index in range(len(data)):
            wire.send(data[index : index + 1])
            with suppress(TimeoutError):
                wire.recv(1, socket.MSG_PEEK)
                return index
    except ConnectionError:
        return index
    finally:
        wire.settimeout(PATIENCE_SECONDS)
    return len(data)


def is_used(wire: socket.socket) -> bool:
    """One request and its answer; tells whether the connection stays open after it."""
    return (
        read_until(wire, b'{"status":"ok"}', sent=b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n") != b""
    )


def test_a_request_is_served_however_it_is_cut(wire: socket.socket, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    for byte in head(length=len(JSON), extra=b"connection: close\r\n") + JSON:
        wire.send(bytes([byte]))
    status, body = parsed(all_of(wire))
    assert (status, msgspec.json.decode(body)) == (200, {"ok": True})


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /health HTTP/1.1\r\nx-a: "])
def test_a_client_that_sends_no_whole_head_is_closed(
    connect: Connect, hasty: Proxy, sent: bytes
) -> None:
    wire = connect(hasty)
    send(wire, sent)
    assert all_of(wire) == b""


def test_a_head_that_drips_in_is_closed(connect: Connect, hasty: Proxy) -> None:
    request_head = b"GET /health HTTP/1.1\r\n" + b"x-a: b\r\n" * 100
    assert drip(connect(hasty), request_head) < len(request_head)


def test_a_head_that_does_not_come_on_an_old_connection_is_closed(
    use: Connect, hasty: Proxy
) -> None:
    wire = use(hasty)
    wire.sendall(b"GET /health HTTP/1.1\r\n")
    assert all_of(wire) == b""


def test_a_body_that_drips_in_is_a_request_timeout(
    use: Connect, hasty: Proxy, runpod: ScriptedRunPod
) -> None:
    wire, body = use(hasty), JSON + b" " * 500
    wire.sendall(head(length=len(body) + 1))
    assert drip(wire, body) < len(body)
    status, error = refusal(all_of(wire))
    assert (status, error["code"]) == (408, "request_timeout")
    assert error["type"] == "invalid_request_error"
    assert runpod.jobs == []


def test_a_body_that_never_comes_after_an_answer_is_not_awaited(use: Connect, hasty: Proxy) -> None:
    def is_answered_before_the_body_is_late() -> bool:
        wire = use(hasty)
        wire.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n" % CHAT.encode())
        received = all_of(wire)
        assert received.count(b"HTTP/1.1") == 1
        return received.startswith(b"HTTP/1.1 401")

    wait_until(is_answered_before_the_body_is_late)


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 20_000,
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-a: b\r\n" * 2000 + b"\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-a: b\r\n" * 1_000_000,
    ],
    ids=["one header, unfinished", "one header", "many headers", "a long path", "8 MB of headers"],
)
def test_headers_over_the_limit_are_refused(wire: socket.socket, request_head: bytes) -> None:
    send(wire, request_head)
    status, error = refusal(all_of(wire))
    assert (status, error["code"]) == (431, "headers_too_large")
    assert error["type"] == "invalid_request_error"


def test_headers_over_the_limit_are_refused_on_an_old_connection(
    use: Connect, proxy: Proxy
) -> None:
    wire = use(proxy)
    wire.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-a: b\r\n" * 2000)
    assert refusal(all_of(wire))[0] == 431


CHUNKED = head(length=0).replace(b"content-length: 0", b"transfer-encoding: chunked")


@pytest.mark.parametrize(
    ("sent", "later", "counted"),
    [
        (GET_HEALTH + b"x-a: b\r\n" * 2000, b"", ("headers_too_large", "431")),
        (CHUNKED + b"0\r\nx-a: " + b"a" * 20_000, b"", ("headers_too_large", "431")),
        (CHUNKED, b"0\r\nx-a: " + b"a" * 20_000, ("headers_too_large", "431")),
        (CHUNKED + b"no number\r\n", b"", ("invalid_request_error", "400")),
        (head(length=9) + b"{", b"", ("request_timeout", "408")),
        (b"garbage\r\n\r\n", b"", ("invalid_request_error", "400")),
    ],
)
def test_what_the_server_refuses_is_counted_once(
    use: Connect, hasty: Proxy, sent: bytes, later: bytes, counted: tuple[str, str]
) -> None:
    def refused() -> Counter[tuple[str, str]]:
        families = text_string_to_metric_families(hasty.client.get("/metrics").text)
        found = [one for family in families for one in family.samples]
        requests = [one for one in found if one.name == "proxy_requests_total"]
        counts: Counter[tuple[str, str]] = Counter()
        for one in requests:
            counts[one.labels["outcome"], one.labels["status"]] += int(one.value)
        del counts["completed", "200"]
        return counts

    wire = use(hasty)
    before = refused()
    send(wire, sent)
    if later:
        time.sleep(0.1)
        send(wire, later)
    assert refusal(all_of(wire))[0] == int(counted[1])
    wait_until(lambda: refused() != before)
    assert refused() - before == Counter([counted])


def test_headers_below_the_limit_are_served_and_the_body_does_not_count(
    wire: socket.socket, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    body = JSON + b" " * 200 * MAX_HEADER_BYTES
    extra = b"x-a: " + b"a" * (MAX_HEADER_BYTES - 300) + b"\r\nconnection: close\r\n"
    wire.sendall(head(length=len(body), extra=extra) + body)
    assert parsed(all_of(wire))[0] == 200


@pytest.mark.parametrize("trailer", [b"x-a: b\r\n" * 200_000, b"x-a: " + b"a" * 1_600_000])
def test_endless_trailers_are_refused(
    wire: socket.socket, runpod: ScriptedRunPod, trailer: bytes
) -> None:
    lines = b"POST %s HTTP/1.1\r\nhost: x\r\n" % CHAT.encode()
    wire.sendall(lines + AUTHORIZED + b"transfer-encoding: chunked\r\n\r\n")
    send(wire, b"%x\r\n%s\r\n0\r\n" % (len(JSON), JSON) + trailer)
    assert refusal(all_of(wire))[0] == 431
    assert runpod.jobs == []


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01", b"hello\r\n\r\n", b"GET /health HTTP/9.9\r\n\r\n"]
)
def test_what_is_not_http_is_an_openai_error(wire: socket.socket, garbage: bytes) -> None:
    wire.sendall(garbage)
    status, error = refusal(all_of(wire))
    assert (status, error["type"]) == (400, "invalid_request_error")


def test_a_broken_body_is_an_openai_error(wire: socket.socket, runpod: ScriptedRunPod) -> None:
    lines = b"POST %s HTTP/1.1\r\nhost: x\r\n" % CHAT.encode()
    wire.sendall(lines + AUTHORIZED + b"transfer-encoding: chunked\r\n\r\nno number\r\n")
    assert refusal(all_of(wire))[0] == 400
    assert runpod.jobs == []


def test_no_deadline_of_a_request_ends_a_stream_or_an_idle_connection(
    use: Connect, hasty: Proxy, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", FRAMES[1:], hold=hold)]
    threading.Timer(3 * DEADLINE_SECONDS, hold.set).start()
    wire, body = use(hasty), msgspec.json.encode(chat(stream=True))
    received = read_until(wire, b"\r\n0\r\n\r\n", sent=head(length=len(body)) + body)
    assert received.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" in received
    time.sleep(2 * DEADLINE_SECONDS)
    assert is_used(wire)


def test_requests_sent_ahead_are_answered_in_turn(
    use: Connect, hasty: Proxy, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", [{"ok": True}], hold=hold)]
    threading.Timer(2 * DEADLINE_SECONDS, hold.set).start()
    wire = use(hasty)
    wire.sendall(head(length=len(JSON)) + JSON + head(length=len(JSON)) + JSON[:10])
    received = all_of(wire)
    assert received.startswith(b"HTTP/1.1 200")
    assert b'{"ok":true}HTTP/1.1 408' in received


def test_a_swarm_of_slow_clients_keeps_nobody_from_being_served(
    connect: Connect, use: Connect, hasty: Proxy
) -> None:
    wait_until(lambda: is_served(hasty))
    process = psutil.Process(hasty.process.pid)
    before, memory = process.num_fds(), process.memory_info().rss
    # Half of them stay in the head, half in the body.
    in_head = [connect(hasty) for _ in range(100)]
    in_body = [use(hasty) for _ in range(100)]
    for slow in in_head:
        send(slow, b"GET /")
    for slow in in_body:
        slow.sendall(head(length=1_000_000) + b"{")
    wait_until(lambda: is_served(hasty))
    assert {all_of(slow) for slow in in_head} == {b""}
    assert {refusal(all_of(slow))[0] for slow in in_body} == {408}
    # Its own connections to RunPod come and go.
    wait_until(lambda: process.num_fds() <= before + 10, seconds=PATIENCE_SECONDS)
    assert process.memory_info().rss - memory < 30 * 2**20
    wait_until(lambda: is_served(hasty))


@pytest.fixture
def small_proxy(scripted_runpod: tuple[ScriptedRunPod, str], tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path, max_connections=3)
    yield proxy
    proxy.close()


def test_connections_over_the_limit_are_refused_until_others_leave(
    small_proxy: Proxy, connect: Connect, use: Connect
) -> None:
    with ExitStack() as stack:  # the proxy's own client, and two more
        for _ in range(2):
            stack.enter_context(use(small_proxy))
        with connect(small_proxy) as wire:
            status, error = refusal(all_of(wire))
        assert (status, error["code"]) == (503, "too_many_connections")
        response = httpx.get(f"{small_proxy.url}/health", timeout=30)
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    wait_until(lambda: is_served(small_proxy))


LIMITED = """
import logging, resource, sys
from proxy.http.server import allow_descriptors
from tests.proxy.conftest import settings_for

logging.basicConfig()
resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))
allow_descriptors(settings_for("http://x", max_connections=500))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("hard", "allowed"), [(8000, 500 + 1000 + 100), (1000, 1000)])
def test_as_many_files_may_be_open_as_the_bounds_ask_for(hard: int, allowed: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(hard)], cwd=ROOT, capture_output=True, text=True
    )
    assert int(run.stdout) == allowed
    assert ("the system allows" in run.stderr) == (hard == allowed)


@pytest.fixture(scope="module")
def for_pages(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    proxy = Proxy(
        scripted_runpod[1],
        state_dir=tmp_path_factory.mktemp("state"),
        cors_origins="https://a.example,https://b.example",
        max_header_bytes=MAX_HEADER_BYTES,
    )
    yield proxy
    proxy.close()


@pytest.mark.parametrize(
    ("origin", "may_read"), [("https://b.example", True), ("https://evil.example", False)]
)
def test_a_page_of_an_allowed_origin_reads_what_the_server_refuses(
    connect: Connect, for_pages: Proxy, origin: str, may_read: bool
) -> None:
    wire = connect(for_pages)
    top = f"GET /health HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\n".encode()
    send(wire, top + b"x-a: b\r\n" * 2000)
    received = all_of(wire)
    assert refusal(received)[0] == 431
    allowed = f"\r\naccess-control-allow-origin: {origin}\r\n".encode()
    assert (allowed in received) == may_read
    assert (b"access-control-expose-headers: x-request-id" in received) == may_read
