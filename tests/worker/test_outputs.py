"""The two forms of outputs where no real answer would get us easily."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import worker.outputs
from tests.wire.record import body_of
from worker.answer import Answer
from worker.chunks import Chunks
from worker.errors import EngineFailed
from worker.outputs import BareOutputs, FramedOutputs


@dataclass
class AnswerSoFar:
    """As much of an answer as outputs look at."""

    status: int = 200
    content_type: str = "text/event-stream"
    is_event_stream: bool = True
    is_complete: bool = False
    route: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)


def answer(**facts: Any) -> Answer:
    return cast(Answer, AnswerSoFar(**facts))


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode), st.integers(4, 40))
def test_frames_hold_any_bytes_exactly_and_text_only_where_it_is_text(
    body: bytes, limit: int
) -> None:
    chunks, outputs = Chunks(events=False, limit=limit), FramedOutputs("r")
    chunks.feed(body)
    frames: list[Any] = []
    while piece := chunks.take(ended=True):
        frames += outputs.add(answer(**PLAIN), piece)
    assert body_of(frames) == body
    with suppress(UnicodeDecodeError):
        text = body.decode()
        assert "".join(frame["text"] for frame in frames) == text


PLAIN = {"content_type": "application/json", "is_event_stream": False}


def test_an_error_event_begins_on_a_line_of_its_own() -> None:
    for outputs in (FramedOutputs("a"), BareOutputs()):
        outputs.add(answer(), b"data: cut in the mid")
        [last] = outputs.fail(EngineFailed())
        text = last["text"] if isinstance(last, dict) else last
        assert isinstance(text, str)
        assert text.startswith("\n\ndata: {")
        assert text.endswith("}}\n\n")


def test_an_error_event_has_a_name_where_anthropics_clients_read_it() -> None:
    for outputs in (FramedOutputs("a"), BareOutputs()):
        outputs.add(answer(route="/v1/messages?beta=true"), b"event: ping\ndata: {}\n\n")
        [last] = outputs.fail(EngineFailed())
        text = last["text"] if isinstance(last, dict) else last
        assert isinstance(text, str)
        name, _, data = text.removesuffix("\n\n").partition("\ndata: ")
        assert name == "event: error"
        assert json.loads(data)["type"] == "error"
        said = json.loads(data)["error"]
        assert (said["type"], said["code"]) == ("api_error", "engine_failed")


BEGUN = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":'
    b'{"id":"resp_1","object":"response","status":"in_progress","output":[]}}\n\n'
)
DELTA = b'event: x\ndata: {"type":"x","sequence_number":41,"delta":"\\"sequence_number\\":7"}\n\n'


def test_an_error_in_a_responses_stream_has_both_forms_that_its_clients_read() -> None:
    for outputs in (FramedOutputs("a"), BareOutputs()):
        outputs.add(answer(route="/v1/responses"), BEGUN)
        outputs.add(answer(route="/v1/responses"), DELTA)
        [last] = outputs.fail(EngineFailed())
        text = last["text"] if isinstance(last, dict) else last
        assert isinstance(text, str)
        events = [event.split("\ndata: ") for event in text.split("\n\n")[:-1]]
        assert [name for name, _ in events] == ["event: error", "event: response.failed"]
        error, failed = (json.loads(data) for _, data in events)
        assert (error["type"], error["sequence_number"]) == ("error", 42)
        assert error["code"] == error["error"]["code"] == "engine_failed"
        assert error["message"] == error["error"]["message"] == str(EngineFailed())
        assert (failed["type"], failed["sequence_number"]) == ("response.failed", 43)
        assert failed["response"]["id"] == "resp_1"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"] == {
            "code": "engine_failed",
            "message": str(EngineFailed()),
        }


def test_a_responses_stream_that_says_nothing_known_still_ends_in_both_forms() -> None:
    outputs = FramedOutputs("a")
    outputs.add(answer(route="/v1/responses?x=1"), b"data: cut in the mid")
    [last] = outputs.fail(EngineFailed())
    assert isinstance(last, dict)
    assert last["text"].startswith("\n\nevent: error\ndata: {")
    assert "\n\nevent: response.failed\ndata: {" in last["text"]


def test_an_error_event_after_a_whole_event_adds_no_lines() -> None:
    outputs = FramedOutputs("a")
    outputs.add(answer(), b"data: 1\n\n")
    assert outputs.fail(EngineFailed()) == [
        {"seq": 1, "run": "a", "text": f"data: {EngineFailed().body()}\n\n", "end": True}
    ]


def test_a_plain_body_that_breaks_off_half_way_fails_the_job() -> None:
    outputs = FramedOutputs("a")
    outputs.add(answer(**PLAIN), b'{"half":')
    [last] = outputs.fail(EngineFailed())
    assert isinstance(last, dict)
    assert json.loads(last["error"])["error"]["code"] == "engine_failed"


def test_an_object_that_has_an_error_does_not_fail_a_job_that_went_well() -> None:
    body = b'{"status":"failed","error":{"message":"it says"}}'
    assert BareOutputs().add(answer(**PLAIN, is_complete=True), body) == [body.decode()]


def test_an_error_without_an_error_object_gets_one() -> None:
    gone = answer(**PLAIN, status=502, is_complete=True)
    [output] = BareOutputs().add(gone, b"<html>Bad Gateway")
    assert isinstance(output, dict)
    error = json.loads(output["error"])["error"]
    assert (error["message"], error["code"]) == ("<html>Bad Gateway", 502)


def test_a_piece_that_is_no_text_becomes_base64_and_the_rest_stays_text() -> None:
    outputs = FramedOutputs("a")
    [first] = outputs.add(answer(**PLAIN), b"\xff")
    assert isinstance(first, dict)
    assert (first["base64"], "text" in first) == ("/w==", False)
    assert outputs.add(answer(**PLAIN), b"ok") == [{"seq": 1, "run": "a", "text": "ok"}]


def test_the_first_frame_alone_tells_how_long_the_worker_has_had_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(worker.outputs, "time", SimpleNamespace(monotonic=lambda: now))
    outputs, failed = FramedOutputs("a"), FramedOutputs("b")
    now = 101.5
    first, second = outputs.add(answer(**PLAIN), b"1") + outputs.add(answer(**PLAIN), b"2")
    [only] = failed.fail(EngineFailed())
    assert isinstance(first, dict)
    assert isinstance(only, dict)
    assert (first["seconds"], only["seconds"]) == (1.5, 1.5)
    assert "seconds" not in second


def test_headers_stand_in_the_first_frame_alone() -> None:
    outputs = FramedOutputs("a")
    said = answer(**PLAIN, headers={"metadata": "{}"})
    first, second = outputs.add(said, b"1") + outputs.add(said, b"2")
    assert isinstance(first, dict)
    assert first["headers"] == {"metadata": "{}"}
    assert "headers" not in second
