"""One connection: requests sent ahead of their turn, clients that leave, and HTTP/1.0."""

import signal
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from proxy.http.plain import MAX_WHOLE_BYTES
from tests.proxy.conftest import chat
from tests.proxy.http.test_streaming import BODY, FRAMES, without_comments
from tests.proxy.process import Proxy
from tests.proxy.raw_http import (
    AUTHORIZED,
    JSON,
    all_of,
    connected,
    head,
    parsed,
    read_until,
)
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

POST = head(length=len(JSON)) + JSON
STREAM_JSON = msgspec.json.encode(chat(stream=True))
STREAM = head(length=len(STREAM_JSON)) + STREAM_JSON
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
OK = b'{"status":"ok"}'
MAX_HEADER_BYTES = 10_000
AHEAD = {
    "a request": GET,
    "half a head": GET[:-10],
    "half a body": head(length=100) + b"{",
    "a body over the limit": head(length=10**6) + b" " * 500_000,
    "more requests than wait": GET * 1000,
    "what is not HTTP": b"garbage\r\n\r\n",
    "an upgrade": GET.replace(b"\r\n\r\n", b"\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
}


@pytest.fixture(scope="module")
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    state_dir = tmp_path_factory.mktemp("state")
    proxy = Proxy(scripted_runpod[1], state_dir=state_dir, max_header_bytes=MAX_HEADER_BYTES)
    yield proxy
    proxy.close()


@pytest.fixture
def wire(proxy: Proxy) -> Iterator[socket.socket]:
    with connected(proxy.url) as wire:
        yield wire


@pytest.fixture
def hold(runpod: ScriptedRunPod) -> threading.Event:
    """What the answer of this test's job waits for."""
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", [{"ok": True}], hold=hold)]
    return hold


@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "later"])
@pytest.mark.parametrize("ahead", AHEAD.values(), ids=AHEAD.keys())
@pytest.mark.usefixtures("hold")
def test_a_client_that_leaves_is_noticed_whatever_it_sent_ahead(
    wire: socket.socket, runpod: ScriptedRunPod, ahead: bytes, together: bool
) -> None:
    wire.sendall(POST + ahead if together else POST)
    wait_until(lambda: runpod.stream_calls > 0 or len(runpod.jobs) == 1)
    if not together:
        wire.sendall(ahead)
    wire.close()
    wait_until(lambda: set(runpod.cancelled) == {runpod.job_id})
    assert len(runpod.jobs) == 1


@pytest.mark.usefixtures("hold")
def test_a_client_that_leaves_while_runpod_takes_its_job_does_not_leave_the_job_behind(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    for number in range(1, 21):  # each time at another moment, by chance
        with connected(proxy.url) as wire:
            wire.sendall(POST)
            wait_until(lambda: len(runpod.jobs) == number)  # noqa: B023
    wait_until(lambda: len(set(runpod.cancelled)) == 20)


@pytest.mark.usefixtures("hold")
def test_a_client_that_leaves_is_noticed_behind_a_large_body(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    body = msgspec.json.encode(chat(user="x" * 100_000))
    with connected(proxy.url) as wire:
        wire.sendall(head(length=len(body)))
        assert proxy.client.get("/health").status_code == 200  # by now the body is awaited
        proxy.process.send_signal(signal.SIGSTOP)  # it comes at once
        wire.sendall(body)
        proxy.process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(runpod.jobs) == 1)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "later"])
def test_garbage_behind_a_request_does_not_cost_it_its_answer(
    wire: socket.socket, runpod: ScriptedRunPod, hold: threading.Event, together: bool
) -> None:
    wire.sendall(POST + b"garbage\r\n\r\n" if together else POST)
    wait_until(lambda: len(runpod.jobs) == 1)
    if not together:
        wire.sendall(b"garbage\r\n\r\n")
    hold.set()
    received = all_of(wire)
    assert parsed(received) == (200, b'{"ok":true}')


def test_garbage_behind_several_requests_costs_none_of_them_its_answer(
    wire: socket.socket, runpod: ScriptedRunPod, hold: threading.Event
) -> None:
    wire.sendall(GET + POST + GET + b"garbage\r\n\r\n")
    wait_until(lambda: len(runpod.jobs) == 1)
    hold.set()
    received = all_of(wire)
    assert received.count(b"HTTP/1.1 200") == 3
    assert received.count(b"\r\nconnection: close\r\n") == 1
    assert received.endswith(OK)


def test_garbage_behind_a_request_never_gets_into_its_stream(
    wire: socket.socket, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", FRAMES[1:], hold=hold)]
    wire.sendall(STREAM)
    received = wire.recv(65536)
    wire.sendall(b"garbage\r\n\r\n")
    hold.set()
    received += all_of(wire)
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("ahead", ["a body over the limit", "more requests than wait"])
def test_what_is_sent_ahead_beyond_the_limit_is_not_answered(
    wire: socket.socket, runpod: ScriptedRunPod, hold: threading.Event, ahead: str
) -> None:
    wire.sendall(POST + AHEAD[ahead])
    wait_until(lambda: len(runpod.jobs) == 1)
    hold.set()
    received = all_of(wire)
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1") <= MAX_HEADER_BYTES // 1000 + 1
    assert received.count(b"\r\nconnection: close\r\n") == 1
    assert len(runpod.jobs) == 1


def test_many_requests_sent_ahead_in_small_number_are_all_answered(wire: socket.socket) -> None:
    for _ in range(3):
        received = b""
        wire.sendall(GET * 5)
        while received.count(OK) < 5:
            received += wire.recv(65536)


def test_a_body_sent_ahead_is_taken_in_its_turn(
    wire: socket.socket, runpod: ScriptedRunPod, hold: threading.Event
) -> None:
    wire.sendall(POST + head(length=len(JSON)))
    wait_until(lambda: len(runpod.jobs) == 1)
    hold.set()
    wait_until(lambda: wire.recv(1, socket.MSG_PEEK) != b"")
    assert b'{"ok":true}' in read_until(wire, b"}", sent=JSON[:9])
    runpod.stream_calls = 0
    assert b'{"ok":true}' in read_until(wire, b"}", sent=JSON[9:])
    assert len(runpod.jobs) == 2


@pytest.mark.parametrize("extra", [b"", b"connection: close\r\n"])
def test_a_stream_says_at_most_once_what_becomes_of_its_connection(
    wire: socket.socket, runpod: ScriptedRunPod, extra: bytes
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    wire.sendall(head(length=len(STREAM_JSON), extra=extra) + STREAM_JSON)
    received = read_until(wire, b"0\r\n\r\n", sent=b"")
    top = received.partition(b"\r\n\r\n")[0].lower()
    assert [line for line in top.split(b"\r\n") if line.startswith(b"connection:")] == (
        [b"connection: close"] if extra else []
    )


def test_a_stream_to_a_client_of_http_1_0_ends_with_its_connection(
    wire: socket.socket, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", [frame]) for frame in FRAMES]
    wire.sendall(STREAM.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    top, _, body = all_of(wire).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in top.lower()
    assert b"\r\nconnection: close" in top
    assert without_comments(body.decode()) == BODY


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_plain_answer_to_a_client_of_http_1_0_has_a_length(
    wire: socket.socket, method: bytes
) -> None:
    wire.sendall(b"%s /v1/models HTTP/1.0\r\n" % method + AUTHORIZED + b"\r\n")
    top, _, body = all_of(wire).partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: %d" % len(body) in top or method == b"HEAD"
    assert (body != b"") == (method == b"GET")


def test_a_large_answer_that_breaks_off_is_reset_for_a_client_of_http_1_0(
    wire: socket.socket, runpod: ScriptedRunPod
) -> None:
    begun = {"seq": 0, "status": 200, "content_type": "application/json"}
    begun |= {"text": "x" * (MAX_WHOLE_BYTES + 1), "end": False}
    runpod.script = [Page("IN_PROGRESS", [begun]), Page("FAILED")]
    wire.sendall(POST.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert wire.recv(100).startswith(b"HTTP/1.1 200 ")
    with pytest.raises(ConnectionResetError):
        list(iter(lambda: wire.recv(65536), b""))
