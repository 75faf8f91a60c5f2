"""The two forms of a job's outputs: numbered frames for our proxy, bare ones for anybody else.

Frames are protocol 1: `{"seq": 0, "status": 200, "content_type": ..., "text": ...}`, then data,
then `"end": true`; `docs/worker.md` has the whole of it. Bare outputs are those of RunPod's
official worker: server-sent events as text, or one parsed object.

The SDK fails a job as soon as an output has a truthy `error`, with `str()` of it as the reason.
So no frame has that key, and where a job must fail, the value is JSON text already.
"""

import base64
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

from worker.answer import Answer
from worker.chunks import ends_event
from worker.errors import ModelStartFailed, SealRefused, WorkerError
from worker.job_input import JSON
from worker.sealing import Seal
from worker.server import ServedModel
from worker.stream_errors import error_events

Output = dict[str, Any] | list[Any] | str


class Outputs(Protocol):
    """Turns the pieces of one answer into the outputs of one job."""

    def add(self, answer: Answer, piece: bytes) -> list[Output]:
        """The outputs that this piece brings about."""
        ...

    def fail(self, error: WorkerError) -> list[Output]:
        """The outputs that end the job when the answer will not be complete."""
        ...


class FramedOutputs:
    """Protocol 1: one frame for each piece, numbered without holes.

    `run` is the same on all frames of one run of the job and on no others: RunPod gives the job
    of a worker that died to another one, whose frames count from 0 again. The head tells which
    models there are, so that the proxy can list them without asking, for how long the worker has
    had the job, which RunPod tells nobody who waits for outputs, and where its direct channel is,
    if the job asked for one. All of it is sealed if the job was (protocol 2).
    """

    def __init__(
        self,
        run: str,
        models: Sequence[ServedModel] = (),
        channel: dict[str, Any] | None = None,
        seal: Seal | None = None,
    ) -> None:
        self._began = time.monotonic()
        self._run = run
        self._models = models
        self._channel = channel
        self._seal = seal
        self._seq = 0
        self._stream = _StreamEnd()

    def add(self, answer: Answer, piece: bytes) -> list[Output]:
        """One frame; the first carries the head, the last says so."""
        is_first = self._seq == 0
        frame = self._next_frame(answer.status, answer.content_type)
        if is_first and answer.headers:
            frame["headers"] = answer.headers
        if piece:
            frame |= _data(piece)
        if answer.is_complete:
            frame["end"] = True
        self._stream.note(answer, piece)
        return [self._sealed(frame)]

    def fail(self, error: WorkerError) -> list[Output]:
        """An answer of its own, or an error event, or, inside a plain body, a failed job."""
        if self._seq > 0 and self._stream.route is None:
            return [{"error": error.body()}]
        frame = self._next_frame(error.status, JSON)
        if isinstance(error, ModelStartFailed):
            frame["start_failed"] = error.cause
        if isinstance(error, SealRefused):
            frame["seal_refused"] = error.reason
        in_stream = self._stream.route is not None
        frame["text"] = self._stream.error(error) if in_stream else error.body()
        frame["end"] = True
        return [self._sealed(frame)]

    def _sealed(self, frame: dict[str, Any]) -> dict[str, Any]:
        return frame if self._seal is None else self._seal.frame(frame)

    def _next_frame(self, status: int, content_type: str) -> dict[str, Any]:
        frame: dict[str, Any] = {"seq": self._seq, "run": self._run}
        if self._seq == 0:
            frame |= {"status": status, "content_type": content_type}
            frame["seconds"] = round(time.monotonic() - self._began, 3)
            if self._models:
                frame["models"] = self._models
            if self._channel is not None:
                frame["channel"] = self._channel
        self._seq += 1
        return frame


class BareOutputs:
    """What RunPod's official worker yields."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._stream = _StreamEnd()

    def add(self, answer: Answer, piece: bytes) -> list[Output]:
        """The piece as text if it is a stream's, else the whole body when it is complete."""
        if answer.is_event_stream:
            self._stream.note(answer, piece)
            return [piece.decode(errors="replace")] if piece else []
        self._body += piece
        if not answer.is_complete:
            return []
        return [
            _failure(self._body, answer.status) if answer.status >= 400 else _parsed(self._body)
        ]

    def fail(self, error: WorkerError) -> list[Output]:
        """An error event inside a stream, else a failed job."""
        if self._stream.route is not None:
            return [self._stream.error(error)]
        # The type that the official image gives to a failed start.
        kind = "startup_error" if isinstance(error, ModelStartFailed) else None
        return [{"error": error.body(kind)}]


def _data(piece: bytes) -> dict[str, Any]:
    try:
        return {"text": piece.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(piece).decode()}


class _StreamEnd:
    """What is needed of a stream to end it with an error: its route, first and last piece."""

    def __init__(self) -> None:
        self.route: str | None = None
        self._first = self._last = b""

    def note(self, answer: Answer, piece: bytes) -> None:
        """This piece of the answer goes out."""
        self.route = answer.route if answer.is_event_stream else None
        self._first = self._first or piece
        self._last = piece or self._last

    def error(self, error: WorkerError) -> str:
        """The events that end it, on a line of their own."""
        assert self.route is not None
        gap = "" if not self._last or ends_event(self._last) else "\n\n"
        return gap + error_events(self.route, error, self._first, self._last)


def _parsed(body: bytes | bytearray) -> Output:
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    if isinstance(value, dict):
        # An answer that went well may still have an `error` (the responses route does).
        return body.decode() if value.get("error") else value
    return value if isinstance(value, list) else body.decode()


def _failure(body: bytes | bytearray, status: int) -> Output:
    """What makes the SDK fail the job with vLLM's error as JSON text."""
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if not (isinstance(said, dict) and isinstance(said.get("error"), dict)):
        message = text.strip() or f"vLLM answered with status {status} and no body."
        facts = {"message": message, "type": "server_error", "param": None, "code": status}
        text = json.dumps({"error": facts})
    return {"error": text}
