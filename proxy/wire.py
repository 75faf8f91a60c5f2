"""What a worker puts out, turned into what the client is sent: whole, in order, without gaps.

Three kinds of worker are understood, told apart by the first output:

- Ours, protocol 1: numbered frames (`{"seq": 0, "status": 200, "content_type": ..., "text": ...}`)
  whose numbers have no holes. A frame may get lost on its way (the worker's SDK drops a post that
  fails; /stream hands each output out once), which shows as a hole; it is filled from the
  aggregate that /status gives when the job is done. Every frame names its `run`: RunPod gives the
  job of a worker that died to another one, and what two runs say must not be mixed.
- RunPod's worker-vllm: SSE text in pieces that are cut anywhere, or one parsed object. There is no
  status: an error is an object with an `error`, or the failure of the job.
- The older worker-vllm without RAW_OPENAI_OUTPUT: one parsed object for each chunk.

A reader knows nothing of HTTP or of jobs. `feed` takes outputs as they come and returns the bytes
that may go out now; `complete` takes the aggregate and returns the rest.
"""

import base64
import binascii
import hashlib
import re
import time
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from proxy.errors import VLLMError, WorkerFailed
from proxy.events import end_of_last_event, split_end
from proxy.failure import start_failure

PROTOCOL = 1
SSE = "text/event-stream"
JSON = "application/json"
CHECK_SECONDS = 5.0
"""How long the end of a stream without numbers waits for the job's, so that it can be checked."""

_ID = re.compile(rb'^data: \{"id": ?"([^"]*)"', re.MULTILINE)
"""vLLM puts the id first. It is escaped where it stands in a text, so only ids are found."""


@dataclass(frozen=True, slots=True)
class Head:
    """The status and content type of the worker's answer."""

    status: int
    content_type: str
    models: tuple[dict[str, Any], ...] = ()
    """What the worker serves, if it says so: `id`, and perhaps `max_model_len`."""

    start_failed: str | None = None
    """Which cause, in a word, if the worker answers because its model could not be started."""

    @property
    def is_event_stream(self) -> bool:
        """Is the answer a stream of events that went well?"""
        return self.status < 400 and self.content_type.startswith(SSE)


class Reader(Protocol):
    """Turns outputs into bytes of the answer."""

    head: Head | None
    """Known with the first bytes at the latest."""
    ended: bool
    """Has everything come?"""
    lost: int
    """How many outputs had not come when the job was done."""

    def feed(self, outputs: list[Any]) -> bytes:
        """Take outputs in the order they came, and return what may go to the client now."""
        ...

    def doubt(self) -> None:
        """An answer of /stream was lost, and outputs perhaps with it."""
        ...

    def complete(self, aggregate: Any) -> bytes:
        """Take the whole output of the finished job, and return what had not come yet.

        Raises:
            WorkerFailed: the answer cannot be made whole.
        """
        ...


def reader_for(output: Any, *, wants_stream: bool, ends: tuple[bytes, ...]) -> Reader:
    """The reader for a worker whose first output is `output`.

    `ends` says what the last event of a stream begins with.
    """
    if isinstance(output, dict) and "seq" in output:
        return FrameReader()
    return PieceReader(ends) if wants_stream else ObjectReader()


class FrameReader:
    """Protocol 1: drops what comes twice, holds back what comes after a hole.

    A stream's event that is too large for one frame is held back until it is whole: what the proxy
    itself says, a sign of life or an error, must not land inside it.

    When a second run of the job begins, the reader starts over if nothing of the first was passed
    on; else it raises WorkerFailed, since the second run need not say the same.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.ended = False
        self.lost = 0
        self._run: Any = None
        self._next = 0
        self._held: dict[int, dict[str, Any]] = {}
        self._partial = b""

    def feed(self, outputs: list[Any]) -> bytes:
        """The bytes of all frames up to the first that is missing."""
        for frame in outputs:
            seq = _seq(frame)
            self._check_run(frame.get("run"))
            if seq >= self._next:
                self._held.setdefault(seq, frame)
        parts = []
        while (frame := self._held.pop(self._next, None)) is not None:
            parts.append(self._take(frame))
        return self._whole_events(b"".join(parts))

    def doubt(self) -> None:
        """Nothing to do: the numbers tell what is missing."""

    def complete(self, aggregate: Any) -> bytes:
        """Fill the holes from the aggregate, the list of all frames."""
        here = self._next + len(self._held)
        rest = self.feed(aggregate) if isinstance(aggregate, list) else b""
        self.lost = self._next - here if self.ended else max(1, self._next - here)
        if not self.ended:
            raise WorkerFailed("A part of the worker's answer was lost and could not be recovered.")
        return rest

    def _check_run(self, run: Any) -> None:
        if run == self._run:
            return
        if self._next:
            raise WorkerFailed("The worker died in the middle of its answer.")
        self._run = run
        self._held.clear()

    def _whole_events(self, piece: bytes) -> bytes:
        text = self._partial + piece
        is_stream = self.head is not None and self.head.is_event_stream
        end = end_of_last_event(text) if is_stream and not self.ended else len(text)
        self._partial = text[end:]
        return text[:end]

    def _take(self, frame: dict[str, Any]) -> bytes:
        if self._next == 0:
            self.head = _head(frame)
        self._next += 1
        self.ended = self.ended or bool(frame.get("end"))
        if "base64" in frame:
            return _decoded(frame["base64"])
        text = frame.get("text", "")
        if not isinstance(text, str):
            raise WorkerFailed("The worker put out a frame whose text is no string.")
        return text.encode()


class PieceReader:
    """A stream from a worker without numbers: SSE text cut anywhere, or parsed chunks.

    Nothing tells what is missing until the job is done, when the aggregate must begin with what
    was passed on. So the last event (`[DONE]`, on most routes) is held back for that check, and
    once in doubt everything is. A second run of the job shows by the `id` of its chunks, which is
    another one.
    """

    def __init__(self, ends: tuple[bytes, ...]) -> None:
        self.head: Head | None = None
        self.ended = False
        self.lost = 0
        self._ends = ends
        self._is_in_doubt = False
        self._partial = b""
        self._passed_bytes = 0
        self._passed = hashlib.blake2b()
        self._id: bytes | None = None
        self._end = b"data: [DONE]\n\n"
        self._done_at: float | None = None

    def doubt(self) -> None:
        """Wait for the aggregate."""
        self._is_in_doubt = True

    def feed(self, outputs: list[Any]) -> bytes:
        """All events that are whole by now."""
        if self._done_at is not None and time.monotonic() - self._done_at > CHECK_SECONDS:
            self.ended = True
            return self._end
        if not outputs or self._done_at is not None or self._is_in_doubt:
            return b""
        if self.head is None:
            self.head = Head(200, SSE)
        return self._whole_events(b"".join(map(_piece, outputs)))

    def complete(self, aggregate: Any) -> bytes:
        """The rest of the answer, if what has been passed on is a beginning of the aggregate."""
        raise_for_error(aggregate)
        outputs = aggregate if isinstance(aggregate, list) else []
        if not outputs and self._done_at is not None:
            self.ended = True  # a worker that aggregates nothing; there is nothing to check
            return self._end
        whole = b"".join(map(_piece, outputs))
        beginning = hashlib.blake2b(whole[: self._passed_bytes])
        if beginning.digest() != self._passed.digest():
            raise WorkerFailed("The worker's answer is not the one that it began with.")
        self.head = self.head or Head(200, SSE)
        self._partial = b""
        events = self._whole_events(whole[self._passed_bytes :])
        self.lost = 1 if events else 0
        # Parsed chunks carry no end mark; the end of the job is theirs.
        is_parsed = bool(outputs) and not isinstance(outputs[-1], str)
        if self._done_at is None and not is_parsed:
            raise WorkerFailed("The worker's answer ended before it was complete.")
        self.ended = True
        return events + self._end

    def _whole_events(self, piece: bytes) -> bytes:
        text = self._partial + piece
        end = end_of_last_event(text)
        whole, self._partial = text[:end], text[end:]
        whole, last = split_end(whole, self._ends)
        if last:
            self._done_at = time.monotonic()
            self._end = last
        self._check_ids(whole)
        self._passed_bytes += len(whole)
        self._passed.update(whole)
        return whole

    def _check_ids(self, events: bytes) -> None:
        for found in _ID.findall(events):
            self._id = self._id or found
            if found != self._id:
                raise WorkerFailed("The worker died in the middle of its answer.")


class ObjectReader:
    """A plain answer from a worker without numbers: one parsed object, or text."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.ended = False
        self.lost = 0

    def feed(self, outputs: list[Any]) -> bytes:
        """The object as JSON; there is just one."""
        if not outputs or self.ended:
            return b""
        output = outputs[0]
        raise_for_error(output)
        self.ended = True
        if isinstance(output, str):
            self.head = Head(200, "text/plain; charset=utf-8")
            return output.encode()
        self.head = Head(200, JSON)
        return msgspec.json.encode(output)

    def doubt(self) -> None:
        """Nothing to do: the object is there or it is not."""

    def complete(self, aggregate: Any) -> bytes:
        """The object, if it has not come before."""
        answer = self.feed(aggregate if isinstance(aggregate, list) else [aggregate])
        if not self.ended:
            raise WorkerFailed("The worker finished without an answer.")
        return answer


def raise_for_error(output: Any) -> None:
    """Raise VLLMError if an output is vLLM's error object, in its nested or its flat form.

    The older worker-vllm hands vLLM's ErrorResponse on as an ordinary output. A start that failed
    is ModelStartFailed, in the forms that `failure.py` knows.
    """
    if not isinstance(output, dict):
        return
    if (failure := start_failure(output)) is not None:
        raise failure
    error = output.get("error") if "error" in output else output
    if isinstance(error, dict) and ("error" in output or output.get("object") == "error"):
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code <= 599 else 502
        raise VLLMError(status, msgspec.json.encode({"error": error}))


def _seq(frame: Any) -> int:
    seq = frame.get("seq") if isinstance(frame, dict) else None
    if not isinstance(seq, int) or seq < 0:
        raise WorkerFailed("The worker put out something that is not a numbered frame.")
    return seq


def _head(frame: dict[str, Any]) -> Head:
    match frame:
        case {"status": int(status), "content_type": str(content_type)} if 100 <= status <= 599:
            slug = frame.get("start_failed")
            return Head(
                status,
                content_type,
                _models(frame.get("models")),
                slug if isinstance(slug, str) and slug else None,
            )
    raise WorkerFailed("The worker's first frame has no status and content type.")


def _models(told: Any) -> tuple[dict[str, Any], ...]:
    models = told if isinstance(told, list) else []
    return tuple(m for m in models if isinstance(m, dict) and isinstance(m.get("id"), str))


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as exc:
        raise WorkerFailed("The worker put out a frame whose base64 is broken.") from exc


def _piece(output: Any) -> bytes:
    """One output of a stream as SSE text."""
    if isinstance(output, str):
        return output.encode()
    if isinstance(output, list):
        return b"".join(map(_piece, output))
    raise_for_error(output)
    return b"data: " + msgspec.json.encode(output) + b"\n\n"
