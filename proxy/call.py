"""What a client asks for: its body, read within bounds, checked for what we rely on, not touched.

We look at `model`, at `stream` and whether there is a prompt; everything else is vLLM's business
and travels as the bytes it came in. A JSON body is not built into objects for that: its top-level
values stay slices of the body (`msgspec.Raw`), so a body of a million messages costs milliseconds.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec
from starlette.requests import Request

from proxy.allowed import Route
from proxy.errors import InvalidRequest, RequestTooLarge, UnsupportedMediaType
from proxy.forms import FormContent, is_form

DISCARDED_BYTES = 64 * 1024 * 1024
"""How much of a body that is too large is still read, so that the client gets to our answer."""
DEEPEST = 100
"""How deep a body may be nested. Deeper ones break the parsers on the way to vLLM."""
MOST_MESSAGES = 100_000

_NO_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[^\[\]{}"]++', re.DOTALL)
_KEY = re.compile(rb'[\s,{]*+("(?:[^"\\]++|\\.)*+")\s*+:\s*+', re.DOTALL)
_NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload.)"
)


T = TypeVar("T")


class Content(Protocol):
    """A body in one of the two forms that are understood."""

    @property
    def content_type(self) -> str:
        """Its media type, as the worker is told."""
        ...

    @property
    def model(self) -> str | None:
        """The model it names."""
        ...

    @property
    def wants_stream(self) -> bool:
        """Does it ask for a stream?"""
        ...

    def naming(self, model: str | None) -> bytes:
        """The body with this model's name in place of its own; with None, without a name."""
        ...


class _Message(msgspec.Struct):
    role: str


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages = msgspec.json.Decoder(list[_Message])


@dataclass(frozen=True, slots=True)
class JSONContent:
    """A JSON object as it was sent, and the slices of it that are its top-level values."""

    raw: bytes
    fields: Mapping[str, msgspec.Raw]
    model: str | None
    wants_stream: bool
    content_type: str = "application/json"

    def naming(self, model: str | None) -> bytes:
        """See Content. All other values keep their bytes."""
        if model == self.model:
            return self.raw
        kept = {name: value for name, value in self.fields.items() if name != "model"}
        return msgspec.json.encode(({"model": model} if model is not None else {}) | kept)


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client, as far as it matters to whoever answers it."""

    request_id: str
    route: Route
    query: str
    """What followed the path, without the question mark."""
    content: Content | None
    """None for a request without a body."""

    @property
    def model(self) -> str | None:
        """The name of the model that was asked for."""
        return self.content.model if self.content else None

    @property
    def wants_stream(self) -> bool:
        """Does the client expect a stream of events?"""
        return self.content.wants_stream if self.content else "stream=true" in self.query

    @property
    def target(self) -> str:
        """The path, with the query if there is one."""
        return f"{self.route.path}?{self.query}" if self.query else self.route.path


async def read_call(request: Request, route: Route, *, max_bytes: int) -> Call:
    """Read a request's body and check it.

    Raises:
        InvalidRequest: with the name of the field that is wrong as its `param`.
        RequestTooLarge: the body is longer than `max_bytes`, as it came or unpacked.
        UnsupportedMediaType: it is packed in a way that we do not read.
        ClientDisconnect: the client left before it was sent.
    """
    request_id: str = request.state.request_id
    if route.method == "GET":
        query = request.scope["query_string"].decode("latin-1")
        return Call(request_id, route, query if query.isprintable() else "", None)
    raw = _unpacked(request, await _read(request, max_bytes), max_bytes)
    content_type = request.headers.get("content-type", "")
    content: Content
    if is_form(content_type):
        content = FormContent(raw, content_type)
    elif raw or route.needs_model:
        content = _json_content(raw, route)
    else:
        return Call(request_id, route, "", None)
    return Call(request_id, route, "", content)


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        elif size > DISCARDED_BYTES:
            break
    if size > max_bytes:
        raise _too_large(max_bytes)
    return b"".join(chunks)


def _unpacked(request: Request, raw: bytes, max_bytes: int) -> bytes:
    """The body as it was before the client's HTTP library packed it; never more than the limit."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return raw
    if encoding not in ("gzip", "x-gzip"):
        raise UnsupportedMediaType("The body's content encoding is neither gzip nor identity.")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(raw, max_bytes + 1)
    except zlib.error:
        raise InvalidRequest("The body of your request is not valid gzip.") from None
    if len(unpacked) > max_bytes:
        raise _too_large(max_bytes)
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest("The body of your request is not valid gzip.")
    return unpacked


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The request body is larger than {max_bytes:,} bytes, the most this service takes."
    )


def _json_content(raw: bytes, route: Route) -> JSONContent:
    try:
        raw.decode()
        fields = _fields.decode(raw)
    except msgspec.ValidationError:
        raise InvalidRequest("The body of your request must be a JSON object.") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(_NOT_JSON) from None
    if _is_too_deep(raw):
        raise InvalidRequest(f"The body of your request is nested deeper than {DEEPEST} levels.")
    if twice := _named_twice(raw, fields):
        raise InvalidRequest(f"The body of your request names '{twice}' twice.", param=twice)
    model = _typed(fields, "model", str, "a non-empty string")
    if model is None and route.needs_model:
        raise InvalidRequest("you must provide a model parameter", param="model")
    if model == "":
        raise _wrong_type("model", "a non-empty string")
    stream = _typed(fields, "stream", bool, "a boolean")
    _check_prompt(fields, route.prompts)
    return JSONContent(raw, fields, model, bool(stream))


def _typed(fields: Mapping[str, msgspec.Raw], name: str, kind: type[T], wanted: str) -> T | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=kind | None)
    except msgspec.ValidationError:
        raise _wrong_type(name, wanted) from None


def _check_prompt(fields: Mapping[str, msgspec.Raw], names: tuple[str, ...]) -> None:
    given = [name for name in names if not _is_null(fields.get(name))]
    if names and not given:
        raise InvalidRequest(f"Missing required parameter: '{names[0]}'.", param=names[0])
    for name in given:
        if name == "messages":
            _check_messages(fields[name])
        elif bytes(memoryview(fields[name])[:1]) not in (b'"', b"["):
            raise _wrong_type(name, "a string or an array")


def _check_messages(value: msgspec.Raw) -> None:
    try:
        messages = _messages.decode(value)
    except msgspec.ValidationError as exc:
        raise _wrong_message(str(exc)) from None
    if not messages:
        raise _wrong_type("messages", "a non-empty array")
    if len(messages) > MOST_MESSAGES:
        raise InvalidRequest(f"More than {MOST_MESSAGES:,} messages.", param="messages")


def _wrong_message(said: str) -> InvalidRequest:
    """The error for what msgspec says of a list of messages: "... - at `$[3].role`"."""
    place = re.search(r"\$(\[\d+\])?(\.role)?`", said)
    index, role = place.groups() if place else (None, None)
    if role is not None or "missing required field" in said:
        return _wrong_type(f"messages{index}.role", "a string")
    if index is not None:
        return _wrong_type(f"messages{index}", "an object")
    return _wrong_type("messages", "a non-empty array")


def _is_null(value: msgspec.Raw | None) -> bool:
    return value is None or bytes(memoryview(value)[:5]) == b"null"


def _is_too_deep(raw: bytes) -> bool:
    if raw.count(b"[") + raw.count(b"{") <= DEEPEST:
        return False
    brackets = _NO_BRACKETS.sub(b"", raw)
    for _ in range(DEEPEST):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return False
    return True


def _named_twice(raw: bytes, fields: Mapping[str, msgspec.Raw]) -> str | None:
    """A top-level name that stands twice in a JSON object, where parsers may disagree.

    Walks from each name over its value to the next. The value on hand is that of a name's last
    place, so at the first of two the walk gets lost, or comes to the second.
    """
    position, seen, name = 0, set[str](), ""
    while len(seen) < len(fields):
        if found := _KEY.match(raw, position):
            name = msgspec.json.decode(found[1])
        if found is None or name in seen or name not in fields:
            return name or next(iter(fields))
        seen.add(name)
        position = found.end() + len(memoryview(fields[name]))
    return None if not fields or raw[position:].strip() == b"}" else name


def _wrong_type(name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{name}': expected {wanted}.", param=name)
