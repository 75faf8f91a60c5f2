"""An answer as it comes: first its head, then its bytes, or the error that it ended in."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from proxy.errors import WorkerFailed
from proxy.memory import Reservation

SSE = "text/event-stream"
JSON = "application/json"
MAX_HEADER_CHARS: Final = 65_536
"""The longest value of a header; Python's own HTTP client reads no longer line."""
MAX_MODELS: Final = 100
"""How many models one worker may tell of."""
MAX_NAME_CHARS: Final = 200
_HEADERS = re.compile(r"metadata|retry-after(-ms)?|x-should-retry|x-ratelimit-[a-z-]{1,50}")
"""Headers of an answer that are handed on beside its content type.

vLLM puts the places of embeddings asked for as bytes into `metadata`; the others are of servers
that limit their clients.
"""
_HEADER_VALUE = re.compile(r"[\t -~]*")
_MEDIA_TYPE = re.compile(
    r"[\w!#$&^.+-]{1,100}/[\w!#$&^.+-]{1,100}[ \t]*(;[\t -~]{0,500})?", re.ASCII
)
_WITHOUT_BODY = (204, 205, 304)


@dataclass(frozen=True, slots=True)
class Head:
    """The status and content type of the worker's answer."""

    status: int
    content_type: str
    """Empty where there is no body."""
    models: tuple[dict[str, Any], ...] = ()
    """What the worker serves, if it says so: `id`, and perhaps `max_model_len`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that are handed on, by their names in lower case."""

    start_failed: str | None = None
    """Which cause, in a word, if the worker answers because its model could not be started."""
    is_workers: bool = True
    """Whether it is a worker's own, and not what the platform says in its place."""

    @property
    def is_event_stream(self) -> bool:
        """Whether the answer is a stream of events that went well."""
        return 200 <= self.status < 300 and self.content_type.startswith(SSE)

    @property
    def may_have_body(self) -> bool:
        """Whether there can be a body behind it."""
        return self.content_type != "" and self.status not in _WITHOUT_BODY


def checked_head(
    status: Any,
    content_type: Any,
    *,
    models: Any = None,
    headers: Any = None,
    start_failed: Any = None,
) -> Head:
    """A head that can be sent on as it is.

    Raises:
        WorkerFailed: the status is none of an answer, or a value is none of a header.
    """
    if type(status) is not int or not 200 <= status <= 599:
        raise WorkerFailed("The worker's answer has no status that one can have.")
    is_type = isinstance(content_type, str) and (
        content_type == "" or _MEDIA_TYPE.fullmatch(content_type)
    )
    if not is_type:
        raise WorkerFailed("The worker's answer has a content type that is none.")
    cause = start_failed if is_name(start_failed) else None
    return Head(status, content_type, _models(models), _headers(headers), cause)


@dataclass(frozen=True, slots=True)
class Course:
    """How a call went on its way to a worker and there, as far as that is known; in seconds."""

    was_cold: bool | None = None
    """A worker had to be started for it; None where that cannot be told."""
    queue_seconds: float | None = None
    """How long its job waited for a worker: as RunPod tells, or else as seen from here."""
    execution_seconds: float | None = None
    """How long a worker had the job, where RunPod was asked and told."""
    endpoint_id: str = ""
    """RunPod's id of the endpoint that its job went to."""
    submitted: float | None = None
    """When RunPod had taken its job, on the monotonic clock."""
    endpoint: str = ""
    """The name of the endpoint that has the work."""
    work_id: str = ""
    """What that work is known by there."""


NO_COURSE: Final = Course()
"""Of an answer that no worker gives."""


class Answer(Protocol):
    """What is answered to one call. Nothing happens before `open`; `close` comes in the end.

    One reader at a time may take pieces from it. All methods raise ProxyError.
    """

    @property
    def head(self) -> Head | None:
        """Its status and content type; known once `open` has returned."""
        ...

    @property
    def job_id(self) -> str | None:
        """RunPod's id of the job, once it is known."""
        ...

    @property
    def road(self) -> str:
        """How the outputs of a job come, where there is more than one way, for the log."""
        ...

    @property
    def course(self) -> Course:
        """How the call went so far."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether the call still waits for a worker that is known to be up."""
        ...

    async def open(self) -> bytes:
        """Ask, wait for the head, and return the bytes that came with it."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """What follows, as it comes; a piece is empty when nothing came for a while."""
        ...

    def close(self) -> None:
        """Stop what still works on the answer: its client wants no more of it.

        It may come while `open` is under way, which its caller cancels.
        """
        ...


class WrappedAnswer:
    """An answer in front of another, `inner`, and like it in all that is not said otherwise.

    Without one, no backend has been asked yet.
    """

    inner: Answer | None

    @property
    def head(self) -> Head | None:
        """The inner answer's head."""
        return self.inner.head if self.inner else None

    @property
    def job_id(self) -> str | None:
        """The inner answer's job."""
        return self.inner.job_id if self.inner else None

    @property
    def road(self) -> str:
        """The inner answer's road."""
        return self.inner.road if self.inner else ""

    @property
    def course(self) -> Course:
        """The inner answer's course."""
        return self.inner.course if self.inner else NO_COURSE

    @property
    def is_waiting(self) -> bool:
        """Whether the inner answer waits for a worker."""
        return self.inner.is_waiting if self.inner else True

    def pieces(self) -> AsyncIterator[bytes]:
        """The inner answer's pieces; it has been opened."""
        assert self.inner is not None, "open() comes first"
        return self.inner.pieces()

    def close(self) -> None:
        """Close the inner answer."""
        if self.inner is not None:
            self.inner.close()


class LocalAnswer:
    """An answer that the proxy gives itself: `open` gives all of it."""

    head: Head | None = None
    job_id: Final = None
    road: Final = ""
    course: Final = NO_COURSE
    is_waiting: Final = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """Nothing follows."""
        return
        yield b""

    def close(self) -> None:
        """Nothing works on it."""


async def whole(answer: Answer, first: bytes, reservation: Reservation) -> bytes:
    """All of an answer that began so; raises MemoryLimitReached if there is no room for it."""
    reservation.grow(len(first))
    pieces = [first]
    async for piece in answer.pieces():
        reservation.grow(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


class _Result(msgspec.Struct):
    error: Any = None
    object: Any = None
    code: Any = None


_result = msgspec.json.Decoder(_Result)


def meant_status(head: Head, body: bytes) -> int:
    """The status of an answer; for one of 200 that holds an error alone, the error's own or 502.

    RunPod's own OpenAI route answers vLLM's errors with 200. A response that failed is a result.
    """
    if not 200 <= head.status < 300 or b'"error"' not in body:
        return head.status
    try:
        result = _result.decode(body)
    except (ValueError, RecursionError):
        return head.status
    if result.object != "error" and (result.object is not None or not result.error):
        return head.status
    code = result.error.get("code") if isinstance(result.error, dict) else result.code
    return code if type(code) is int and 400 <= code <= 599 else 502


def _models(told: Any) -> tuple[dict[str, Any], ...]:
    """What a worker tells of its models, without what is none."""
    models = told[:MAX_MODELS] if isinstance(told, list) else []
    named = [model for model in models if isinstance(model, dict) and is_name(model.get("id"))]
    return tuple({"id": m["id"], "max_model_len": _length(m.get("max_model_len"))} for m in named)


def is_name(value: Any) -> bool:
    """Whether this can be the name of a model."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _length(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**53 else None


def _headers(told: Any) -> dict[str, str]:
    """Of an answer's headers those that are handed on."""
    headers = {} if told is None else told
    if not isinstance(headers, Mapping):
        raise WorkerFailed("The worker's answer has headers that are none.")
    found = {name.lower(): headers[name] for name in headers if isinstance(name, str)}
    kept = {name: value for name, value in found.items() if _HEADERS.fullmatch(name)}
    for name, value in kept.items():
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise WorkerFailed(f"The worker's answer has a header {name} that is none.")
        if len(value) > MAX_HEADER_CHARS:
            raise WorkerFailed(
                f"The worker's answer has a header {name} that is too long to be sent on. "
                "Ask for less at a time."
            )
    return kept
