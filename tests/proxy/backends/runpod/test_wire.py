"""Outputs of each kind of worker become exactly the text that vLLM wrote."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.api.dialects import CHAT
from proxy.backends.runpod.wire import (
    MAX_HELD_BYTES,
    FrameReader,
    ObjectReader,
    PieceReader,
    reader_for,
)
from proxy.errors import VLLMError, WorkerFailed

Frame = dict[str, Any]

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)
EVENTS = st.lists(TEXT, min_size=1, max_size=12).map(
    lambda texts: [f"data: {msgspec.json.encode({'t': text}).decode()}\n\n" for text in texts]
)


def frames_of(parts: list[str]) -> list[Frame]:
    frames: list[Frame] = [{"seq": i, "text": part} for i, part in enumerate(parts)]
    frames[0] |= {"status": 200, "content_type": "text/event-stream"}
    return [*frames, {"seq": len(frames), "end": True}]


def polls_of(draw: st.DataObject, frames: list[Frame]) -> list[list[Frame]]:
    """The frames as polls hand them out: several at a time, now and then one twice."""
    polls = []
    rest = list(frames)
    while rest:
        count = draw.draw(st.integers(1, len(rest)))
        polls.append(rest[:count])
        if draw.draw(st.booleans()):
            polls.append([draw.draw(st.sampled_from(frames[: frames.index(rest[0]) + count]))])
        rest = rest[count:]
    return polls


@given(events=EVENTS, data=st.data())
def test_frames_give_the_text_once_however_they_are_handed_out(
    events: list[str], data: st.DataObject
) -> None:
    reader = FrameReader()
    got = b"".join(reader.feed(poll) for poll in polls_of(data, frames_of(events)))
    assert got == "".join(events).encode()
    assert reader.ended


@given(events=EVENTS, data=st.data())
def test_lost_frames_are_filled_in_from_the_aggregate(
    events: list[str], data: st.DataObject
) -> None:
    frames = frames_of(events)
    kept = [frame for frame in frames if data.draw(st.booleans())]
    reader = FrameReader()
    before = b"".join(reader.feed([frame]) for frame in kept)
    after = reader.complete(frames)
    assert before + after == "".join(events).encode()
    assert reader.ended
    assert reader.head is not None
    assert reader.lost == len(frames) - len(kept)


@given(events=EVENTS, lost=st.integers(0, 12))
def test_nothing_after_a_hole_is_passed_on(events: list[str], lost: int) -> None:
    frames = frames_of(events)
    lost = min(lost, len(frames) - 1)
    reader = FrameReader()
    got = reader.feed(frames[:lost] + frames[lost + 1 :])
    assert got == "".join(events[:lost]).encode()
    assert not reader.ended


def test_a_frame_that_the_aggregate_lacks_too_is_an_error() -> None:
    frames = frames_of(["data: 1\n\n", "data: 2\n\n"])
    reader = FrameReader()
    reader.feed(frames[:1])
    with pytest.raises(WorkerFailed):
        reader.complete([frames[0], frames[2]])


def test_a_second_run_starts_over_while_nothing_was_passed_on() -> None:
    reader = FrameReader()
    first = [frame | {"run": "a"} for frame in frames_of(["data: 1\n\n", "data: 2\n\n"])]
    second = [frame | {"run": "b"} for frame in frames_of(["data: 3\n\n"])]
    assert reader.feed(first[1:]) == b""
    assert reader.feed(second) == b"data: 3\n\n"
    assert reader.ended


def test_what_is_lost_of_a_second_run_has_nothing_to_do_with_what_was_held_of_the_first() -> None:
    reader = FrameReader()
    first = [frame | {"run": "a"} for frame in frames_of(["data: 1\n\n"] * 9)]
    second = [frame | {"run": "b"} for frame in frames_of(["data: 3\n\n"])]
    assert reader.feed(first[1:]) == b""
    assert reader.complete(second) == b"data: 3\n\n"
    assert reader.lost == len(second)


def test_frames_behind_the_end_are_none() -> None:
    reader = FrameReader()
    frames = frames_of(["data: 1\n\n"])
    assert reader.feed([frames[-1] | {"seq": seq} for seq in range(7, 20)]) == b""
    assert reader.complete(frames) == b"data: 1\n\n"
    assert reader.lost == 0


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_second_run_is_never_mixed_with_what_was_passed_on(lost: int) -> None:
    reader = FrameReader()
    first = [frame | {"run": "a"} for frame in frames_of(["data: 1\n\n", "data: 2\n\n"])]
    second = [frame | {"run": "b"} for frame in frames_of(["data: 3\n\n", "data: 4\n\n"])]
    assert reader.feed(first[:1]) == b"data: 1\n\n"
    with pytest.raises(WorkerFailed, match="died"):
        reader.feed(second[lost:])


def test_the_head_carries_vllms_status() -> None:
    reader = FrameReader()
    body = reader.feed(
        [{"seq": 0, "status": 404, "content_type": "application/json", "text": "{}", "end": True}]
    )
    assert (reader.head and reader.head.status, body, reader.ended) == (404, b"{}", True)
    assert reader.head
    assert not reader.head.is_event_stream


@pytest.mark.parametrize(
    ("told", "known"),
    [(1.5, 1.5), (0, 0.0), (-1, None), ("1", None), (True, None), (None, None), ([], None)],
)
def test_the_head_tells_how_long_the_worker_has_had_the_job(told: Any, known: float | None) -> None:
    frames = frames_of(["{}"])
    frames[0]["seconds"] = told
    reader = FrameReader()
    reader.feed(frames)
    assert reader.worker_seconds == known


def test_bytes_travel_as_base64() -> None:
    audio = bytes(range(256))
    reader = FrameReader()
    head = {"seq": 0, "status": 200, "content_type": "audio/wav"}
    frame = {"seq": 1, "base64": base64.b64encode(audio).decode(), "end": True}
    assert reader.feed([head, frame]) == audio


@pytest.mark.parametrize(
    "output",
    [
        "text",
        {"text": "no number"},
        {"seq": "0", "status": 200, "content_type": "x"},
        {"seq": -1},
        {"seq": 0},
        {"seq": 0, "status": 99, "content_type": "x"},
        {"seq": 0, "status": 200, "content_type": "x", "text": 3},
        {"seq": 0, "status": 200, "content_type": "x", "base64": "?"},
    ],
)
def test_a_broken_frame_is_the_workers_failure(output: Any) -> None:
    with pytest.raises(WorkerFailed):
        FrameReader().feed([output])


@given(events=EVENTS, data=st.data())
def test_pieces_cut_anywhere_leave_as_whole_events(events: list[str], data: st.DataObject) -> None:
    text = "".join([*events, "data: [DONE]\n\n"])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=20)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reader = PieceReader(CHAT.ends)
    sent = [reader.feed([piece]) for piece in pieces]
    assert b"".join(sent) + reader.complete(pieces) == text.encode()
    assert all(part.endswith(b"\n\n") for part in sent if part)
    assert reader.ended


def test_pieces_fed_one_character_at_a_time_hold_line_separators_together() -> None:
    text = 'data: {"t": "\u2028 \u2029 \x85 🌍"}\r\n\r\ndata: [DONE]\r\n\r\n'
    reader = PieceReader(CHAT.ends)
    got = b"".join(reader.feed([char]) for char in text) + reader.complete([text])
    assert got == text.replace("\r", "").encode()
    assert reader.ended


def test_a_piece_that_was_lost_is_noticed_before_the_stream_ends() -> None:
    reader = PieceReader(CHAT.ends)
    assert b"[DONE]" not in reader.feed(["data: 1\n\n", "data: 3\n\n", "data: [DONE]\n\n"])
    with pytest.raises(WorkerFailed):
        reader.complete(["data: 1\n\n", "data: 2\n\n", "data: 3\n\n", "data: [DONE]\n\n"])


def test_a_worker_that_aggregates_nothing_is_believed() -> None:
    reader = PieceReader(CHAT.ends)
    assert reader.feed(["data: 1\n\ndata: [DONE]\n\n"]) == b"data: 1\n\n"
    assert reader.complete([]) == b"data: [DONE]\n\n"


@given(events=EVENTS, data=st.data())
def test_pieces_continue_from_the_aggregate(events: list[str], data: st.DataObject) -> None:
    text = "".join([*events, "data: [DONE]\n\n"])
    cut = data.draw(st.integers(0, len(text)))
    reader = PieceReader(CHAT.ends)
    before = reader.feed([text[:cut]])
    assert before + reader.complete([text[: cut // 2], text[cut // 2 :]]) == text.encode()


@given(events=EVENTS, data=st.data())
def test_pieces_in_doubt_come_from_the_aggregate_alone(
    events: list[str], data: st.DataObject
) -> None:
    text = "".join([*events, "data: [DONE]\n\n"])
    cut = data.draw(st.integers(0, len(text)))
    reader = PieceReader(CHAT.ends)
    before = reader.feed([text[:cut]])
    reader.distrust_stream()
    assert reader.feed([text[cut + 1 :]]) == b""
    assert before + reader.complete([text]) == text.encode()


def test_pieces_of_another_answer_are_not_continued() -> None:
    reader = PieceReader(CHAT.ends)
    reader.feed(["data: 1\n\n"])
    with pytest.raises(WorkerFailed):
        reader.complete(["data: 2\n\ndata: [DONE]\n\n"])


def test_pieces_of_a_second_run_are_noticed_by_their_id() -> None:
    reader = PieceReader(CHAT.ends)
    assert reader.feed(['data: {"id":"a","t":"\\ndata: {\\"id\\":\\"c\\"}"}\n\n'])
    assert reader.feed(['data: {"id":"a"}\n\n'])
    with pytest.raises(WorkerFailed, match="died"):
        reader.feed(['data: {"id":"b"}\n\n'])


def test_pieces_that_end_without_the_end_mark_are_an_error() -> None:
    reader = PieceReader(CHAT.ends)
    reader.feed(["data: 1\n\n"])
    with pytest.raises(WorkerFailed):
        reader.complete(["data: 1\n\n"])


def test_parsed_chunks_become_events_with_an_end_mark() -> None:
    chunks = [{"id": "a", "choices": []}, {"id": "a", "choices": [1]}]
    reader = PieceReader(CHAT.ends)
    got = reader.feed(chunks[:1]) + reader.complete(chunks)
    events = [msgspec.json.encode(chunk) for chunk in chunks] + [b"[DONE]"]
    assert got == b"".join(b"data: " + event + b"\n\n" for event in events)


def test_one_parsed_object_becomes_json() -> None:
    reader = ObjectReader()
    assert msgspec.json.decode(reader.feed([{"id": "x", "choices": [1]}])) == {
        "id": "x",
        "choices": [1],
    }
    assert reader.ended


@pytest.mark.parametrize(
    "output",
    [
        {"error": {"message": "no such model", "type": "NotFoundError", "code": 404}},
        {"object": "error", "message": "no such model", "type": "NotFoundError", "code": 404},
    ],
)
@pytest.mark.parametrize("wants_stream", [True, False])
def test_vllms_error_object_as_an_output_keeps_its_status(
    output: Frame, wants_stream: bool
) -> None:
    with pytest.raises(VLLMError) as caught:
        reader_for(output, wants_stream=wants_stream, ends=CHAT.ends).feed([output])
    assert caught.value.status == 404
    assert msgspec.json.decode(caught.value.body)["error"]["message"] == "no such model"


@pytest.mark.parametrize("wants_stream", [True, False])
def test_a_text_as_an_error_of_a_handler_is_a_failure_and_not_shown(wants_stream: bool) -> None:
    output: Frame = {"error": "boom"}
    with pytest.raises(WorkerFailed) as caught:
        reader_for(output, wants_stream=wants_stream, ends=CHAT.ends).feed([output])
    assert "boom" not in caught.value.message


def test_frames_behind_a_hole_are_held_within_bounds_and_come_from_the_aggregate() -> None:
    event = "data: " + "x" * 2**20 + "\n\n"
    frames = frames_of([event] * (2 * MAX_HELD_BYTES // 2**20))
    reader = FrameReader()
    for frame in frames[1:]:
        assert reader.feed([dict(frame)]) == b""
        assert reader.held_bytes <= MAX_HELD_BYTES + len(event) + 1000
    assert reader.complete(frames) == event.encode() * (len(frames) - 1)
    assert reader.ended


def test_what_is_no_text_in_a_frame_behind_a_hole_is_counted() -> None:
    reader = FrameReader()
    reader.feed([{"seq": 1, "text": "", "junk": [[]] * 10_000}])
    assert reader.held_bytes > 100_000


def test_a_stream_that_is_finished_needs_no_done_of_its_worker() -> None:
    chunk = 'data: {"choices": [{"index": 0, "finish_reason": %s}]}\n\n'
    pieces = [chunk % "null", chunk % '"stop"']
    reader = PieceReader(CHAT.ends)
    sent = reader.feed(pieces) + reader.complete(pieces)
    assert sent == "".join(pieces).encode() + b"data: [DONE]\n\n"
    half = PieceReader(CHAT.ends)
    half.feed(pieces[:1])
    with pytest.raises(WorkerFailed, match="complete"):
        half.complete(pieces[:1])
