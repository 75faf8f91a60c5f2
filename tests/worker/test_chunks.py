"""Bytes become whole events or pieces below a limit, and none is lost, whatever the cuts."""

import re
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from worker.chunks import PIECE_BYTES, Chunks, ends_event

LIMIT = 64

line_ends = st.sampled_from(["\n", "\r\n", "\r"])
characters = st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"])
texts = st.text(characters | st.sampled_from("é世🙂\u2028\u2029\x85\0"), max_size=24)
networks = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@st.composite
def event_streams(draw: st.DrawFn) -> str:
    """A stream of events in one of the three line endings."""
    end = draw(line_ends)
    return "".join(f"data: {text}{end}{end}" for text in draw(st.lists(texts, max_size=8)))


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The data in network reads of these sizes, again and again."""
    position = 0
    while position < len(data):
        size = sizes[0]
        sizes = sizes[1:] + sizes[:1]
        yield data[position : position + size]
        position += size


def pieces_of(data: bytes, sizes: list[int], *, events: bool, limit: int = LIMIT) -> list[bytes]:
    """What comes out when everything there is gets taken after each read."""
    chunks = Chunks(events=events, limit=limit)
    pieces: list[bytes] = []
    for read in cut(data, sizes):
        chunks.feed(read)
        while piece := chunks.take(ended=False):
            pieces.append(piece)
    while piece := chunks.take(ended=True):
        pieces.append(piece)
    assert not chunks
    return pieces


@given(st.binary(max_size=600), networks, st.booleans())
def test_nothing_is_lost_whatever_the_bytes_and_the_cuts(
    data: bytes, sizes: list[int], events: bool
) -> None:
    pieces = pieces_of(data, sizes, events=events)
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= LIMIT for piece in pieces)


@given(st.text(max_size=300), networks, st.booleans())
def test_no_piece_of_a_text_ends_inside_a_character(
    text: str, sizes: list[int], events: bool
) -> None:
    data = text.encode(errors="replace")
    pieces = pieces_of(data, sizes, events=events)
    assert "".join(piece.decode() for piece in pieces) == data.decode()


@given(event_streams(), networks)
def test_every_piece_of_a_stream_is_whole_events(stream: str, sizes: list[int]) -> None:
    pieces = pieces_of(stream.encode(), sizes, events=True, limit=PIECE_BYTES)
    assert all(ends_event(piece) for piece in pieces)
    assert b"".join(pieces) == stream.encode()


@given(event_streams())
def test_a_stream_fed_byte_by_byte_gives_its_events_one_by_one(stream: str) -> None:
    pieces = pieces_of(stream.encode(), [1], events=True, limit=PIECE_BYTES)
    events = re.findall(r"(?s).+?(?:\n\n|\r\n\r\n|\r\r)", stream)
    assert [piece.decode() for piece in pieces] == events


@given(event_streams())
def test_all_events_that_are_there_come_in_one_piece(stream: str) -> None:
    chunks = Chunks(events=True)
    chunks.feed(stream.encode() + b"data: unfinis")
    assert chunks.take(ended=False) == stream.encode()
    assert chunks.take(ended=False) == b""


def test_events_that_exceed_the_limit_together_are_cut_between_them() -> None:
    event = b"data: 30 bytes, this event\r\n\r\n"
    pieces = pieces_of(event * 5, [1000], events=True)
    assert [len(piece) // len(event) for piece in pieces] == [2, 2, 1]


def test_a_lone_event_above_the_limit_is_cut_between_characters() -> None:
    event = "data: " + "世" * 40 + "\n\n"
    pieces = pieces_of(event.encode(), [7], events=True)
    assert "".join(piece.decode() for piece in pieces) == event
    assert [len(piece) for piece in pieces] == [63, 64, 1]


def test_line_separators_of_unicode_end_nothing() -> None:
    chunks = Chunks(events=True)
    chunks.feed("data: a\u2028\u2028b\x85\x85\n".encode())
    assert chunks.take(ended=False) == b""


def test_a_plain_body_waits_until_it_has_ended() -> None:
    chunks = Chunks(events=False, limit=LIMIT)
    chunks.feed(b"{}\n\n")
    assert chunks.take(ended=False) == b""
    assert chunks.take(ended=True) == b"{}\n\n"


def test_a_plain_body_above_the_limit_goes_out_while_it_comes() -> None:
    chunks = Chunks(events=False, limit=LIMIT)
    chunks.feed(b"x" * LIMIT)
    assert chunks.take(ended=False) == b""
    chunks.feed(b"x")
    assert chunks.take(ended=False) == b"x" * LIMIT


def test_a_piece_given_back_is_taken_again_with_what_follows() -> None:
    chunks = Chunks(events=True)
    chunks.feed(b"data: 1\n\ndata")
    chunks.give_back(chunks.take(ended=False))
    chunks.feed(b": 2\n\n")
    assert chunks.take(ended=False) == b"data: 1\n\ndata: 2\n\n"


def test_the_limit_keeps_any_frame_below_what_runpod_takes_in_one_output() -> None:
    escaped, base64 = 2 * PIECE_BYTES, PIECE_BYTES * 4 // 3
    assert max(escaped, base64) < 1_000_000
    assert PIECE_BYTES < 512 * 1024
