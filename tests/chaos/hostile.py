"""Hostile bodies, in figures: `python -m tests.chaos.hostile`, or `make hostile`.

Each kind of body that is made to cost as much as it can is sent five times at once, packed, to a
proxy that holds streams meanwhile. What is measured is how long others had to wait, as CPU time of
the proxy (so that a busy machine does not count) and by the clock, and what the proxy held.
"""

import asyncio
import gzip
import multiprocessing
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import httpx
import psutil
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_hostile_bodies import CHAT, JSON, LARGEST, PARTS
from tests.proxy.process import Proxy
from tests.servers import serve
from tests.waiting import wait_until

AT_ONCE = 5
TAKEN = "cold_start_timeout"
"""What a body that is taken is answered in the end: there are no workers."""
STREAMS = 10
KEEP_ALIVE_SECONDS = 1
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
HEADER = (
    "| body | sent | unpacked | answered | CPU of five | longest pause, CPU | by the clock "
    "| longest silence of a stream | memory |\n|" + " --- |" * 9
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one kind of body cost."""

    name: str
    sent_bytes: int
    unpacked_bytes: int
    answered: str
    cpu_seconds: float
    pause_cpu_seconds: float
    pause_seconds: float
    silence_seconds: float
    memory_bytes: int

    def __str__(self) -> str:
        """One row of the table."""
        cells = (
            self.name,
            f"{self.sent_bytes / 1000:,.0f} kB",
            f"{self.unpacked_bytes / 1e6:.1f} MB",
            self.answered,
            f"{self.cpu_seconds:.2f} s",
            f"{self.pause_cpu_seconds * 1000:.0f} ms",
            f"{self.pause_seconds * 1000:.0f} ms",
            f"{self.silence_seconds:.1f} s",
            f"+{self.memory_bytes / 2**20:.0f} MiB",
        )
        return f"| {' | '.join(map(str, cells))} |"


class Streams:
    """Streams that wait for their worker and hear keep-alives; how long they heard nothing."""

    def __init__(self, url: str, count: int) -> None:
        self.silence_seconds = 0.0
        self.begun = self.ended = 0
        self._is_over = False
        self._url = url
        self._threads = [threading.Thread(target=self._listen) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave them."""
        self._is_over = True
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        body = chat(stream=True)
        url = f"{self._url}{CHAT}"
        with httpx.stream("POST", url, json=body, headers=AUTHORIZED, timeout=100) as answer:
            heard, is_first = time.monotonic(), True
            for _ in answer.iter_raw():
                now = time.monotonic()
                self.silence_seconds = max(self.silence_seconds, now - heard)
                heard = now
                self.begun += is_first
                is_first = False
                if self._is_over:
                    return
        self.ended += 1


def measure(proxy: Proxy, name: str, path: str, content_type: str, body: bytes) -> Figures:
    """Send this body several times at once, and look how the proxy does meanwhile."""
    process, packed, answers = psutil.Process(proxy.process.pid), gzip.compress(body), set[str]()
    headers = AUTHORIZED | {
        "content-encoding": "gzip",
        "content-type": content_type,
        "x-cold-start-timeout": "0.5",  # a body that is taken waits for no worker
    }

    def cpu() -> float:
        times = process.cpu_times()
        return times.user + times.system

    def send() -> None:
        answer = httpx.post(proxy.url + path, content=packed, headers=headers, timeout=100)
        answers.add(answer.json()["error"]["code"] or answer.json()["error"]["type"])

    streams = Streams(proxy.url, STREAMS)
    wait_until(lambda: streams.begun == STREAMS)
    streams.silence_seconds = 0.0
    before, memory = cpu(), process.memory_info().rss
    pause_cpu = pause = 0.0
    peak = memory
    senders = [threading.Thread(target=send) for _ in range(AT_ONCE)]
    for sender in senders:
        sender.start()
    while any(sender.is_alive() for sender in senders):
        asked, used = time.monotonic(), cpu()
        proxy.client.get("/health").raise_for_status()
        pause = max(pause, time.monotonic() - asked)
        pause_cpu = max(pause_cpu, cpu() - used)
        peak = max(peak, process.memory_info().rss)
    used = cpu() - before
    time.sleep(1.2 * KEEP_ALIVE_SECONDS)  # each stream hears of the proxy again
    streams.close()
    assert len(answers) == 1, answers
    assert streams.ended == 0
    return Figures(
        name,
        len(packed),
        len(body),
        answers.pop().replace(TAKEN, "taken"),
        used,
        pause_cpu,
        pause,
        streams.silence_seconds,
        peak - memory,
    )


def kinds() -> list[tuple[str, str, str, Callable[[int], bytes]]]:
    """Every kind of body, with where it is sent and as what."""
    found = [(name, CHAT, "application/json", make) for name, make in JSON.items()]
    form = "/v1/audio/transcriptions"
    return found + [(f"form: {name}", form, kind, make) for name, (kind, make) in PARTS.items()]


async def _taken(request: Request) -> Response:
    async for _ in request.stream():
        pass
    return JSONResponse({"id": f"job-{uuid.uuid4()}", "status": "IN_QUEUE"})


async def _in_queue(request: Request) -> Response:
    await asyncio.sleep(int(request.query_params.get("wait", 0)) / 1000)
    return JSONResponse({"status": "IN_QUEUE", "stream": []})


async def _health(request: Request) -> Response:
    return JSONResponse({"jobs": {"inQueue": 1}, "workers": {"throttled": 1}})


QUEUE = Starlette(
    routes=[
        Route("/v2/ep/run", _taken, methods=["POST"]),
        Route("/v2/ep/stream/{job}", _in_queue),
        Route("/v2/ep/status/{job}", _in_queue),
        Route("/v2/ep/cancel/{job}", _in_queue, methods=["POST"]),
        Route("/v2/ep/health", _health),
    ]
)
"""A RunPod that takes every job, looks at none, and has no GPU."""


def _serve(parent: Connection) -> None:
    with serve(QUEUE) as url:
        parent.send(url)
        parent.recv()


def main() -> int:
    """Print the table."""
    ours, its = multiprocessing.Pipe()
    runpod = multiprocessing.get_context("spawn").Process(target=_serve, args=(its,), daemon=True)
    runpod.start()
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(
            ours.recv(),
            state_dir=folder,
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            first_byte_hold_seconds=0,
        )
        try:
            print(HEADER)
            for name, path, content_type, make in kinds():
                print(measure(proxy, name, path, content_type, make(LARGEST - 1000)), flush=True)
        finally:
            proxy.close()
            ours.send("over")
            runpod.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
