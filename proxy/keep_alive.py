"""What a stream sends while it has nothing to say, so that nobody on the way gives up on it.

`comment` is a line that every client skips. Some clients and proxies count only events as signs of
life; for them `chunk` sends one that means nothing, where the route's clients know such a thing.
`off` sends nothing.
"""

import re
from typing import Literal, Protocol

from proxy.dialects import Dialect, StreamContext
from proxy.endpoint import JobStatus

Mode = Literal["comment", "chunk", "off"]

_ID = re.compile(rb'"id": ?("[\x21-\x7e]{1,255}?")')


class KeepAlive(Protocol):
    """What is sent while nothing comes, and what becomes of what comes after it."""

    def event(self, status: JobStatus) -> bytes:
        """A sign of life, given the job's state; empty bytes are not sent."""
        ...

    def passing(self, piece: bytes) -> bytes:
        """A piece of the answer, as it is to be sent."""
        ...


def keep_alive(mode: Mode, dialect: Dialect, context: StreamContext) -> KeepAlive:
    """How a stream of this mode is kept alive."""
    if mode == "off":
        return _Silence()
    if mode == "chunk" and dialect.keep_alive_event is not None:
        return _Chunks(dialect, context) if dialect.chunk_prefix else _Events(dialect, context)
    return _Comments()


class _Silence:
    def event(self, status: JobStatus) -> bytes:
        return b""

    def passing(self, piece: bytes) -> bytes:
        return piece


class _Comments(_Silence):
    def event(self, status: JobStatus) -> bytes:
        # One word for one look at the network tab: is a worker missing, or is it at work?
        return b": queued\n\n" if status is JobStatus.IN_QUEUE else b": running\n\n"


class _Events(_Silence):
    def __init__(self, dialect: Dialect, context: StreamContext) -> None:
        assert dialect.keep_alive_event is not None
        self._make = dialect.keep_alive_event
        self._context = context

    def event(self, status: JobStatus) -> bytes:
        return self._make(self._context)


class _Chunks(_Events):
    """Empty chunks, with the id that vLLM's chunks will have: it makes it of the request's.

    Servers that do not are known by their first chunk. If an empty one has gone out by then, theirs
    are given its id.
    """

    def __init__(self, dialect: Dialect, context: StreamContext) -> None:
        super().__init__(dialect, context)
        context.chunk_id = dialect.chunk_prefix + context.request_id
        self._was_sent = False
        self._is_id_known = False
        self._renamed: tuple[bytes, bytes] | None = None

    def event(self, status: JobStatus) -> bytes:
        self._was_sent = True
        return super().event(status)

    def passing(self, piece: bytes) -> bytes:
        if not self._is_id_known and (found := _ID.search(piece)):
            self._is_id_known = True
            theirs, ours = found[1], b'"%s"' % self._context.chunk_id.encode()
            if not self._was_sent:
                self._context.chunk_id = theirs[1:-1].decode()
            elif theirs != ours:
                self._renamed = (theirs, ours)
        return piece.replace(*self._renamed) if self._renamed else piece
