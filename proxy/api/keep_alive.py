"""What a stream sends while it has nothing to say, so that no proxy on the way gives it up.

`comment` is a line that every client skips. Some clients and proxies count only events as signs of
life; for them `chunk` sends one that means nothing, where the route's clients know such a thing.
`off` sends nothing. What is known of a start that is waited for stands in the comment, and where a
setting asks for it in a chat's reasoning, which chat UIs show.
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from proxy.api.dialects import CHAT, Dialect, StreamContext, chat_reasoning

Mode = Literal["comment", "chunk", "off"]

_ID = re.compile(rb'"id": ?("[\x21-\x7e]{1,255}?")')


class KeepAlive(Protocol):
    """What is sent while nothing comes, and what becomes of what comes after it."""

    def event(self, is_waiting: bool) -> bytes:
        """A sign of life, told whether a worker is still waited for; empty bytes are not sent."""
        ...

    def passing(self, piece: bytes) -> bytes:
        """A piece of the answer, as it is to be sent."""
        ...


def keep_alive(
    mode: Mode,
    dialect: Dialect,
    context: StreamContext,
    *,
    waited: Callable[[float], str] = lambda seconds: "",
    notice_fields: Sequence[str] = (),
) -> KeepAlive:
    """How a stream of this mode is kept alive.

    `waited` says what is known of the start that one waits for who has waited so many seconds.
    With `notice_fields` a chat is told so as reasoning, in the delta's fields of these names.
    """
    if mode == "off":
        return _Silence()
    if notice_fields and dialect is CHAT:
        return _Notices(dialect, context, waited, notice_fields)
    if mode == "chunk" and dialect.keep_alive_event is not None:
        return _Chunks(dialect, context) if dialect.chunk_prefix else _Events(dialect, context)
    return _Comments(waited)


class _Silence:
    def event(self, is_waiting: bool) -> bytes:
        return b""

    def passing(self, piece: bytes) -> bytes:
        return piece


class _Comments(_Silence):
    def __init__(self, waited: Callable[[float], str]) -> None:
        self._waited = waited
        self._began = time.monotonic()

    def event(self, is_waiting: bool) -> bytes:
        # One look at the network tab: is a worker missing, or is it at work?
        if not is_waiting:
            return b": running\n\n"
        return b": queued%s\n\n" % self._waited(time.monotonic() - self._began).encode()


class _Events(_Silence):
    def __init__(self, dialect: Dialect, context: StreamContext) -> None:
        assert dialect.keep_alive_event is not None
        self._make = dialect.keep_alive_event
        self._context = context

    def event(self, is_waiting: bool) -> bytes:
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

    def event(self, is_waiting: bool) -> bytes:
        self._was_sent = True
        return super().event(is_waiting)

    def passing(self, piece: bytes) -> bytes:
        if not self._is_id_known and (found := _ID.search(piece)):
            self._is_id_known = True
            theirs, ours = found[1], b'"%s"' % self._context.chunk_id.encode()
            if not self._was_sent:
                self._context.chunk_id = theirs[1:-1].decode()
            elif theirs != ours:
                self._renamed = (theirs, ours)
        return piece.replace(*self._renamed) if self._renamed else piece


class _Notices(_Chunks):
    """Empty chunks, and while a worker is waited for, reasoning that says so."""

    def __init__(
        self,
        dialect: Dialect,
        context: StreamContext,
        waited: Callable[[float], str],
        fields: Sequence[str],
    ) -> None:
        super().__init__(dialect, context)
        self._waited = waited
        self._fields = fields
        self._began = time.monotonic()

    def event(self, is_waiting: bool) -> bytes:
        if not is_waiting:
            return super().event(is_waiting)
        self._was_sent = True
        seconds = time.monotonic() - self._began
        waited = self._waited(seconds) or f" {seconds:.0f} s"
        text = f"Waiting for a worker:{waited}\n"
        return chat_reasoning(self._context, text, self._fields)
