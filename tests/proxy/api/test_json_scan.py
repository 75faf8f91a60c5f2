"""A body's look before it is decoded, against Python's own reading of the same bytes."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.api import half_pairs, json_scan
from proxy.api.call import Body, JSONContent, _json_content
from proxy.api.json_scan import Scan, count_items, outside_strings
from proxy.api.route_table import Route
from proxy.api.turns import at_once
from proxy.errors import InvalidRequest
from proxy.memory import Memory

pytestmark = pytest.mark.slow

ROUTE = Route("POST", "/v1/x")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH, MAX_NAMES = 4, 3
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
TEXTS = st.text(st.sampled_from('ax"\\/{}[]:,\né\u2028🙂\ud83d\udc00 '), max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
BODIES = st.builds(
    lambda value, ascii, indent: json.dumps(value, ensure_ascii=ascii, indent=indent).encode(
        errors="surrogatepass" if ascii else "replace"
    ),
    st.dictionaries(TEXTS, VALUES, max_size=MAX_NAMES + 1),
    st.booleans(),
    st.none() | st.integers(0, 1),
)
SCRAPS = st.sampled_from(
    [b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b" ", b"0", b"-", b"1e999", b"e", b".", b"t",
     b"null", b"NaN", b"\xff", b"\x00", b"\\ud83d", b"\\ude42", b"\\u", BYTE_ORDER_MARK, b'"":0,']
)  # fmt: skip


@contextmanager
def limits(*, slice_bytes: int) -> Iterator[None]:
    """Slices and limits so small that small bodies reach them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "SLICE_BYTES", slice_bytes)
        patch.setattr(half_pairs, "SLICE_BYTES", slice_bytes)
        patch.setattr(json_scan, "MAX_DEPTH", MAX_DEPTH)
        patch.setattr(json_scan, "MAX_NAMES", MAX_NAMES)
        yield


def depth(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case list():
            return 1 + max(map(depth, value), default=0)
    return 0


def pythons(raw: bytes) -> Any:
    """What Python reads of strict JSON, with objects as lists of pairs under a mark."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = raw.removeprefix(BYTE_ORDER_MARK).decode()
    return json.loads(text, parse_constant=refuse, object_pairs_hook=lambda pairs: ("{}", pairs))


@given(body=BODIES, slice_bytes=st.integers(1, 40))
@settings(max_examples=40)
def test_depth_and_names_of_a_valid_body_are_counted_right(body: bytes, slice_bytes: int) -> None:
    value = json.loads(body)
    with limits(slice_bytes=slice_bytes):
        is_within = depth(value) <= MAX_DEPTH and len(value) <= MAX_NAMES
        if is_within:
            at_once(Scan(body).slices())
        else:
            with pytest.raises(InvalidRequest, match=r"nested deeper|more than 3 fields"):
                at_once(Scan(body).slices())


@given(body=BODIES, slice_bytes=st.integers(1, 40))
@settings(max_examples=40)
def test_strings_are_cut_out_wherever_a_slice_ends(body: bytes, slice_bytes: int) -> None:
    with limits(slice_bytes=slice_bytes):
        assert b"".join(outside_strings(body)) == STRING.sub(b"", body)


@given(items=st.lists(VALUES, max_size=6), slice_bytes=st.integers(1, 40))
@settings(max_examples=40)
def test_items_of_an_array_are_counted_right(items: list[Any], slice_bytes: int) -> None:
    with limits(slice_bytes=slice_bytes):
        *_, count = count_items(json.dumps(items).encode())
    assert count == sum(isinstance(item, dict | list) for item in items)


@given(
    body=BODIES,
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), SCRAPS), max_size=3),
    slice_bytes=st.integers(1, 40),
    mark=st.sampled_from([b"", BYTE_ORDER_MARK]),
)
@example(b'{"a":0,"\\u0061":1}', [], 1, b"")
@example(b'{"a":01}', [], 3, b"")
@example(b'{"a":"\\ud83d\\ude42\\ud83d"}', [], 7, b"")
@settings(max_examples=100)
def test_a_body_is_read_as_python_reads_it_or_refused(
    body: bytes, edits: list[tuple[int, int, bytes]], slice_bytes: int, mark: bytes
) -> None:
    """What is accepted has the values that Python finds; what is refused, a reason for it."""
    for place, removed, scrap in edits:
        place %= len(body) + 1
        body = body[:place] + scrap + body[place + removed :]
    raw = mark + body
    with limits(slice_bytes=slice_bytes):
        try:
            content: JSONContent | None = at_once(
                _json_content(Body(raw, Memory(10**6).reserve()), ROUTE)
            )
        except InvalidRequest:
            content = None
    if content is None:
        assert has_reason(raw)
        return
    kind, pairs = pythons(raw)
    assert kind == "{}"
    assert [pythons(bytes(value)) for value in content.fields.values()] == [v for _, v in pairs]
    assert list(content.fields) == [shown(name) for name, _ in pairs]


def has_reason(raw: bytes) -> bool:
    """Whether this body should be refused."""
    try:
        read = pythons(raw)
        value = json.loads(raw.removeprefix(BYTE_ORDER_MARK).decode())
    except ValueError:
        return True
    if not isinstance(value, dict):
        return True
    names = [shown(name) for name, _ in read[1]]
    is_large = len(names) > MAX_NAMES or depth(value) > MAX_DEPTH
    is_wrong = not isinstance(value.get("model", ""), str) or "stream" in value
    return is_large or is_wrong or len(set(names)) < len(names) or b"e" in raw.lower()


def shown(name: str) -> str:
    """A field's name as it is read here: without halves of surrogate pairs."""
    return re.sub("[\ud800-\udfff]", "\ufffd", name)
