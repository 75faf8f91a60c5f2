"""A multipart form, as an audio upload arrives: three of its parts are looked at, none is copied.

`model` and `stream` are what a JSON body's fields of the same names are. The rest, the file above
all, travels as the bytes it came in (RFC 7578).
"""

import re
from email.message import Message

from proxy.errors import InvalidRequest

MOST_PARTS = 100
_NAME = re.compile(rb'(?i)content-disposition:[^\r\n]*;\s*name="?([^";\r\n]+)"?')


def is_form(content_type: str) -> bool:
    """Is this the content type of a multipart form?"""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


class FormContent:
    """A form; see `call.Content`.

    Raises:
        InvalidRequest: it is not a multipart form, or names a field twice that we look at.
    """

    def __init__(self, raw: bytes, content_type: str) -> None:
        self.content_type = content_type
        self._mark = b"--" + _boundary(content_type)
        self._parts = _split(raw, self._mark)
        self._raw = raw
        self.model = self._text("model")
        self.wants_stream = self._text("stream") in ("true", "True", "1")

    def naming(self, model: str | None) -> bytes:
        """The form with another model's name, or without one."""
        if model == self.model:
            return self._raw
        parts = [part for part in self._parts if _name(part) != b"model"]
        if model is not None:
            parts.append(
                b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % model.encode()
            )
        return b"".join(self._mark + part for part in parts) + self._mark + b"--\r\n"

    def _text(self, name: str) -> str | None:
        values = [part for part in self._parts if _name(part) == name.encode()]
        if not values:
            return None
        if len(values) > 1:
            raise InvalidRequest(f"The form has more than one '{name}'.", param=name)
        try:
            return values[0].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n").decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"'{name}' is not a text.", param=name) from None


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise InvalidRequest("The form's content type names no boundary.")
    return boundary.encode()


def _split(raw: bytes, mark: bytes) -> list[bytes]:
    """What stands between the marks: each part with its headers and the line ends around it."""
    preamble, *parts = raw.split(mark, MOST_PARTS + 2)
    if not parts or not parts[-1].startswith(b"--") or (preamble and not preamble.endswith(b"\n")):
        raise InvalidRequest("The body of your request is not a complete multipart form.")
    if len(parts) > MOST_PARTS:
        raise InvalidRequest(f"The form has more than {MOST_PARTS} parts.")
    for part in parts[:-1]:
        is_whole = part.startswith(b"\r\n") and part.endswith(b"\r\n") and b"\r\n\r\n" in part
        if not is_whole or _name(part) is None:
            raise InvalidRequest("The body of your request is not a complete multipart form.")
    return parts[:-1]


def _name(part: bytes) -> bytes | None:
    found = _NAME.search(part.partition(b"\r\n\r\n")[0])
    return found[1] if found else None
