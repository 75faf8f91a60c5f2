"""What a client asks for: its body, checked for what we rely on, and not touched.

We look at `model`, at `stream` and whether there is a prompt; everything else is vLLM's business
and travels as the bytes it came in. A JSON body is not built into objects for that: its top-level
values stay slices of the body (`msgspec.Raw`), so a body of a million messages costs milliseconds.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import msgspec

from proxy.api.answer import NO_COURSE, Course
from proxy.api.forms import FormContent, is_form
from proxy.api.half_pairs import without_halves
from proxy.api.json_scan import Scan, count_items, finds_too_large_a_number, needs_no_scan
from proxy.api.route_table import Route
from proxy.api.turns import Steps, Turns, at_once
from proxy.errors import InvalidRequest, UnsupportedMediaType
from proxy.memory import Reservation

MAX_MESSAGES = 100_000
MAX_NAME_LENGTH = 1_000
"""Of a top-level field, and of a model."""
MAX_CONTENT_TYPE_BYTES = 256
COPIES = 2
"""Each byte of a body counts as two: as it came, and in the job that is made of it."""
MAX_SMALL_BYTES = 128 * 1024
"""Of a body that is checked in one go, which takes 12 ms at most."""
MAX_GLANCE_BYTES = 16 * 1024
"""Of a body that may need no scan; in longer ones a scan costs no more than to see that."""

_KEY = re.compile(rb'[\s,{]*+("(?:[^"\\]++|\\.)*+")\s*+:\s*+', re.DOTALL)
_JSON_TYPE = re.compile(r"(?i)\s*application/(?:[\w!#$&^.-]+\+)?json\s*(?:;|$)")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The API expects a JSON payload.)"
)


T = TypeVar("T")


@dataclass(slots=True)
class Body:
    """A body's bytes, and what they hold of the memory for all; both go when it is dropped."""

    raw: bytes
    reservation: Reservation


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
        """Whether it asks for a stream."""
        ...

    def naming(self, model: str | None) -> bytes:
        """The body with this model's name in place of its own; with None, without a name."""
        ...


class _Message(msgspec.Struct, gc=False):
    role: str


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages = msgspec.json.Decoder(list[_Message])


@dataclass(frozen=True, slots=True)
class JSONContent:
    """A JSON object as it was sent, and the slices of it that are its top-level values."""

    raw: bytes
    fields: Mapping[str, msgspec.Raw]
    """As they were sent."""
    readable: Mapping[str, msgspec.Raw]
    """The same as msgspec can read them: `proxy.api.half_pairs` stands in for half pairs."""
    model: str | None
    wants_stream: bool
    content_type: str = "application/json"
    reservation: Reservation | None = None
    """What it holds of the memory for all."""

    def naming(self, model: str | None) -> bytes:
        """The body with another model's name; all other values keep their bytes."""
        if model == self.model:
            return self.raw
        kept = {name: value for name, value in self.fields.items() if name != "model"}
        return msgspec.json.encode(({"model": model} if model is not None else {}) | kept)


@dataclass(frozen=True, slots=True)
class SentContent:
    """The Content that is kept of a body which was handed on."""

    content_type: str
    model: str | None
    wants_stream: bool

    def naming(self, model: str | None) -> bytes:
        """There is nothing left to be named."""
        raise AssertionError("the body was handed on")


@dataclass(frozen=True, slots=True)
class Work:
    """What was done for a call: one job, or one exchange with a server by HTTP."""

    endpoint: str
    """The name of its table, or the host of a server that is none of RunPod's."""
    seconds: float = 0.0
    """For how long a worker had it, as seen from here."""
    price_per_second: float = 0.0
    """In dollars; 0 where it is not known."""
    id: str = ""
    """What it is known by at its endpoint: its job's id, or one of its own."""
    job_id: str = ""
    course: Course = NO_COURSE
    ended_course: Callable[[], Awaitable[Course | None]] | None = None
    """Asks RunPod how it went: None as long as it has not ended. Raises ProxyError, JobNotFound."""

    @property
    def dollars(self) -> float:
        """What the seconds cost, as they are estimated."""
        return self.seconds * self.price_per_second


OnSpent = Callable[[Work], None]


def spends_unwatched(work: Work) -> None:
    """Nobody keeps account of it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client, as far as it matters to whoever answers it."""

    request_id: str
    route: Route
    query: str
    """What followed the path, without the question mark."""
    content: Content | None
    """None for a request without a body."""
    on_spent: OnSpent = spends_unwatched
    """Called once for each piece of work that is made of it, when that is let go of."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that the model's server is sent, by their names in lower case."""

    @property
    def model(self) -> str | None:
        """The name of the model that was asked for."""
        return self.content.model if self.content else None

    @property
    def wants_stream(self) -> bool:
        """Whether the client expects a stream of events."""
        wants = self.content.wants_stream if self.content else "stream=true" in self.query
        return wants and self.route.may_stream

    def without_body(self) -> "Call":
        """The call for those who need no more of its body, so that they do not keep it."""
        if (content := self.content) is None:
            return self
        sent = SentContent(content.content_type, content.model, content.wants_stream)
        return replace(self, content=sent)

    @property
    def target(self) -> str:
        """The path, with the query if there is one."""
        return f"{self.route.path}?{self.query}" if self.query else self.route.path


async def parse_content(
    body: Body, content_type: str, route: Route, turns: Turns
) -> Content | None:
    """A body, checked for what we rely on; None if there is none.

    Raises:
        InvalidRequest: with the name of the field that is wrong as its `param`.
        UnsupportedMediaType: it is neither JSON nor a form that this route takes.
    """
    content = await _content(body, content_type, route, turns)
    if content is not None and len(content.model or "") > MAX_NAME_LENGTH:
        raise InvalidRequest(
            f"The model's name is longer than {MAX_NAME_LENGTH:,} characters.", param="model"
        )
    return content


async def _content(body: Body, content_type: str, route: Route, turns: Turns) -> Content | None:
    if len(content_type) > MAX_CONTENT_TYPE_BYTES:
        raise UnsupportedMediaType(
            f"The content type is longer than {MAX_CONTENT_TYPE_BYTES} characters."
        )
    if is_form(content_type) and route.takes_form:
        return FormContent(body.raw, content_type, body.reservation)
    if not body.raw and not route.needs_model:
        return None
    if body.raw and _JSON_TYPE.match(content_type) is None:
        wanted = "application/json" + " or multipart/form-data" * route.takes_form
        raise UnsupportedMediaType(
            f"The content type of the body must be {wanted}, and not '{content_type}'. "
            "(HINT: with curl, add -H 'Content-Type: application/json'.)"
        )
    steps = _json_content(body, route)
    return at_once(steps) if len(body.raw) <= MAX_SMALL_BYTES else await turns.run(steps)


def _json_content(body: Body, route: Route) -> Steps[JSONContent]:
    raw = body.raw.removeprefix(_BYTE_ORDER_MARK)  # RFC 8259, 8.1
    text = yield from without_halves(raw)
    if text is not raw:
        body.reservation.grow(len(text))
    readable = yield from _fields_of(text)
    model = _typed(readable, "model", str, "a non-empty string")
    if model is None and route.needs_model:
        raise InvalidRequest("you must provide a model parameter", param="model")
    if model == "":
        raise _wrong_type("model", "a non-empty string")
    stream = _typed(readable, "stream", bool, "a boolean")
    yield from _check_prompt(readable, route.prompts)
    fields = readable if text is raw else _cut(raw, text, readable)
    return JSONContent(raw, fields, readable, model, bool(stream), reservation=body.reservation)


def _fields_of(raw: bytes) -> Steps[Mapping[str, msgspec.Raw]]:
    """The top-level values of a JSON object, once it is known that they can be had quickly."""
    scan = Scan(raw)
    if len(raw) > MAX_GLANCE_BYTES or not needs_no_scan(raw):
        yield from scan.slices()
    try:
        if not raw.isascii():
            raw.decode()
            yield
        fields = _fields.decode(raw)
        yield
    except msgspec.ValidationError:
        raise InvalidRequest("The body of your request must be a JSON object.") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(_NOT_JSON) from None
    if any(len(name) > MAX_NAME_LENGTH for name in fields):
        raise InvalidRequest(f"A field's name is longer than {MAX_NAME_LENGTH:,} characters.")
    if twice := _named_twice(raw, fields):
        raise InvalidRequest(f"The body of your request names '{twice}' twice.", param=twice)
    if scan.has_odd_numbers:
        yield from _check_numbers(fields)
    return fields


def _check_numbers(fields: Mapping[str, msgspec.Raw]) -> Steps[None]:
    for name, value in fields.items():
        for is_found in finds_too_large_a_number(bytes(value)):
            if is_found:
                raise InvalidRequest(
                    f"Invalid value for '{name}': it holds a number that is too large.", param=name
                )
            yield


def _typed(fields: Mapping[str, msgspec.Raw], name: str, kind: type[T], wanted: str) -> T | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=kind | None)
    except msgspec.ValidationError:
        raise _wrong_type(name, wanted) from None


def _check_prompt(fields: Mapping[str, msgspec.Raw], names: tuple[str, ...]) -> Steps[None]:
    given = [name for name in names if not _is_null(fields.get(name))]
    if names and not given:
        raise InvalidRequest(f"Missing required parameter: '{names[0]}'.", param=names[0])
    for name in given:
        if name == "messages":
            yield from _check_messages(fields[name])
        elif bytes(memoryview(fields[name])[:1]) not in (b'"', b"["):
            raise _wrong_type(name, "a string or an array")


def _check_messages(value: msgspec.Raw) -> Steps[None]:
    raw = bytes(value)
    if raw.count(b"{") > MAX_MESSAGES:
        for count in count_items(raw):
            if count > MAX_MESSAGES:
                raise InvalidRequest(f"More than {MAX_MESSAGES:,} messages.", param="messages")
            yield
    try:
        messages = _messages.decode(raw)
        yield
    except msgspec.ValidationError as exc:
        raise _wrong_message(str(exc)) from None
    if not messages:
        raise _wrong_type("messages", "a non-empty array")


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


def _cut(raw: bytes, text: bytes, readable: Mapping[str, msgspec.Raw]) -> Mapping[str, msgspec.Raw]:
    """The values as they were sent, which are in the same places as those of the text."""
    position = 0
    fields: dict[str, msgspec.Raw] = {}
    while len(fields) < len(readable):
        found = _KEY.match(text, position)
        assert found is not None, "the walk of _named_twice is the same"
        name = msgspec.json.decode(found[1])
        position = found.end() + len(memoryview(readable[name]))
        fields[name] = msgspec.Raw(memoryview(raw)[found.end() : position])
    return fields


def _wrong_type(name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{name}': expected {wanted}.", param=name)
