"""Server-sent events as the standard has them, cut anywhere, and when a stream of them is over."""

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.api.dialects import CHAT, MESSAGES, OPENAI, RESPONSES, Dialect
from proxy.api.sse_framing import MAX_EVENT_BYTES, Completion, WholeEvents, fields_of, split_end
from proxy.errors import WorkerFailed

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
FIELDS = st.sampled_from([b"data: 1", b"data:2", b"event: x", b"id: 3", b": comment", b"data"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A stream in the line ends of its making, and in LF."""
    events = draw(st.lists(st.lists(FIELDS, min_size=1, max_size=4), min_size=1, max_size=5))
    lines = [line for event in events for line in [*event, b""]]
    raw = b""
    for line in lines:
        end = draw(LINE_ENDS)
        is_crlf = raw.endswith(b"\r") and line + end == b"\n"  # which would be one line end
        raw += line + (b"\r" if is_crlf else end)
    return raw, b"".join(line + b"\n" for line in lines)


@given(stream=streams(), data=st.data())
def test_events_with_any_line_ends_come_out_whole_however_they_are_cut(
    stream: tuple[bytes, bytes], data: st.DataObject
) -> None:
    raw, wanted = stream
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=20)))
    events = WholeEvents()
    out = [events.take(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert b"".join(out) == wanted
    assert all(part.endswith(b"\n\n") for part in out if part)


def test_a_byte_order_mark_before_the_first_event_is_dropped() -> None:
    events = WholeEvents()
    text = b"\xef\xbb\xbfdata: 1\n\ndata: \xef\xbb\xbf\n\n"
    assert b"".join(events.take(text[i : i + 1]) for i in range(len(text))) == text[3:]


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (b"data: 1\nevent: a\n\n", (b"a", b"1")),
        (b"event:a\ndata:1\n\n", (b"a", b"1")),
        (b"id: 7\n: data: 0\ndata: 1\nretry: 5\ndata:\ndata:  2\n\n", (b"", b"1\n\n 2")),
        (b"data\n\n", (b"", b"")),
        (b": only a comment\n\n", (b"", b"")),
        (b"datas: 1\nDATA: 2\n\n", (b"", b"")),
    ],
)
def test_fields_are_read_in_any_order(event: bytes, fields: tuple[bytes, bytes]) -> None:
    assert fields_of(event) == fields


def completed(dialect: Dialect, text: bytes) -> Completion:
    completion = Completion(dialect.ends)
    completion.note(text)
    return completion


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        (CHAT, b"data: [DONE]\n\n"),
        (CHAT, b"data:[DONE]\n\n"),
        (CHAT, b"id: 9\ndata: [DONE] \n\n"),
        (CHAT, b'data: {"error": {"message": "oh"}}\n\n'),
        (OPENAI, b"event: done\ndata: [DONE]\n\n"),
        (RESPONSES, b'event: response.completed\ndata: {"type": "response.completed"}\n\n'),
        (RESPONSES, b'data: {"type":"response.completed"}\n\n'),
        (RESPONSES, b'data: {"response": {"x": [1]}, "type": "response.incomplete"}\n\n'),
        (RESPONSES, b'data: {"type": "response.failed"}\nevent:response.failed\n\n'),
        (RESPONSES, b'event: error\ndata: {"type": "error", "code": "x"}\n\n'),
        (MESSAGES, b'event: message_stop\ndata: {"type": "message_stop"}\n\n'),
        (MESSAGES, b'data: {"type": "message_stop"}\n\n'),
        (MESSAGES, b'event: error\ndata: {"type": "error", "error": {}}\n\n'),
    ],
)
@pytest.mark.parametrize("after", [b"", b": bye\n\n", b"data: [DONE]\n\n"])
def test_the_last_event_is_known_in_any_form_and_what_follows_belongs_to_it(
    dialect: Dialect, event: bytes, after: bytes
) -> None:
    first = b"data: {}\n\n"
    assert split_end(first + event + after, dialect.ends) == (first, event + after)
    assert completed(dialect, first + event + after).has_end


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        (CHAT, b'data: {"choices": [{"delta": {"content": "data: [DONE]"}}]}\n\n'),
        (CHAT, b'data: {"choices": [], "error": null}\n\n'),
        (CHAT, b": [DONE]\n\n"),
        (CHAT, b"data: x\ndata: [DONE]\n\n"),
        (RESPONSES, b"data: [DONE]\n\n"),
        (RESPONSES, b'data: {"type": "x", "delta": "response.completed"}\n\n'),
        (RESPONSES, b'data: {"response": {"type": "response.completed", "error": null}}\n\n'),
        (RESPONSES, b'data: {"type": ["response.completed"]}\n\n'),
        (MESSAGES, b'data: {"type": "message_delta", "delta": {"text": "message_stop error"}}\n\n'),
        (MESSAGES, b"data: " + b"[" * 5000 + b'"error"\n\n'),
    ],
)
def test_what_only_looks_like_an_end_is_none(dialect: Dialect, event: bytes) -> None:
    assert split_end(event, dialect.ends) == (event, b"")
    assert not completed(dialect, event).is_finished


def chunk(index: int, reason: str | None) -> bytes:
    told = "null" if reason is None else f'"{reason}"'
    return b'data: {"choices":[{"delta":{},"finish_reason":%s,"index":%d}]}\n\n' % (
        told.encode(),
        index,
    )


@pytest.mark.parametrize(
    ("chunks", "is_finished"),
    [
        ([(0, None), (0, "stop")], True),
        ([(0, None), (1, None), (1, "length"), (0, "tool_calls"), (1, None)], True),
        ([(0, "stop")], True),
        ([(0, None)], False),
        ([], False),
        ([(0, None), (1, None), (0, "stop")], False),
        ([(0, "stop"), (1, None)], False),
    ],
)
def test_a_chat_is_finished_when_each_of_its_choices_is(
    chunks: list[tuple[int, str | None]], is_finished: bool
) -> None:
    usage = b'data:{"choices":[],"usage":{"total_tokens":3}}\n\n'
    text = b"".join(chunk(*c) for c in chunks) + usage
    assert completed(CHAT, text).is_finished is is_finished
    assert not completed(RESPONSES, text).is_finished


@pytest.mark.parametrize(
    ("text", "is_finished"),
    [
        (b'data: {"choices":[{"index":null,"finish_reason":"stop"}]}\n\n', True),
        (b'data: {"choices":[{"index":0,"finish_reason":""}]}\n\n', False),
    ],
)
def test_choices_are_read_as_servers_other_than_vllm_write_them(
    text: bytes, is_finished: bool
) -> None:
    assert completed(CHAT, text).is_finished is is_finished


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (b"data: [DONE]", b"data: [DONE]\n\n"),
        (b"data: [DONE]\n", b"data: [DONE]\n\n"),
        (b'event: x\ndata: {"a": 1}\r', b'event: x\ndata: {"a": 1}\n\n'),
        (b'data: {"a": 1', b""),
        (b": bye", b""),
        (b"", b""),
    ],
)
def test_an_event_without_a_blank_line_behind_it_is_one_if_it_is_whole(
    text: bytes, rest: bytes
) -> None:
    events = WholeEvents()
    assert events.take(text) == b""
    assert events.rest() == rest


@pytest.mark.slow
def test_an_event_that_never_ends_is_given_up() -> None:
    events = WholeEvents()
    assert events.take(b"x" * MAX_EVENT_BYTES) == b""
    with pytest.raises(WorkerFailed, match="too large"):
        events.take(b"x")


@pytest.mark.slow
def test_the_time_for_an_event_in_many_pieces_grows_with_its_size_alone() -> None:
    def seconds(pieces: int) -> float:
        events = WholeEvents()
        began = time.process_time()
        for _ in range(pieces):
            events.take(b"x" * 20)
        return time.process_time() - began

    assert seconds(400_000) < 10 * max(seconds(100_000) for _ in range(2))


MIDWAY = b'{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}'
"""A choice as vLLM writes it, in the middle of its text."""


@pytest.mark.parametrize(
    ("beside", "is_finished"),
    [
        (b"", False),
        (b'{"index":0,"delta":{},"finish_reason":"stop"}', True),
        (b'{"finish_reason": "stop"}', True),
        (b'{"index": 0, "finish_reason": "length"}', True),
        (b'{"index":1,"delta":{},"finish_reason":"stop"}', False),
        (MIDWAY, False),
        (rb'{"delta":{"content":"\"finish_reason\":\"stop\""}}', False),
    ],
)
def test_an_end_is_seen_beside_a_chunk_that_is_midway(beside: bytes, is_finished: bool) -> None:
    completion = Completion(CHAT.ends)
    both = MIDWAY + b"," * bool(beside) + beside
    for choices in (MIDWAY, both):
        completion.note(b'data: {"choices":[%b]}\n\n' % choices)
    assert completion.is_finished is is_finished


def test_a_choice_that_begins_after_another_is_waited_for() -> None:
    completion = Completion(CHAT.ends)
    end = MIDWAY.replace(b"null}", b'"stop"}')
    for choices in (MIDWAY, MIDWAY + b',{"index":1,"delta":{}}', MIDWAY, end):
        completion.note(b'data: {"choices":[%b]}\n\n' % choices)
        assert not completion.is_finished
    completion.note(b'data: {"choices":[%b]}\n\n' % end.replace(b'"index":0', b'"index":1'))
    assert completion.is_finished


def test_choices_without_end_cost_no_memory_and_one_of_them_can_still_be_open() -> None:
    completion = Completion(CHAT.ends)
    many = b",".join(b'{"index":%d}' % index for index in range(10_000, 110_000))
    event = b'data: {"choices":[%b]}\n\n' % many
    tracemalloc.start()
    try:
        completion.note(event)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * 2**20
    completion.note(b"".join(chunk(index, "stop") for index in range(10_000, 16_384)))
    assert not completion.is_finished
    completion.note(chunk(109_999, "stop"))
    assert completion.is_finished
