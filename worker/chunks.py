"""Bytes in, pieces out: whole server-sent events, or parts of a body below a size limit.

vLLM's bytes arrive cut anywhere. What goes into one output of a job must never end inside a
character, and should end where an event ends. The concatenation of all pieces is the input, byte
for byte; nothing is parsed.
"""

from typing import Final

PIECE_BYTES: Final = 360_000
"""The most bytes in one piece.

RunPod splits a stream output above 1 MB in a way that is not documented. JSON escapes can double a
text, and base64 adds a third, so 360,000 bytes stay below 720,000 on the wire in either form.
"""

_EVENT_ENDS: Final = (b"\n\n", b"\n\r\n", b"\r\r")
"""Two line ends in a row end an event; the second is the tail of LF LF and of CR LF CR LF."""


class Chunks:
    """Holds what has arrived of one body and gives it out in pieces.

    `events` says whether the body is an event stream, to be cut where events end, or a body to be
    kept together until it is complete or the limit is reached.
    """

    def __init__(self, *, events: bool, limit: int = PIECE_BYTES) -> None:
        self._events = events
        self._limit = limit
        self._held = bytearray()

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._held)

    @property
    def is_full(self) -> bool:
        """Whether there is more than one piece can carry."""
        return len(self._held) > self._limit

    def feed(self, data: bytes) -> None:
        """Take bytes in the order they came."""
        self._held += data

    def take(self, *, ended: bool) -> bytes:
        """The next piece, or nothing as long as there is no whole one.

        With `ended`, what is left counts as whole.
        """
        size = _end_of_last_event(self._held, self._limit) if self._events else 0
        if not size and self.is_full:
            size = _end_of_last_character(self._held, self._limit)
        if not size and ended:
            size = len(self._held)
        piece = bytes(self._held[:size])
        del self._held[:size]
        return piece

    def give_back(self, piece: bytes) -> None:
        """Hold a piece again that was just taken."""
        self._held[:0] = piece


def ends_event(piece: bytes) -> bool:
    """Whether this piece ends where an event ends."""
    return piece.endswith(_EVENT_ENDS)


def _end_of_last_event(held: bytearray, limit: int) -> int:
    return max(_after(held.rfind(mark, 0, limit), mark) for mark in _EVENT_ENDS)


def _after(position: int, mark: bytes) -> int:
    return position + len(mark) if position >= 0 else 0


def _end_of_last_character(held: bytearray, limit: int) -> int:
    """The last place at or before `limit` that is not inside a UTF-8 character."""
    for size in range(limit, max(limit - 4, 0), -1):
        if held[size] & 0xC0 != 0x80:
            return size
    return limit  # four continuation bytes in a row: this is no UTF-8, so cut anywhere
