"""A multipart form, as an audio upload arrives: its parts are found, and none of them is copied.

`model` and `stream` are what a JSON body's fields of the same names are. The rest, the file above
all, travels as the bytes it came in (RFC 7578).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from proxy.errors import InvalidRequest
from proxy.memory import Reservation

MAX_PARTS = 100
MAX_PART_HEADER_BYTES = 8 * 1024
"""All headers of one part together."""
MAX_BOUNDARY_LENGTH = 70
"""RFC 2046, 5.1.1."""

_PARAMETER = re.compile(rb';\s*+([^\s=;"]++)\s*+=\s*+("(?:[^"\\]++|\\.)*+"|[^;"]*+)\s*+', re.DOTALL)
_QUOTED = re.compile(rb'\\(["\\])')
_INCOMPLETE = "The body of your request is not a complete multipart form."


def is_form(content_type: str) -> bool:
    """Whether this is the content type of a multipart form."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


@dataclass(frozen=True, slots=True)
class _Part:
    """Where a part stands: from the end of the mark before it to the next one."""

    name: bytes
    start: int
    content: int
    end: int


class FormContent:
    """A form, as the `Content` of a call.

    Raises:
        InvalidRequest: it is not a multipart form, or names a field twice that we look at.
    """

    def __init__(
        self, raw: bytes, content_type: str, reservation: Reservation | None = None
    ) -> None:
        self.content_type = content_type
        self.reservation = reservation
        self._mark = b"--" + _boundary(content_type)
        self._parts = list(_parts(raw, self._mark))
        self._raw = raw
        self.model = self._text("model")
        self.wants_stream = self._text("stream") in ("true", "True", "1")

    def naming(self, model: str | None) -> bytes:
        """The form with another model's name, or without one."""
        if model == self.model:
            return self._raw
        raw = memoryview(self._raw)
        parts = [raw[part.start : part.end] for part in self._parts if part.name != b"model"]
        if model is not None:
            header = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
            parts.append(memoryview(b"%b%b\r\n" % (header, model.encode())))
        return b"".join(piece for part in parts for piece in (self._mark, part)) + (
            self._mark + b"--\r\n"
        )

    def parts(self) -> list[memoryview]:
        """Its parts with their headers, without the marks between them."""
        raw = memoryview(self._raw)
        return [raw[part.start : part.end] for part in self._parts]

    def _text(self, name: str) -> str | None:
        values = [part for part in self._parts if part.name == name.encode()]
        if not values:
            return None
        if len(values) > 1:
            raise InvalidRequest(f"The form has more than one '{name}'.", param=name)
        try:
            return self._raw[values[0].content : values[0].end - 2].decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"'{name}' is not a text.", param=name) from None


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if (
        not isinstance(boundary, str)
        or not 0 < len(boundary) <= MAX_BOUNDARY_LENGTH
        or not boundary.isascii()
    ):
        raise InvalidRequest("The form's content type names no boundary.")
    return boundary.encode()


def _parts(raw: bytes, mark: bytes) -> Iterator[_Part]:
    """The parts between the marks."""
    position = raw.find(mark)
    if position < 0 or (position > 0 and raw[position - 1 : position] != b"\n"):
        raise InvalidRequest(_INCOMPLETE)
    for _ in range(MAX_PARTS + 1):
        start = position + len(mark)
        if raw.startswith(b"--", start):
            return
        if (position := raw.find(mark, start)) < 0:
            raise InvalidRequest(_INCOMPLETE)
        yield _part(raw, start, position)
    raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")


def _part(raw: bytes, start: int, end: int) -> _Part:
    """The part between these marks: line end, headers, an empty line, content, line end."""
    header_end = raw.find(b"\r\n\r\n", start, min(end, start + MAX_PART_HEADER_BYTES))
    content = header_end + 4
    if header_end < 0 or not raw.startswith(b"\r\n", start):
        raise InvalidRequest(_INCOMPLETE)
    if content > end - 2 or not raw.startswith(b"\r\n", end - 2):
        raise InvalidRequest(_INCOMPLETE)
    return _Part(_name(raw[start + 2 : header_end]), start, content, end)


def _name(headers: bytes) -> bytes:
    """What a part's headers call it: the parameter of its one Content-Disposition."""
    lines = (line.partition(b":") for line in headers.split(b"\r\n"))
    values = [value for name, _, value in lines if name.lower() == b"content-disposition"]
    if len(values) == 1:
        for parameter, value in _parameters(values[0]):
            if parameter.lower() == b"name":
                return value
    raise InvalidRequest(_INCOMPLETE)


def _parameters(value: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = value.find(b";")
    while position >= 0 and (found := _PARAMETER.match(value, position)):
        text = found[2]
        yield found[1], _QUOTED.sub(rb"\1", text[1:-1]) if text[:1] == b'"' else text.strip()
        position = found.end()
