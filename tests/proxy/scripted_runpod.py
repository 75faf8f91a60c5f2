"""A RunPod that says what a test tells it to, for answers that no healthy platform gives.

It speaks the five calls that the proxy makes, for endpoints of any id. What /stream answers is a
script: one step for each call, the last one repeated.
"""

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

Serve = Callable[[Request], Awaitable[Response]]

TERMINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
LONGEST_HOLD_SECONDS = 100
"""Longer than a test waits for anything, so that it does not take this for what it waits for."""


@dataclass
class Page:
    """One answer of /stream; with `hold`, only after the event is set or the wait is over."""

    status: str
    outputs: list[Any] = field(default_factory=list)
    hold: threading.Event | None = None
    drips: threading.Event | None = None
    """Its answer comes byte by byte, and is whole only after this is set."""


@dataclass
class Fault:
    """An HTTP error, or with status 0 a connection that breaks in the middle of the answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    loses: list[Any] = field(default_factory=list)
    """Outputs that are handed out with the answer that breaks, so they count as given."""


@dataclass
class Raw:
    """An answer of /stream byte for byte."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class ScriptedRunPod:
    """State and routes; `jobs` holds every body that /run was given, `endpoints` for whom."""

    def __init__(self) -> None:
        self._serial = itertools.count(1)
        self.app = Starlette(
            routes=[
                Route("/v2/{endpoint}/run", self._at_edge(self._run), methods=["POST"]),
                Route("/v2/{endpoint}/stream/{job}", self._at_edge(self._stream)),
                Route("/v2/{endpoint}/status/{job}", self._at_edge(self._status)),
                Route("/v2/{endpoint}/cancel/{job}", self._at_edge(self._cancel), methods=["POST"]),
                Route("/v2/{endpoint}/health", self._health),
            ]
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything: one server serves many tests.

        What still comes for jobs of an earlier one takes nothing from this one's script.
        """
        self._jobs_here: set[str] = set()
        self.script: Sequence[Page | Fault | Raw] = []
        self.final: dict[str, Any] | None = None
        self.states: list[dict[str, Any]] = []
        """What /status says at first, one for each call."""
        self.status_faults: list[Response] = []
        """What /status is answered before that."""
        self.status_drips: threading.Event | None = None
        """/status is answered byte by byte, and whole only after this is set."""
        self.status_delay_seconds = 0.0
        self.status_calls = 0
        self.run_answers: list[Response] = []
        self.run_delay_seconds = 0.0
        self.run_hold: threading.Event | None = None
        """/run is answered only after this is set."""
        self.run_drips: threading.Event | None = None
        """/run is answered byte by byte, and whole only after this is set."""
        self.cancel_answers: list[Response] = []
        self.job_id = ""
        self.drops_run = False
        """A job is taken, and the answer that would tell its id breaks."""
        self.on_job: Callable[[dict[str, Any]], None] = lambda job: None
        """Told of each job before /run is answered."""
        self.jobs: list[dict[str, Any]] = []
        self.raw_jobs: list[bytes] = []
        self.endpoints: list[str] = []
        self.keys: list[str] = []
        self.scripts: dict[str, list[Page]] = {}
        """Scripts of single endpoints, in place of `script`; each page is given once."""
        self.workers: dict[str, int] = {}
        self.in_queue = 0
        self.health_refusal: Response | None = None
        """What /health is answered with, while it is set."""
        self.looks: Counter[str] = Counter()
        """How often /health was asked, by endpoint: proxies of other tests look as well."""
        self.refusal: Response | None = None
        """What every call but /health is answered with, as by RunPod's edge, while it is set."""
        self.refused_operations: set[str] | None = None
        """Those that it is for; None for all."""
        self.refused: Counter[str] = Counter()
        """How many calls were, by operation."""
        self.cancelled: list[str] = []
        self.stream_calls = 0
        self.stream_headers: list[dict[str, str]] = []

    @property
    def health_calls(self) -> int:
        """How often /health was asked for any of them."""
        return self.looks.total()

    def _at_edge(self, serve: Serve) -> Serve:
        async def serve_unless_refused(request: Request) -> Response:
            operation = request.url.path.split("/")[3]
            is_meant = self.refused_operations is None or operation in self.refused_operations
            if self.refusal is None or not is_meant:
                return await serve(request)
            self.refused[operation] += 1
            return self.refusal

        return serve_unless_refused

    async def _run(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw)
        jobs_here = self._jobs_here
        if self.run_answers:
            answer = self.run_answers.pop(0)
            await self._hold_run()
            return answer
        self.raw_jobs.append(raw)
        self.jobs.append(body)
        self.endpoints.append(request.path_params["endpoint"])
        self.keys.append(request.headers["authorization"])
        self.on_job(body)
        await self._hold_run()
        if self.drops_run:
            return _broken()
        job_id = f"job-{next(self._serial)}"
        jobs_here.add(job_id)
        if jobs_here is self._jobs_here:
            self.job_id = job_id
        told = {"id": job_id, "status": "IN_QUEUE"}
        return _json(told) if self.run_drips is None else dripping(told, self.run_drips)

    async def _hold_run(self) -> None:
        hold = self.run_hold
        await asyncio.sleep(self.run_delay_seconds)
        if hold is not None:
            await wait_for(hold, LONGEST_HOLD_SECONDS)

    async def _stream(self, request: Request) -> Response:
        job = request.path_params["job"]
        if job not in self._jobs_here:
            return Response(status_code=404)
        if job in self.cancelled:
            return _json({"status": "CANCELLED", "stream": []})
        if (own := self.scripts.get(request.path_params["endpoint"])) is not None:
            page = own.pop(0)
            return _json({"status": page.status, "stream": [{"output": o} for o in page.outputs]})
        step = self.script[min(self.stream_calls, len(self.script) - 1)]
        is_repeated = self.stream_calls >= len(self.script)
        self.stream_calls += 1
        if isinstance(step, Fault):
            return _broken() if step.status == 0 else Response(b"", step.status, step.headers)
        self.stream_headers.append(dict(request.headers))
        if isinstance(step, Raw):
            return Response(step.body, headers=step.headers, media_type="application/json")
        seconds = int(request.query_params["wait"]) / 1000
        if step.hold is not None:
            await wait_for(step.hold, seconds)
            if not step.hold.is_set():
                if job in self._jobs_here:  # not after this test
                    self.stream_calls -= 1
                return _json({"status": step.status, "stream": []})
        elif is_repeated and step.status not in TERMINAL:
            await asyncio.sleep(seconds)
        outputs = [] if is_repeated else step.outputs
        answer = {"status": step.status, "stream": [{"output": out} for out in outputs]}
        return _json(answer) if step.drips is None else dripping(answer, step.drips)

    async def _status(self, request: Request) -> Response:
        if request.path_params["job"] not in self._jobs_here:
            return Response(status_code=404)
        self.status_calls += 1
        if self.status_faults:
            return self.status_faults.pop(0)
        await asyncio.sleep(self.status_delay_seconds)
        if self.states:
            return _json(self.states.pop(0))
        if self.status_drips is not None:
            return dripping(self.final, self.status_drips)
        if self.final is not None:
            return _json(self.final)
        outputs: list[Any] = []
        for step in self.script:
            if not isinstance(step, Raw):
                outputs += step.outputs if isinstance(step, Page) else step.loses
        # Jobs of `scripts` have none here; a proxy asks all the same which worker has answered.
        last = self.script[-1] if self.script else Page("COMPLETED")
        status = "COMPLETED" if isinstance(last, Raw) else last.status
        return _json({"status": status, "output": outputs})

    async def _health(self, request: Request) -> Response:
        self.looks[request.path_params["endpoint"]] += 1
        if self.health_refusal is not None:
            return self.health_refusal
        return _json({"jobs": {"inQueue": self.in_queue}, "workers": self.workers})

    async def _cancel(self, request: Request) -> Response:
        job = request.path_params["job"]
        if job in self._jobs_here and self.cancel_answers:
            return self.cancel_answers.pop(0)
        if job in self._jobs_here:  # not one of an earlier test
            self.cancelled.append(job)
        return _json({"id": job, "status": "CANCELLED"})


async def wait_for(event: threading.Event, seconds: float) -> None:
    """Until the event is set, at most this long."""
    # The event is set from the test's thread, so it is looked at rather than awaited.
    deadline = time.monotonic() + seconds
    while not event.is_set() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def dripping(content: Any, release: threading.Event) -> Response:
    """An answer that comes byte by byte, and is whole only after the event is set."""

    async def pieces() -> AsyncIterator[bytes]:
        deadline = time.monotonic() + LONGEST_HOLD_SECONDS
        while not release.is_set() and time.monotonic() < deadline:
            yield b" "
            await asyncio.sleep(0.05)
        yield msgspec.json.encode(content)

    return StreamingResponse(pieces(), media_type="application/json")


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def _broken() -> Response:
    """An answer that promises more bytes than it sends, so the connection is closed on it."""
    return Response(b"{", headers={"content-length": "100"}, media_type="application/json")
