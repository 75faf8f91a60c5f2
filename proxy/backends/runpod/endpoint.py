"""RunPod's HTTP API for one queue endpoint: URLs, timeouts, and httpx's errors turned into ours.

Source of the shapes: https://docs.runpod.io/serverless/endpoints/operation-reference. Differences
seen in practice, and relied on here: /stream answers one JSON document (not SSE), holds the call
until there is something to say, takes `?wait=` in milliseconds (1000 to 300000), and hands each
output out once.
"""

import asyncio
import gc
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import httpx
import msgspec

from proxy.api.answer import Course
from proxy.backends.connections import CANNOT_BE_SENT, Client
from proxy.backends.dialing import Origin
from proxy.backends.refusals import Trust
from proxy.backends.response_bodies import whole_body
from proxy.backends.runpod.pacing import CallLimiter, Shares
from proxy.backends.standing import Standing
from proxy.backends.transport import Reply, Transport, header_lines
from proxy.config.limits import CallLimit
from proxy.errors import (
    ConnectTimeout,
    JobNotFound,
    NotSent,
    UpstreamBusy,
    UpstreamMisconfigured,
    UpstreamUnavailable,
    WorkerFailed,
)
from proxy.memory import Memory, Reservation
from proxy.telemetry.metrics import Metrics

ANSWER_MARGIN_SECONDS = 15
"""How long RunPod may take to answer a call, beyond the time we asked it to hold the call."""
MIN_HOLD_SECONDS = 1.0
"""RunPod's lower limit of `?wait=`."""
MAX_WORKER_ID_CHARS = 200
MAX_ANSWER_SECONDS = 60
"""How long an answer may take to come, from its first byte or the end of the hold to its last."""
MAX_RETRY_AFTER_SECONDS = 300
MAX_ANSWER_BYTES = 64 * 2**20
"""The largest answer of /stream and /status; RunPod keeps results of 20 MB at most."""
MAX_SHORT_BYTES = 2**20
"""The largest answer of any other call."""
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:~-]{0,199}")
"""What can stand in a URL, a header and the log as it is; RunPod's are UUIDs with a suffix."""


class JobStatus(StrEnum):
    """RunPod's job states; a state that we do not know counts as running."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self not in (JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS)

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "JobStatus":
        """The state that RunPod's answer tells."""
        status = answer.get("status")
        return cls(status if isinstance(status, str) else "")

    @classmethod
    def _missing_(cls, value: object) -> "JobStatus":
        return cls.IN_PROGRESS


@dataclass(frozen=True, slots=True)
class StreamPage:
    """What one call of /stream handed out."""

    status: JobStatus
    outputs: list[Any]
    reservation: Reservation | None = None
    """What the answer holds of the memory for all; it goes with the page."""

    @classmethod
    def of(cls, answer: Mapping[str, Any], reservation: Reservation | None = None) -> "StreamPage":
        """From RunPod's answer; raises UpstreamUnavailable if it is none of /stream."""
        items = answer.get("stream") or []
        if not isinstance(items, list):
            raise UpstreamUnavailable("RunPod's answer has no list of outputs.")
        outputs = [item["output"] for item in items if isinstance(item, dict) and "output" in item]
        return cls(JobStatus.of(answer), outputs, reservation)


@dataclass(frozen=True, slots=True)
class JobState:
    """What /status says of a job; times are in milliseconds, as RunPod gives them."""

    status: JobStatus
    output: Any = None
    error: Any = None
    delay_ms: int | None = None
    execution_ms: int | None = None
    worker_id: str | None = None
    """The worker that has the job, or had it last."""
    reservation: Reservation | None = None
    """What the answer holds of the memory for all; it goes with the state."""

    @property
    def course(self) -> Course:
        """How the job went, as far as RunPod tells."""
        return Course(
            queue_seconds=None if self.delay_ms is None else self.delay_ms / 1000,
            execution_seconds=None if self.execution_ms is None else self.execution_ms / 1000,
        )

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "JobState":
        """From RunPod's answer; a time that is none counts as not told."""
        return cls(
            status=JobStatus.of(answer),
            output=answer.get("output"),
            error=answer.get("error"),
            delay_ms=_milliseconds(answer.get("delayTime")),
            execution_ms=_milliseconds(answer.get("executionTime")),
            worker_id=_worker_id(answer.get("workerId")),
        )


@dataclass(frozen=True, slots=True)
class CallLimits:
    """RunPod's limits for the calls to one endpoint."""

    run: CallLimit
    stream: CallLimit
    status: CallLimit
    """Of /health as well, whose own limit is not known."""
    cancel: CallLimit


class Endpoint:
    """One RunPod endpoint: `run`, `stream`, `status`, `cancel` and `health`, as RunPod names them.

    All of them raise UpstreamUnavailable when RunPod cannot be reached or answers 5xx, its
    subclass UpstreamBusy on 429, UpstreamMisconfigured when it refuses our key or does not know
    the endpoint; those that name a job raise JobNotFound when RunPod has forgotten it. Each call
    first waits for its turn in the budget of its operation.
    """

    def __init__(
        self,
        client: Client,
        url: str,
        *,
        name: str,
        api_key: str,
        limits: CallLimits,
        metrics: Metrics,
        memory: Memory,
        key_variable: str = "RUNPOD_API_KEY",
        shares: Shares | None = None,
    ) -> None:
        self.url = url
        self.name = name
        self.id = url.rpartition("/")[2]
        """As RunPod names it."""
        self.standing = Standing(f"endpoint {name}", key_variable)
        self.trust = Trust()
        self._client = client
        self._api_key = api_key
        self._metrics = metrics
        self._memory = memory
        self._run = CallLimiter(limits.run)
        self._stream = CallLimiter(limits.stream)
        self._status = CallLimiter(limits.status)
        self._cancel = CallLimiter.for_cancels(limits.cancel)
        if shares is not None:
            shares.hold(self._run, f"{url}/run")
            shares.hold(self._stream, f"{url}/stream")
            shares.hold(self._status, f"{url}/status")
            shares.hold(self._cancel, f"{url}/cancel")

    async def run(self, job: bytes, *, connect_seconds: float, on_turn: Callable[[], None]) -> str:
        """Queue a job, given as its JSON, and return its id.

        `on_turn` is called when its turn has come: from then on there may be a job.
        """
        try:
            answer = await self._call(
                self._run,
                "POST",
                "/run",
                content=job,
                connect_seconds=connect_seconds,
                on_turn=on_turn,
            )
        except JobNotFound:
            raise UpstreamMisconfigured("RunPod knows no endpoint of this id.") from None
        return job_id_of(answer)

    async def stream(self, job_id: str, *, wait_seconds: float, urgent: bool) -> StreamPage:
        """The outputs since the last call; held for up to `wait_seconds` while there are none.

        An urgent call, for a stream that has shown nothing yet, gets its turn before others.
        """
        if self._stream.is_crowded:
            wait_seconds = 0  # a call that is held keeps its place from others
        hold_seconds = max(MIN_HOLD_SECONDS, wait_seconds)
        path = f"/stream/{job_id}?wait={round(hold_seconds * 1000)}"
        answer = await self._call(
            self._stream,
            "GET",
            path,
            hold_seconds=hold_seconds,
            urgent=urgent,
            reservation=(reservation := self._memory.reserve_for_answer()),
        )
        return StreamPage.of(answer, reservation)

    async def status(self, job_id: str) -> JobState:
        """How the job stands, with everything it has put out if it is done."""
        reservation = self._memory.reserve_for_answer()
        path = f"/status/{job_id}"
        answer = await self._call(self._status, "GET", path, reservation=reservation)
        return replace(JobState.of(answer), reservation=reservation)

    async def cancel(self, job_id: str) -> JobStatus:
        """Ask for the job to be stopped, and return its state after that."""
        answer = await self._call(self._cancel, "POST", f"/cancel/{job_id}")
        return JobStatus.of(answer)

    def seconds_for_cancels(self, count: int) -> float:
        """How long so many calls of /cancel take by RunPod's limit."""
        return self._cancel.seconds_for(count)

    async def health(self) -> Mapping[str, Any]:
        """RunPod's counters of the endpoint's jobs and workers."""
        return await self._call(self._status, "GET", "/health")

    async def _call(
        self,
        limiter: CallLimiter,
        method: str,
        path: str,
        *,
        content: bytes = b"",
        hold_seconds: float = 0,
        connect_seconds: float | None = None,
        urgent: bool = False,
        on_turn: Callable[[], None] = lambda: None,
        reservation: Reservation | None = None,
    ) -> Mapping[str, Any]:
        """One call. What its answer holds in memory is counted if there is a reservation."""
        operation = path[1:].partition("/")[0]
        async with limiter.turn(urgent=urgent):
            on_turn()
            try:
                reply, body = await self._send(
                    method, path, content, hold_seconds, connect_seconds, reservation
                )
            except (UpstreamUnavailable, UpstreamMisconfigured):
                self._metrics.note_call(self.name, operation, "error")
                raise
        self._metrics.note_call(self.name, operation, str(reply.status))
        self.standing.note(reply.status, names_job=operation not in ("run", "health"))
        try:
            answer = _checked(reply, body)
        except UpstreamBusy as exc:
            limiter.slow_down(exc.retry_after_seconds)
            raise
        if operation != "health":  # which a key may be allowed that may start no jobs
            self.trust.note_worked()
        return answer

    @cached_property
    def _base(self) -> httpx.URL:
        return httpx.URL(self.url)

    @cached_property
    def _origin(self) -> Origin:
        return Origin.of(self._base)

    @cached_property
    def _way(self) -> Transport:
        return self._client.way(self._base)

    @cached_property
    def _header_lines(self) -> bytes:
        return header_lines(
            [
                (b"accept", b"*/*"),
                (b"accept-encoding", b"identity"),
                (b"authorization", b"Bearer " + self._api_key.encode(errors="surrogatepass")),
                (b"content-type", b"application/json"),
                (b"user-agent", self._client.headers["user-agent"].encode()),
            ]
        )

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes,
        hold_seconds: float,
        connect_seconds: float | None,
        reservation: Reservation | None,
    ) -> tuple[Reply, bytes]:
        connect_seconds = connect_seconds or self._client.timeout.connect or 0
        # The timeouts of a call are for each piece of its answer, however many there are.
        limit = hold_seconds + connect_seconds + MAX_ANSWER_SECONDS
        try:
            async with asyncio.timeout(limit):
                reply = await self._way.send(
                    method,
                    self._origin,
                    self._base.raw_path + path.encode(),
                    self._header_lines,
                    content,
                    connect_seconds=connect_seconds,
                    read_seconds=hold_seconds + ANSWER_MARGIN_SECONDS,
                )
                try:
                    max_bytes = MAX_SHORT_BYTES if reservation is None else MAX_ANSWER_BYTES
                    return reply, await whole_body(reply, max_bytes, reservation)
                finally:
                    await reply.aclose()
        except (httpx.ConnectError, httpx.ProxyError) as exc:
            raise NotSent("RunPod could not be reached.") from exc
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise ConnectTimeout(
                f"No connection to RunPod for {connect_seconds:g} s (connect_timeout_seconds)."
            ) from exc
        except CANNOT_BE_SENT:
            # Their texts and reprs hold what could not be sent, the key as well.
            raise UpstreamMisconfigured(
                "RunPod cannot be called with the proxy's API key or base URL as they are."
            ) from None
        except (httpx.HTTPError, TimeoutError) as exc:
            raise UpstreamUnavailable("The connection to RunPod broke.") from exc


def create_client(*, connect_timeout_seconds: float) -> Client:
    """The HTTP client that all calls to RunPod share."""
    return Client(httpx.Timeout(ANSWER_MARGIN_SECONDS, connect=connect_timeout_seconds))


def job_id_of(answer: Mapping[str, Any]) -> str:
    """The id of the job that RunPod has taken.

    Raises:
        WorkerFailed: there is none by which the job could be asked for.
    """
    job_id = answer.get("id")
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise WorkerFailed("RunPod took the job, but gave it no id that can be used.")
    return job_id


def _milliseconds(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _checked(reply: Reply, body: bytes) -> Mapping[str, Any]:
    """The answer's JSON object, or the error that its status means."""
    status = reply.status
    if status == 429:
        raise UpstreamBusy(
            "RunPod is limiting the rate of our calls.", retry_after_seconds=_retry_after(reply)
        )
    if status in (401, 403):
        raise UpstreamMisconfigured("RunPod refused the proxy's API key.")
    if status == 404:
        raise JobNotFound
    if status in (400, 413, 422):
        raise WorkerFailed(f"RunPod refused the job (HTTP {status}).")
    if not 200 <= status < 300:
        raise UpstreamUnavailable(f"RunPod answered HTTP {status}.")
    try:
        answer = _decoded(body)
    except (ValueError, RecursionError) as exc:
        raise UpstreamUnavailable("RunPod's answer is not JSON.") from exc
    if not isinstance(answer, dict):
        raise UpstreamUnavailable("RunPod's answer is not a JSON object.")
    return answer


def _decoded(body: bytes) -> Any:
    """Python's garbage collector would look at a million new objects again and again."""
    if len(body) < MAX_SHORT_BYTES or not gc.isenabled():
        return msgspec.json.decode(body)
    gc.disable()
    try:
        return msgspec.json.decode(body)
    finally:
        gc.enable()


def _worker_id(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_WORKER_ID_CHARS else None


def _retry_after(reply: Reply) -> float | None:
    """In seconds; a date, or a number that makes no sense, counts as nothing said."""
    value = reply.header(b"retry-after")
    return float(min(int(value), MAX_RETRY_AFTER_SECONDS)) if value.isdecimal() else None
