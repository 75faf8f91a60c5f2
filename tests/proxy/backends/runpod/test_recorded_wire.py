"""What the worker really puts out, recorded in `tests/wire/`, is read as what vLLM really said."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.api.dialects import CHAT
from proxy.backends.runpod.failure import error_from
from proxy.backends.runpod.sealing import Seal
from proxy.backends.runpod.wire import FrameReader, reader_for
from proxy.errors import VLLMError
from tests.wire.sealing import SALT, SECRET, opened_frame

RECORDED = sorted((Path(__file__).parents[3] / "wire").glob("*.json"))
WITH_NUMBERS = [path for path in RECORDED if not path.name.startswith("bare_")]


def load(path: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(path.read_text())
    return recorded


def body_of(recorded: dict[str, Any]) -> bytes:
    if "body_base64" in recorded:
        return base64.b64decode(recorded["body_base64"])
    body: str = recorded["body"]
    return body.encode()


def reader_of(recorded: dict[str, Any]) -> FrameReader:
    is_sealed = "sealed" in recorded["input"]
    return FrameReader(Seal(SECRET.encode(), SALT).open if is_sealed else None)


def named(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", WITH_NUMBERS, ids=named)
def test_recorded_frames_give_vllms_answer(path: Path) -> None:
    recorded = load(path)
    reader = reader_of(recorded)
    assert b"".join(reader.feed([frame]) for frame in recorded["outputs"]) == body_of(recorded)
    assert reader.ended
    assert reader.head
    assert (reader.head.status, reader.head.content_type) == (
        recorded["status"],
        recorded["content_type"],
    )
    first = recorded["outputs"][0]
    first = opened_frame(first) if "sealed" in first else first
    assert reader.head.models == tuple(first.get("models", ()))


@pytest.mark.parametrize("path", WITH_NUMBERS, ids=named)
def test_recorded_frames_give_it_from_the_aggregate_alone(path: Path) -> None:
    recorded = load(path)
    assert reader_of(recorded).complete(recorded["outputs"]) == body_of(recorded)


@pytest.mark.parametrize("name", ["bare_stream", "bare_plain"])
def test_recorded_bare_outputs_give_vllms_answer(name: str) -> None:
    recorded = load(Path(__file__).parents[3] / "wire" / f"{name}.json")
    outputs = recorded["outputs"]
    reader = reader_for(outputs[0], wants_stream=name == "bare_stream", ends=CHAT.ends)
    told = reader.feed(outputs)
    if not reader.ended:
        told += reader.complete(outputs)
    if name == "bare_stream":
        assert told == body_of(recorded)
    else:
        assert json.loads(told) == json.loads(body_of(recorded))


def test_a_recorded_bare_error_tells_vllms_status() -> None:
    recorded = load(Path(__file__).parents[3] / "wire" / "bare_error_404.json")
    # RunPod's SDK fails the job with `str()` of the value.
    error = error_from(str(recorded["outputs"][0]["error"]))
    assert isinstance(error, VLLMError)
    assert (error.status, error.body) == (404, body_of(recorded))
