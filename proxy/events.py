"""Server-Sent Events as bytes: cut anywhere when they arrive, whole when they are passed on."""


class WholeEvents:
    """Holds back the beginning of an event until its end has come.

    `ends` says what the last event of a stream begins with.
    """

    def __init__(self, ends: tuple[bytes, ...]) -> None:
        self.have_ended = False
        """Has the last event come?"""
        self._ends = ends
        self._partial = b""

    def take(self, piece: bytes) -> bytes:
        """All events that are whole by now."""
        text = self._partial + piece
        end = end_of_last_event(text)
        whole, self._partial = text[:end], text[end:]
        self.have_ended = self.have_ended or split_end(whole, self._ends)[1] != b""
        return whole


def split_end(whole: bytes, ends: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Whole events, and apart from them the last event of the stream, if it is among them."""
    start = end_of_last_event(whole.rstrip())
    if whole.startswith(ends, start):
        return whole[:start], whole[start:]
    return whole, b""


def end_of_last_event(text: bytes) -> int:
    """Where the last whole event ends; 0 if there is none."""
    return max(_after(text.rfind(mark), mark) for mark in (b"\n\n", b"\r\n\r\n"))


def _after(position: int, mark: bytes) -> int:
    return position + len(mark) if position >= 0 else 0
