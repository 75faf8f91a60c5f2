"""What a worker puts out, turned into what the client is sent: whole, in order, without gaps.

Three kinds of worker are understood, told apart by the first output:

- Ours, protocol 1: numbered frames (`{"seq": 0, "status": 200, "content_type": ..., "text": ...}`)
  whose numbers have no holes. A frame may get lost on its way (the worker's SDK drops a post that
  fails; /stream hands each output out once), which shows as a hole; it is filled from the
  aggregate that /status gives when the job is done. Every frame names its `run`: RunPod gives the
  job of a worker that died to another one, and what two runs say must not be mixed. An output may
  be a list of frames. One without a number is a summary, of a job whose frames came by a channel.
  Of sealed jobs (protocol 2) each frame is opened when its turn has come.
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
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from proxy.api.answer import JSON, MAX_NAME_CHARS, SSE, Head, checked_head
from proxy.api.sse_framing import DONE, Completion, WholeEvents, split_end
from proxy.backends.runpod.failure import NOT_SEALED, seal_refused, start_failure
from proxy.errors import SealingFailed, VLLMError, WorkerFailed
from proxy.foreign_json import encode

PROTOCOL = 1
MAX_HELD_BYTES: Final = 16 * 2**20
"""What is held of frames behind a hole. The aggregate has them as well."""
FRAME_BYTES: Final = 500
"""About what a frame takes in memory beside what is in it."""
VALUE_BYTES: Final = 64
"""The same for a value."""
CHECK_SECONDS = 5.0
"""How long the end of a stream without numbers waits for the job's, so that it can be checked."""

_ID = re.compile(rb'^data: \{"id": ?"([^"]*)"', re.MULTILINE)
"""vLLM puts the id first. It is escaped where it stands in a text, so only ids are found."""


class Reader(Protocol):
    """Turns outputs into bytes of the answer."""

    head: Head | None
    """Known with the first bytes at the latest."""
    ended: bool
    """Whether everything has come."""
    lost: int
    """How many outputs had not come when the job was done."""
    passed: int
    """The number of the first frame that has not come; 0 where outputs have none."""
    channel: Any
    """What the worker tells of its channel, if it does, once the head is known."""
    worker_seconds: float | None
    """For how long the worker had had the job when it put its head out, if it tells that."""

    @property
    def held_bytes(self) -> int:
        """About how much memory is taken by what has come and cannot go out yet."""
        ...

    def feed(self, outputs: list[Any]) -> bytes:
        """Take outputs in the order they came, and return what may go to the client now."""
        ...

    def distrust_stream(self) -> None:
        """An answer of /stream was lost, and outputs perhaps with it."""
        ...

    def complete(self, aggregate: Any) -> bytes:
        """Take the whole output of the finished job, and return what had not come yet.

        Raises:
            WorkerFailed: the answer cannot be made whole.
        """
        ...


Unseal = Callable[[dict[str, Any]], dict[str, Any]]
"""Opens a frame of a sealed job; raises SealingFailed if it cannot."""


def reader_for(
    output: Any, *, wants_stream: bool, ends: tuple[bytes, ...], unseal: Unseal | None = None
) -> Reader:
    """The reader for a worker whose first output is `output`.

    `ends` names the last event of a stream, as `Completion` looks for it. `unseal` is for a job
    that was sealed: nothing else than sealed frames is an answer to it.
    """
    first = output[0] if isinstance(output, list) and output else output
    if isinstance(first, dict) and ("seq" in first or _is_summary(first)):
        return FrameReader(unseal)
    if unseal is not None:
        raise start_failure(first) or SealingFailed(NOT_SEALED)
    return PieceReader(ends) if wants_stream else ObjectReader()


class FrameReader:
    """Protocol 1: drops what comes twice, holds back what comes after a hole.

    A stream's event that is too large for one frame is held back until it is whole: what the proxy
    itself says, a sign of life or an error, must not land inside it.

    When a second run of the job begins, the reader starts over if nothing of the first was passed
    on; else it raises WorkerFailed, since the second run need not say the same.
    """

    def __init__(self, unseal: Unseal | None = None) -> None:
        self._unseal = unseal
        self.head: Head | None = None
        self.ended = False
        self.lost = 0
        self.passed = 0
        self.channel: Any = None
        self.worker_seconds: float | None = None
        self._run: str | None = None
        self._held: dict[int, dict[str, Any]] = {}
        self._frame_bytes = 0
        """About what the frames behind a hole take in memory."""
        self._events = WholeEvents()

    @property
    def held_bytes(self) -> int:
        """The bytes held back at present."""
        return self._frame_bytes + self._events.held_bytes

    def feed(self, outputs: list[Any]) -> bytes:
        """The bytes of all frames up to the first that is missing."""
        parts = []
        for frame in _frames(outputs):
            if self.ended:
                break
            seq = _seq(frame)
            self._check_run(frame)  # before its number is: another run counts from 0 again
            if seq == self.passed:
                parts.append(self._take(frame))
                parts += self._take_held()
            elif seq > self.passed:
                self._hold(seq, frame)
        return self._whole_events(b"".join(parts))

    def distrust_stream(self) -> None:
        """Nothing to do: the numbers tell what is missing."""

    def complete(self, aggregate: Any) -> bytes:
        """Fill the holes from the aggregate, the list of all frames."""
        run, known = self._run, self.passed + len(self._held)
        rest = self.feed(aggregate) if isinstance(aggregate, list) else b""
        if self._run != run:  # what was held was of a run that is not the answer
            known = 0
        self.lost = max(0 if self.ended else 1, self.passed - known)
        if not self.ended:
            raise WorkerFailed("A part of the worker's answer was lost and could not be recovered.")
        return rest

    def _check_run(self, frame: dict[str, Any]) -> None:
        run = frame.get("run")
        if run is not None and not (isinstance(run, str) and len(run) <= MAX_NAME_CHARS):
            raise WorkerFailed("The worker put out a frame whose run is no name.")
        if run == self._run:
            return
        if self.passed:
            raise WorkerFailed("The worker died in the middle of its answer.")
        self._run = run
        self._drop_held()

    def _hold(self, seq: int, frame: dict[str, Any]) -> None:
        if seq not in self._held:
            self._held[seq] = frame
            self._frame_bytes += frame_bytes(frame)
        if self._frame_bytes > MAX_HELD_BYTES:
            self._drop_held()

    def _drop_held(self) -> None:
        self._held.clear()
        self._frame_bytes = 0

    def _take_held(self) -> Iterator[bytes]:
        while (frame := self._held.pop(self.passed, None)) is not None:
            self._frame_bytes -= frame_bytes(frame)
            yield self._take(frame)

    def _whole_events(self, piece: bytes) -> bytes:
        if self.head is None or not self.head.is_event_stream:
            return piece
        whole = self._events.take(piece)
        return whole + self._events.flush() if self.ended else whole

    def _take(self, frame: dict[str, Any]) -> bytes:
        if self._unseal is not None:
            frame = self._unseal(frame)
        if self.passed == 0:
            if "seal_refused" in frame:
                raise seal_refused(frame["seal_refused"])
            self.head = checked_head(
                frame.get("status"),
                frame.get("content_type"),
                models=frame.get("models"),
                headers=frame.get("headers"),
                start_failed=frame.get("start_failed"),
            )
            self.channel = frame.get("channel")
            self.worker_seconds = _seconds(frame.get("seconds"))
        self.passed += 1
        self.ended = self.ended or bool(frame.get("end"))
        piece = _decoded(frame["base64"]) if "base64" in frame else _encoded(frame.get("text", ""))
        if piece and self.head is not None and not self.head.may_have_body:
            raise WorkerFailed("The worker's answer has a body where its head allows none.")
        return piece


class PieceReader:
    """A stream from a worker without numbers: SSE text cut anywhere, or parsed chunks.

    Nothing tells what is missing until the job is done, when the aggregate must begin with what
    was passed on. So the last event (`[DONE]`, on most routes) is held back for that check, and
    once in doubt everything is. A second run of the job shows by the `id` of its chunks, which is
    another one.
    """

    passed = 0
    channel = None
    worker_seconds: float | None = None

    def __init__(self, ends: tuple[bytes, ...]) -> None:
        self.head: Head | None = None
        self.ended = False
        self.lost = 0
        self._ends = ends
        self._is_in_doubt = False
        self._events = WholeEvents()
        self._passed_bytes = 0
        self._passed = hashlib.blake2b()
        self._id: bytes | None = None
        self._end = b"data: " + DONE + b"\n\n"
        self._done_at: float | None = None

    @property
    def held_bytes(self) -> int:
        """The bytes held back at present."""
        return self._events.held_bytes

    def distrust_stream(self) -> None:
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
        return self._passed_on(self._events.take(b"".join(map(_piece, outputs))))

    def complete(self, aggregate: Any) -> bytes:
        """The rest of the answer, if what has been passed on is a beginning of the aggregate."""
        raise_for_error(aggregate)
        outputs = aggregate if isinstance(aggregate, list) else []
        if not outputs and self._done_at is not None:
            self.ended = True  # a worker that aggregates nothing; there is nothing to check
            return self._end
        events = WholeEvents()
        whole = events.take(b"".join(map(_piece, outputs))) + events.rest()
        beginning = hashlib.blake2b(whole[: self._passed_bytes])
        if beginning.digest() != self._passed.digest():
            raise WorkerFailed("The worker's answer is not the one that it began with.")
        self.head = self.head or Head(200, SSE)
        rest = self._passed_on(whole[self._passed_bytes :])
        self.lost = 1 if rest else 0
        if self._done_at is None and not self._is_complete(whole, outputs):
            raise WorkerFailed("The worker's answer ended before it was complete.")
        self.ended = True
        return rest + self._end

    def _is_complete(self, whole: bytes, outputs: list[Any]) -> bool:
        """Whether an answer without a last event is whole all the same."""
        # Parsed chunks carry no end mark; the end of the job is theirs.
        is_parsed = bool(outputs) and not isinstance(outputs[-1], str)
        completion = Completion(self._ends)
        completion.note(whole)
        return is_parsed or completion.is_finished

    def _passed_on(self, whole: bytes) -> bytes:
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

    held_bytes = 0
    passed = 0
    channel = None
    worker_seconds: float | None = None

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
        if not isinstance(output, str | dict | list):
            raise WorkerFailed("The worker put out something that is no answer.")
        self.ended = True
        if isinstance(output, str):
            self.head = Head(200, "text/plain; charset=utf-8")
            return _encoded(output)
        self.head = Head(200, JSON)
        return _json(output)

    def distrust_stream(self) -> None:
        """Nothing to do: the object is there or it is not."""

    def complete(self, aggregate: Any) -> bytes:
        """The object, if it has not come before."""
        answer = self.feed(aggregate if isinstance(aggregate, list) else [aggregate])
        if not self.ended:
            raise WorkerFailed("The worker finished without an answer.")
        return answer


def frame_bytes(frame: dict[str, Any]) -> int:
    """About how much memory a frame takes, in bytes, whatever a worker has put into it."""
    size = FRAME_BYTES
    values: list[Any] = [frame]
    for value in values:  # which grows meanwhile: no depth is too deep
        if type(value) is str:
            size += len(value)
        elif type(value) is dict:
            size += VALUE_BYTES * len(value)
            values += value
            values += value.values()
        elif type(value) is list:
            size += VALUE_BYTES * len(value)
            values += value
    return size


def raise_for_error(output: Any) -> None:
    """Raise VLLMError if an output is vLLM's error object, in its nested or its flat form.

    The older worker-vllm hands vLLM's ErrorResponse on as an ordinary output. A start that failed
    is ModelStartFailed, in the forms that `start_failure` knows. A text is WorkerFailed, not shown.
    """
    if not isinstance(output, dict):
        return
    if (failure := start_failure(output)) is not None:
        raise failure
    error = output.get("error") if "error" in output else output
    if isinstance(error, dict) and ("error" in output or output.get("object") == "error"):
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code <= 599 else 502
        raise VLLMError(status, _json({"error": error}))
    if "error" in output and isinstance(error, str) and error:  # a handler's own words
        raise WorkerFailed("The worker failed to run the job.")


def _frames(outputs: list[Any]) -> Iterator[Any]:
    """The frames of outputs, of which one may hold several, or a summary in place of any."""
    for output in outputs:
        for frame in output if isinstance(output, list) else (output,):
            if not _is_summary(frame):
                yield frame


def _is_summary(output: Any) -> bool:
    return isinstance(output, dict) and "summary" in output and "seq" not in output


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and value >= 0 else None


def _seq(frame: Any) -> int:
    seq = frame.get("seq") if isinstance(frame, dict) else None
    if type(seq) is not int or seq < 0:
        raise WorkerFailed("The worker put out something that is not a numbered frame.")
    return seq


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as exc:
        raise WorkerFailed("The worker put out a frame whose base64 is broken.") from exc


def _encoded(text: Any) -> bytes:
    try:
        return bytes(text.encode())
    except (AttributeError, UnicodeEncodeError) as exc:
        raise WorkerFailed("The worker put out a text that is none.") from exc


def _json(value: Any) -> bytes:
    try:
        return encode(value)
    except ValueError as exc:
        raise WorkerFailed("The worker put out JSON that cannot be passed on.") from exc


def _piece(output: Any, *, may_be_list: bool = True) -> bytes:
    """One output of a stream as SSE text."""
    match output:
        case str():
            return _encoded(output)
        case dict():
            raise_for_error(output)
            return b"data: " + _json(output) + b"\n\n"
        case list() if may_be_list:
            return b"".join(_piece(part, may_be_list=False) for part in output)
    raise WorkerFailed("The worker put out something that is no part of a stream.")
