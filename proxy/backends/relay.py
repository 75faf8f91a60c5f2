"""Plain HTTP to a server that speaks OpenAI's API: a load-balancing endpoint, or any other.

A load-balancing endpoint has no queue. While it has no worker, RunPod holds a call for two minutes
and then answers 400 ("timed out waiting for worker", "no workers available") or 503; these are the
platform's answers and not vLLM's, so the call is repeated until a worker is there or a deadline
passes. What stops a worker's work on a call is that its connection is closed. Sources:
https://docs.runpod.io/serverless/load-balancing/overview and .../worker-affinity.
"""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from proxy.api.answer import JSON, NO_COURSE, Answer, Course, Head, checked_head
from proxy.api.call import Call, Content, OnSpent, Work
from proxy.api.sse_framing import DONE, Completion, WholeEvents
from proxy.backends.admission import Admission
from proxy.backends.backend import InFlight
from proxy.backends.cold_start import ColdStartAnswer
from proxy.backends.connections import CANNOT_BE_SENT
from proxy.backends.deadlines import Deadlines, Shutdown, Terms, pause
from proxy.backends.fair_turns import NOT_ITS_TURN, FairTurns, Place
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.refusals import Trust
from proxy.backends.response_bodies import Body
from proxy.backends.standing import Standing
from proxy.backends.transport import REPLY
from proxy.errors import (
    ConnectTimeout,
    ProxyError,
    UpstreamMisconfigured,
    UpstreamUnavailable,
    WorkerFailed,
)
from proxy.memory import Memory

T = TypeVar("T")

log = logging.getLogger(__name__)

WORKER_ID: Final = "x-runpod-worker-id"
"""Only a worker's own answers carry it."""
MAX_REFUSAL_BYTES: Final = 65_536
"""How much of a refusal is looked at."""
NO_WORKER: Final = ("timed out waiting for worker", "no workers available")


class Relay:
    """The Backend that is a server asked by HTTP.

    With a `monitor` it is a load-balancing endpoint, whose cold start is waited out.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        api_key: str,
        *,
        admission: Admission,
        shutdown: Shutdown,
        memory: Memory,
        standing: Standing,
        name: str,
        on_work: Callable[[Work, OnSpent], None],
        monitor: HealthMonitor | None = None,
        turns: FairTurns | None = None,
    ) -> None:
        self.served: dict[str, int | None] = {}
        self.monitor = monitor
        self.name = name
        self.on_work = on_work
        """Told of each answer's work when it is let go of, and who else wants to know."""
        self.shutdown = shutdown
        self.memory = memory
        self.standing = standing
        self.trust = Trust()
        self.turns = turns or FairTurns()
        self._admission = admission
        self._live: set[RelayedAnswer] = set()
        self._client = client
        self._url = url
        self._api_key = api_key

    def ask(self, call: Call, served_as: str | None, terms: Terms) -> Answer:
        """The server's answer; the request is sent when it is opened."""
        headers = {"accept-encoding": "identity", "x-request-id": call.request_id}
        if self.monitor is not None:  # another server is told nothing of its clients
            headers |= call.headers
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        body = None
        if call.content is not None:
            body = _RequestBody(call.content, call.content.naming(served_as))
            headers["content-type"] = call.content.content_type
            headers["content-length"] = str(body.size)
        try:
            request = self._client.build_request(
                call.route.method,
                address(self._url, call.target, is_base=self.monitor is None),
                content=body,
                headers=headers,
                timeout=httpx.Timeout(None, connect=terms.connect_timeout_seconds),
            )
        except CANNOT_BE_SENT:
            raise _cannot_be_sent() from None
        answer = RelayedAnswer(
            self, request, body, call.route.dialect.ends, terms, on_spent=call.on_spent
        )
        return answer if self.monitor is None else ColdStartAnswer(answer, self.monitor)

    def in_flight(self) -> InFlight:
        """Answers that have not come to their end; those without a head count as waiting."""
        waiting = sum(live.head is None for live in self._live)
        return InFlight(waiting, len(self._live) - waiting, self.turns.waiting)

    async def close(self, seconds: float) -> None:
        """Ask for /health no more, where it was asked. A call that is left submits nothing."""
        if self.monitor is not None:
            await self.monitor.close()

    def admit(self, answer: "RelayedAnswer") -> None:
        """Count an answer as under way; raises EndpointOverloaded if there are too many."""
        self._admission.check(live=len(self._live), waiting=self.in_flight().waiting)
        self._live.add(answer)

    def release(self, answer: "RelayedAnswer") -> None:
        """It is not under way any more."""
        self._live.discard(answer)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the response when its head has come."""
        return await self._client.send(request, stream=True)


class _RequestBody(httpx.AsyncByteStream):
    """A request's body, which can be let go: httpx keeps a request until its answer has ended."""

    def __init__(self, content: Content, raw: bytes) -> None:
        self.size = len(raw)
        self._kept: tuple[Content, bytes] | None = (content, raw)
        """With the content, as what it holds of the memory for all goes with it."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self._kept is not None, "a worker has it"
        yield self._kept[1]

    def let_go(self) -> None:
        """It is not sent again."""
        self._kept = None


class RelayedAnswer:
    """The Answer to one relayed call."""

    job_id = None
    road = ""

    def __init__(
        self,
        relay: Relay,
        request: httpx.Request,
        body: _RequestBody | None,
        ends: tuple[bytes, ...],
        terms: Terms,
        *,
        on_spent: OnSpent,
    ) -> None:
        self.head: Head | None = None
        self.course = NO_COURSE
        self._relay = relay
        self._on_spent = on_spent
        self._request = request
        self._body = body
        self._events = WholeEvents()
        self._held = relay.memory.reserve_for_answer()
        """For the beginning of an event."""
        self._completion = Completion(ends)
        self._deadlines = Deadlines(terms, relay.shutdown, self._cold_start_reason)
        self._place: Place | None = None
        self._answered = time.monotonic()
        self._response: httpx.Response | None = None
        self._content: Body | None = None
        self._begun: list[bytes] = []
        """Pieces of the body that were looked at before they are passed on."""
        self._closing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_sent = False
        """A server may have the request, and what it does has not been told yet."""

    @property
    def is_waiting(self) -> bool:
        """Until its head comes it cannot be told whether a worker has the call."""
        return self.head is None

    async def open(self) -> bytes:
        """Ask until a worker answers, and take its head."""
        self._relay.admit(self)
        self._place = self._relay.turns.place(self._deadlines.terms.flow)
        if self._place.is_waiting:
            await self._in_time(self._place.turn())
        response = await self._worker_response()
        if self._body is not None:
            self._body.let_go()
        is_workers = WORKER_ID in response.headers or response.is_success
        if is_workers:
            self._relay.trust.note_worked()
        self._answered = time.monotonic()
        self._deadlines.note_started()
        self.head = checked_head(
            response.status_code,
            response.headers.get("content-type", JSON),
            headers=response.headers,
        )
        self.head = replace(self.head, is_workers=is_workers)
        if response.has_redirect_location:
            self.head = replace(self.head, headers=self._redirected(response))
        return b""

    async def pieces(self) -> AsyncIterator[bytes]:
        """Read the response's body."""
        assert self.head is not None, "open() comes first"
        is_stream = self.head.is_event_stream
        while (chunk := await self._next_chunk()) is not None:
            yield self._whole_events(chunk) if is_stream else chunk
        if is_stream:
            yield self._last_events()
        self.close()

    def _redirected(self, response: httpx.Response) -> dict[str, str]:
        """The headers of an answer that names another address, which is not gone to.

        The key is for this server only. What the client does with the address is its own affair.
        """
        target = self._request.url.join(response.headers["location"])
        log.warning(
            "%s answers HTTP %d and names another address at %s; its base URL should be that",
            self._request.url.host,
            response.status_code,
            target.host,
        )
        assert self.head is not None
        return {**self.head.headers, "location": str(target)}

    def _whole_events(self, chunk: bytes) -> bytes:
        whole = self._events.take(chunk)
        self._held.resize(self._events.held_bytes)
        if whole:
            self._completion.note(whole)
        return whole

    def _last_events(self) -> bytes:
        """What is missing at the end of a stream that was closed in order.

        Some servers leave out the last blank line, or `[DONE]`.
        """
        if rest := self._events.rest():
            self._completion.note(rest)
        if self._completion.has_end:
            return rest
        if self._completion.is_finished:
            return rest + b"data: " + DONE + b"\n\n"
        raise WorkerFailed("The worker's answer ended before it was complete.")

    def close(self) -> None:
        """Close the connection, unless the answer has come to its end."""
        self._is_closed = True
        self._relay.release(self)
        if self._place is not None:
            self._place.leave()
        self._events.flush()
        self._held.release()
        if self._is_sent:
            self._is_sent = False
            seconds = 0.0 if self.head is None else time.monotonic() - self._answered
            work = Work(self._relay.name, seconds, id=self.course.work_id)
            self._relay.on_work(work, self._on_spent)
        if self._response is not None and self._closing is None:
            self._closing = asyncio.create_task(self._response.aclose())

    async def _worker_response(self) -> httpx.Response:
        """Ask until a worker answers."""
        for attempt in itertools.count():
            if self._relay.monitor is not None:
                self._relay.monitor.ceiling.check()
            try:
                response, failure = await self._in_time(self._try())
            except (httpx.ConnectError, httpx.ProxyError):
                failure = UpstreamUnavailable("The model's server could not be reached.")
            except (httpx.ConnectTimeout, httpx.PoolTimeout):
                seconds = self._deadlines.terms.connect_timeout_seconds
                failure = ConnectTimeout(
                    f"No connection to the model's server for {seconds:g} s "
                    "(connect_timeout_seconds)."
                )
            except CANNOT_BE_SENT:
                raise _cannot_be_sent() from None
            except httpx.HTTPError as exc:
                # A worker may have begun on it: no second one is asked.
                raise UpstreamUnavailable("The connection to the model's server broke.") from exc
            if failure is None:
                return response
            if self._relay.monitor is None:
                raise failure
            self._relay.monitor.request_updates()
            await self._deadlines.sleep(pause(attempt))
        raise AssertionError("unreachable")

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """What this work comes to, unless a deadline passes first. It is never done twice.

        A call that hangs may have a worker that is long at a plain answer, whose head comes last.
        """
        task = asyncio.create_task(work)
        try:
            return await self._deadlines.result(task)
        finally:
            task.cancel()

    async def _try(self) -> tuple[httpx.Response, ProxyError | None]:
        self._is_sent = not self._is_closed
        if self._is_sent and not self.course.work_id:
            self.course = Course(endpoint=self._relay.name, work_id=uuid.uuid4().hex)
        response = self._response = await self._relay.send(self._request)
        if self._is_closed:  # just before this
            self.close()
        self._content, self._begun = Body(response.extensions[REPLY]), []
        if WORKER_ID not in response.headers or response.is_success:
            self._relay.standing.note(response.status_code, names_job=True)
        return response, await self._failure(response)

    async def _failure(self, response: httpx.Response) -> ProxyError | None:
        """What the platform says in a worker's place; None for an answer of the server's own."""
        status = response.status_code
        if WORKER_ID in response.headers or status < 400:
            return None
        if status in (401, 403):
            await response.aclose()
            refusal = UpstreamMisconfigured("The model's server refused the proxy's API key.")
            if self._relay.trust.outlasts_refusal():
                return refusal  # no worker has seen the call
            raise refusal
        if self._relay.monitor is None:
            return None
        if status in (502, 503, 504, 524):
            await response.aclose()
            failure = UpstreamUnavailable(f"RunPod answered HTTP {status}.")
            if status != 503:  # a worker may have begun on it: no second one is asked
                raise failure
            return failure
        if status == 400:
            said = (await self._beginning()).decode(errors="replace").lower()
            if any(words in said for words in NO_WORKER):
                return UpstreamUnavailable("RunPod has no worker for the endpoint.")
        return None

    async def _next_chunk(self) -> bytes | None:
        """The next bytes, or none if nothing came for a while; None at the end."""
        assert self._content is not None
        if self._begun:
            return self._begun.pop(0)
        seconds = min(self._deadlines.terms.keep_alive_seconds, self._deadlines.seconds_left())
        try:
            chunk = await self._content.read(seconds)
        except httpx.HTTPError as exc:
            raise WorkerFailed("The connection to the model's server broke.") from exc
        if chunk is None:
            return b""
        self._deadlines.note_output()
        return chunk or None

    async def _beginning(self) -> bytes:
        assert self._content is not None
        size = 0
        while size < MAX_REFUSAL_BYTES and (piece := await self._content.read()):
            self._begun.append(piece)
            size += len(piece)
        return b"".join(self._begun)

    def _cold_start_reason(self) -> str:
        if self._place is not None and self._place.is_waiting:
            return NOT_ITS_TURN
        monitor = self._relay.monitor
        return monitor.cold_start_reason if monitor else "its server does not answer"


def address(url: str, target: str, *, is_base: bool) -> str:
    """Where a route of ours is at a server.

    As OpenAI's clients take a base URL (`is_base`), a path in it stands for the `/v1` that our
    routes begin with: there are servers at `/v1beta/openai` and `/api/paas/v4`. A bare host has
    none. Routes that do not begin with `/v1` are vLLM's, beside it.
    """
    root = url.rstrip("/")
    if root.endswith("/v1"):
        return root.removesuffix("/v1") + target
    if is_base and target.startswith("/v1/") and urlsplit(root).path:
        return root + target.removeprefix("/v1")
    return root + target


def _cannot_be_sent() -> UpstreamMisconfigured:
    return UpstreamMisconfigured(
        "The model's server cannot be called with its API key or URL as they are."
    )
