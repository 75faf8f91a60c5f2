"""A client that does not read: it costs no memory, holds back its own polls, and nobody else's."""

import http.client
import itertools
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from starlette.requests import Request
from starlette.responses import Response

from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT, HEAD
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60.0
MOST_MEMORY_BYTES = 64 * 2**20


class OneBigJob(ScriptedRunPod):
    """Its first job puts out a frame whenever it is polled; any other one gives a short answer."""

    def __init__(self, *, frames: int, frame_bytes: int) -> None:
        super().__init__()
        self.script = [Page("COMPLETED", [{"ok": True}])]
        self.frames = frames
        self.polls = 0
        self._event = b"data: " + "ẞ🌍x".encode() * (frame_bytes // 8)

    def events(self) -> Iterator[bytes]:
        """The text of every frame of the first job."""
        return (self._event + b"%d\n\n" % number for number in range(self.frames))

    async def _stream(self, request: Request) -> Response:
        if request.path_params["job"] != "job-1" or "job-1" in self.cancelled:
            return await super()._stream(request)
        text = (self._event + b"%d\n\n" % self.polls).decode()
        frame = {"seq": self.polls, "text": text} | (HEAD if self.polls == 0 else {})
        self.polls += 1
        if self.polls == self.frames:
            frame["end"] = True
        body = {"status": "IN_PROGRESS", "stream": [{"output": frame}]}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def _cancel(self, request: Request) -> Response:
        self.cancelled.append(request.path_params["job"])
        return Response(b'{"status": "CANCELLED"}', media_type="application/json")


@dataclass
class Reader:
    """A streaming client that reads only when it is told to; its answer is the first job's."""

    wire: socket.socket

    def begin(self) -> http.client.HTTPResponse:
        """Read the response's headers."""
        response = http.client.HTTPResponse(self.wire)
        response.begin()
        return response

    def read_all(self) -> tuple[int, str]:
        """How many bytes came, and their digest; comments left out."""
        response = self.begin()
        assert response.status == 200
        digest, size = sha256(), 0
        while line := response.readline():
            if not line.startswith(b":"):
                digest.update(line)
                size += len(line)
        return size, digest.hexdigest()


@dataclass
class Case:
    """A proxy in front of one big job, and a client that has asked for it."""

    runpod: OneBigJob
    proxy: Proxy
    reader: Reader

    def wait_for_no_polls(self) -> int:
        """Until the proxy polls the big job no more; how often it did."""
        seen = [-1, self.runpod.polls]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while seen[-1] == 0 or seen[-1] != seen[-2]:
            assert time.monotonic() < deadline
            time.sleep(1)
            seen.append(self.runpod.polls)
        return seen[-1]

    def memory(self) -> int:
        """The proxy's resident memory."""
        return int(psutil.Process(self.proxy.process.pid).memory_info().rss)


@contextmanager
def slow_reader(folder: Path, *, frames: int, frame_bytes: int, **settings: Any) -> Iterator[Case]:
    runpod = OneBigJob(frames=frames, frame_bytes=frame_bytes)
    with serve(runpod.app) as url:
        proxy = Proxy(url, state_dir=folder, **settings)
        try:
            with socket.socket() as wire:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                wire.settimeout(PATIENCE_SECONDS)
                wire.connect(("127.0.0.1", httpx.URL(proxy.url).port or 80))
                body = msgspec.json.encode(chat(stream=True))
                head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
                head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                wire.sendall(f"{head}\r\n".encode() + body)
                yield Case(runpod, proxy, Reader(wire))
        finally:
            proxy.close()


def test_a_client_that_does_not_read_costs_no_memory_and_gets_it_all_when_it_does(
    tmp_path: Path,
) -> None:
    with slow_reader(tmp_path, frames=700, frame_bytes=300_000) as case:
        before = case.memory()
        assert case.wait_for_no_polls() < 100
        stalled = case.memory()
        # Others are served meanwhile.
        for _ in range(5):
            answer = case.proxy.client.post(CHAT, json=chat(), timeout=PATIENCE_SECONDS)
            assert answer.json() == {"ok": True}
        assert case.reader.read_all() == _size_and_digest(case.runpod.events())
        after = case.memory()
        grown = [round((memory - before) / 2**20, 1) for memory in (stalled, after)]
        print(f"210 MB; the proxy grew by {grown[0]} MiB unread, {grown[1]} MiB when all was read")
        assert max(stalled, after) - before < MOST_MEMORY_BYTES
        assert case.runpod.cancelled == []


def _size_and_digest(pieces: Iterator[bytes]) -> tuple[int, str]:
    digest, size = sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def test_a_client_that_leaves_without_having_read_cancels_its_job(tmp_path: Path) -> None:
    with slow_reader(tmp_path, frames=700, frame_bytes=300_000) as case:
        case.wait_for_no_polls()
        case.reader.wire.close()
        wait_until(lambda: case.runpod.cancelled[:1] == ["job-1"])
        assert case.runpod.polls < 100


def test_the_time_a_client_takes_to_read_is_no_silence_of_the_worker(tmp_path: Path) -> None:
    # It is long enough for a worker on a machine that stalls.
    with slow_reader(tmp_path, frames=60, frame_bytes=300_000, idle_timeout_seconds=5) as case:
        assert case.wait_for_no_polls() < case.runpod.frames
        time.sleep(5)
        assert case.reader.read_all() == _size_and_digest(case.runpod.events())


def test_a_client_that_never_reads_counts_as_gone(tmp_path: Path) -> None:
    with slow_reader(tmp_path, frames=700, frame_bytes=300_000, send_timeout_seconds=1) as case:
        wait_until(lambda: case.runpod.cancelled[:1] == ["job-1"], seconds=PATIENCE_SECONDS)
        assert case.runpod.polls < 100


def test_a_client_that_does_not_read_does_not_hold_up_a_proxy_that_stops(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with slow_reader(tmp_path, frames=700, frame_bytes=300_000, drain_seconds=0) as case:
        case.wait_for_no_polls()
        case.proxy.client.close()
        case.proxy.process.send_signal(signal.SIGTERM)
        assert case.proxy.process.wait(timeout=PATIENCE_SECONDS) == 0
        assert case.runpod.cancelled == ["job-1"]
    assert "Exception in ASGI application" not in capfd.readouterr().err


def test_a_client_that_reads_slowly_does_not(tmp_path: Path) -> None:
    # It is long enough for a reader on a machine that stalls.
    settings = {"send_timeout_seconds": 4, "keep_alive_mode": "off"}
    with slow_reader(tmp_path, frames=1, frame_bytes=20_000_000, **settings) as case:
        response = case.reader.begin()
        began = time.monotonic()
        pieces = iter(lambda: response.read(400_000), b"")
        size = sum(len(piece) for piece in _slowly(pieces))
        assert time.monotonic() - began > 5
        assert size == sum(len(event) for event in case.runpod.events())


def _slowly(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece, pause in zip(pieces, itertools.repeat(0.12), strict=False):
        time.sleep(pause)
        yield piece
