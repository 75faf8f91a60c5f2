"""Server-Sent Events as bytes: cut anywhere when they arrive, whole when they are passed on.

Read as the standard says (https://html.spec.whatwg.org/multipage/server-sent-events.html): a line
ends with LF, CRLF or CR, the blank after a field's colon may be missing, fields come in any order,
and a byte order mark may come first. Passed on, lines end with LF.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from proxy.errors import WorkerFailed

DONE: Final = b"[DONE]"
"""The data of the last event, where OpenAI's API has one of its own."""
MAX_EVENT_BYTES: Final = 16 * 2**20
"""An answer may be without end, an event not: it has to be held until it is whole."""
MAX_CHOICES: Final = 16_384
"""How many choices are told apart (vLLM 0.32: `VLLM_MAX_N_SEQUENCES`); all beyond count as one."""

_BOM: Final = b"\xef\xbb\xbf"


class WholeEvents:
    """Holds back the beginning of an event until its end has come."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._has_begun = False
        self._ends_with_cr = False

    @property
    def held_bytes(self) -> int:
        """How much is held back."""
        return len(self._partial)

    def take(self, piece: bytes) -> bytes:
        """All events that are whole by now; raises WorkerFailed if one gets too large."""
        piece = self._with_lf(piece)
        if not self._partial and piece.endswith(b"\n\n"):
            return self._begun(piece)
        searched = max(0, len(self._partial) - 1)
        self._partial += piece
        end = self._partial.rfind(b"\n\n", searched) + 2
        if end < 2:
            if len(self._partial) > MAX_EVENT_BYTES:
                raise WorkerFailed("The worker's answer has an event that is too large.")
            return b""
        whole = bytes(self._partial[:end])
        del self._partial[:end]
        return self._begun(whole)

    def rest(self) -> bytes:
        """What is left when the stream is over, if only the blank line behind it is missing."""
        rest = bytes(self._partial).rstrip(b"\n") + b"\n\n"
        self._partial.clear()
        return self._begun(rest) if _is_whole(rest) else b""

    def flush(self) -> bytes:
        """What is left, whatever it is."""
        left = bytes(self._partial)
        self._partial.clear()
        return left

    def _with_lf(self, piece: bytes) -> bytes:
        if self._ends_with_cr and piece:
            self._ends_with_cr = False
            piece = piece.removeprefix(b"\n")
        if b"\r" in piece:
            self._ends_with_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return piece

    def _begun(self, whole: bytes) -> bytes:
        if not self._has_begun:
            self._has_begun = True
            return whole.removeprefix(_BOM)
        return whole


class _Choice(msgspec.Struct):
    index: int | None = 0
    finish_reason: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


class _Facts(msgspec.Struct):
    type: Any = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk)
_facts = msgspec.json.Decoder(_Facts)


class Completion:
    """Tells from the events of a stream whether it has come to its end.

    `ends` names its last event: by its data (`[DONE]`), or by its type, which is the event's name
    or stands in its data. An error is a last event everywhere. Servers other than vLLM leave
    `[DONE]` out, so a stream that should have one is complete as well when each choice that was
    begun has a `finish_reason`.
    """

    def __init__(self, ends: tuple[bytes, ...]) -> None:
        self.has_end = False
        """Whether the last event has come."""
        self._ends = ends
        self._counts_choices = DONE in ends
        self._open: set[int | None] = set()
        self._finished: set[int | None] = set()

    @property
    def is_finished(self) -> bool:
        """Whether each choice has a reason for its end."""
        return bool(self._finished) and not self._open

    def note(self, whole: bytes) -> None:
        """Take whole events."""
        if not self.has_end:
            self.has_end = split_end(whole, self._ends)[1] != b""
            if self._counts_choices and not self._is_midway(whole):
                self._note_choices(whole)

    def _is_midway(self, whole: bytes) -> bool:
        """Whether all chunks here are of a choice that is open already, as vLLM and OpenAI write
        them: nearly all are, and then there is nothing to decode.

        Within a JSON string neither name can stand between plain quotes, but as a whole one, which
        is counted as well.
        """
        return (
            0 in self._open
            and whole.count(b'"index"') == whole.count(b'"index":0,')
            and whole.count(b'"finish_reason"') == whole.count(b'"finish_reason":null')
        )

    def _note_choices(self, whole: bytes) -> None:
        for event in events_of(whole):
            try:
                choices = _chunk.decode(fields_of(event)[1]).choices
            except (ValueError, RecursionError):
                continue
            for choice in choices:
                index = choice.index if choice.index in range(MAX_CHOICES) else None
                if choice.finish_reason:  # some servers have an empty one in each chunk
                    self._finished.add(index)
                    self._open.discard(index)
                elif index not in self._finished:
                    self._open.add(index)


def split_end(whole: bytes, ends: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Whole events, and apart from them those from the stream's last event on."""
    for mark in (*ends, b"error"):
        if mark in whole:
            break
    else:
        return whole, b""
    start = 0
    for event in events_of(whole):
        if _is_last(event, ends):
            return whole[:start], whole[start:]
        start += len(event)
    return whole, b""


def events_of(whole: bytes) -> Iterator[bytes]:
    """Whole events one by one."""
    return (event + b"\n\n" for event in whole.split(b"\n\n")[:-1])


def fields_of(event: bytes) -> tuple[bytes, bytes]:
    """An event's name and data; comments and other fields are left out."""
    name, data = b"", []
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, b"\n".join(data)


def _is_last(event: bytes, ends: tuple[bytes, ...]) -> bool:
    name, data = fields_of(event)
    if data.strip() in ends or name in ends or name == b"error":
        return True
    try:
        facts = _facts.decode(data)
    except (ValueError, RecursionError):
        return False
    kind = facts.type.encode() if isinstance(facts.type, str) else b""
    return bool(facts.error) or kind in ends or kind == b"error"


def _is_whole(event: bytes) -> bool:
    """Whether this, of which the end may be missing, is an event of which nothing is missing."""
    data = fields_of(event)[1]
    if data.strip() == DONE:
        return True
    try:
        msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    return True
