"""The recorded jobs in `tests/wire/` are what the worker puts out."""

import base64
import json
from typing import Any

import pytest

from tests.waiting import wait_until
from tests.wire.record import CASES, FOLDER, MODELS, body_of, opened, record

FRAMED = [name for name, case in CASES.items() if case.framed]


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def told(job: dict[str, Any]) -> dict[str, Any]:
    """What a job says, without where its frames are cut and which run they are of."""
    outputs = job["outputs"]
    facts = {key: value for key, value in job.items() if key != "outputs"}
    if isinstance(outputs[0], dict) and "seq" not in outputs[0]:
        return facts | {"outputs": outputs}
    return facts | {"joined": body_of(outputs)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_worker_still_says_what_was_recorded(name: str) -> None:
    if name == "broken_off":  # what comes in the same moment as the cut is lost
        wait_until(lambda: told(record(name)) == told(recorded(name)))
    else:
        assert told(record(name)) == told(recorded(name))


@pytest.mark.parametrize("name", FRAMED)
def test_recorded_frames_hold_what_the_engine_said(name: str) -> None:
    job = recorded(name)
    body = base64.b64decode(job["body_base64"]) if "body_base64" in job else job["body"].encode()
    assert body_of(job["outputs"]) == body


@pytest.mark.parametrize("name", FRAMED)
def test_recorded_frames_keep_protocol_1(name: str) -> None:
    job, frames = recorded(name), opened(recorded(name)["outputs"])
    assert [frame["seq"] for frame in frames] == list(range(len(frames)))
    assert len({frame["run"] for frame in frames}) == 1
    models = None if CASES[name].start_failure else MODELS
    assert [frame.get("models") for frame in frames] == [models] + [None] * (len(frames) - 1)
    assert (frames[0]["status"], frames[0]["content_type"]) == (job["status"], job["content_type"])
    assert frames[0].get("headers") == job.get("headers")
    assert [frame for frame in frames if "end" in frame] == frames[-1:]
    assert not [frame for frame in frames if "error" in frame]


def test_a_start_that_failed_is_told_in_both_forms() -> None:
    [frame] = recorded("start_failed")["outputs"]
    assert (frame["status"], frame["start_failed"]) == (503, "model_not_found")
    [failed] = recorded("bare_start_failed")["outputs"]
    errors = [json.loads(text)["error"] for text in (frame["text"], failed["error"])]
    assert [error["type"] for error in errors] == ["server_error", "startup_error"]
    assert {error["code"] for error in errors} == {"model_start_failed"}
    assert len({error["message"] for error in errors}) == 1


def test_files_are_there_for_all_cases_and_no_others() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES)


def test_recorded_cases_show_what_they_are_for() -> None:
    assert len(recorded("large")["outputs"]) > 3
    assert len(recorded("stream")["outputs"]) > 3
    assert len(recorded("plain")["outputs"]) == 1
    assert "base64" in recorded("bytes")["outputs"][0]
    assert "metadata" in recorded("bytes")["outputs"][0]["headers"]
