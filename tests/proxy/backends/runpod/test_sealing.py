"""Sealed jobs: what the worker sealed comes out, and nothing that was changed on the way does."""

import base64
import json
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends.runpod.sealing import Seal
from proxy.backends.runpod.wire import FrameReader
from proxy.errors import ProxyError, SealingFailed, WorkerFailed
from tests.proxy.backends.runpod.test_wire import EVENTS, TEXT, Frame, frames_of, polls_of
from tests.proxy.conftest import AS_JSON, chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import CHAT, stream
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.wire.sealing import SALT, SECRET, opened_input, sealed_frame

AT_ONCE = {"first_byte_hold_seconds": 60, "failed_start_pause_seconds": 0}
SEALED = {"seal_secret": SECRET} | AT_ONCE
PAUSING = {"seal_secret": SECRET, "first_byte_hold_seconds": 60}
sealing = pytest.mark.parametrize("settings", [SEALED], indirect=True)


def a_reader() -> FrameReader:
    return FrameReader(Seal(SECRET.encode(), SALT).open)


def sealed(events: list[str], run: str = "r") -> list[Frame]:
    return [sealed_frame(frame, run) for frame in frames_of(events)]


@given(events=EVENTS, data=st.data())
def test_sealed_frames_give_the_text_however_they_come(
    events: list[str], data: st.DataObject
) -> None:
    frames = sealed(events)
    kept = [frame for frame in frames if data.draw(st.booleans())]
    reader = a_reader()
    got = b"".join(reader.feed(poll) for poll in (polls_of(data, kept) if kept else []))
    got += b"" if reader.ended else reader.complete(frames)
    assert got == "".join(events).encode()
    assert reader.ended


@given(text=TEXT, json_value=st.recursive(st.none() | TEXT, st.lists, max_leaves=5))
def test_an_input_is_sealed_whole_and_each_time_otherwise(text: str, json_value: Any) -> None:
    job_input = {"openai_input": msgspec.Raw(msgspec.json.encode([text, json_value]))}
    first, second = (
        msgspec.json.decode(msgspec.json.encode(Seal(SECRET.encode()).input(job_input)))
        for _ in range(2)
    )
    assert opened_input(first) == opened_input(second) == {"openai_input": [text, json_value]}
    assert first["sealed"]["salt"] != second["sealed"]["salt"]
    assert first["sealed"]["data"] != second["sealed"]["data"]


def test_the_length_of_what_is_sealed_hardly_tells_that_of_the_text() -> None:
    sizes = {len(Seal(SECRET.encode()).input({"a": "x" * n})["sealed"]["data"]) for n in range(512)}
    assert sizes == {256 + 16, 512 + 16, 768 + 16}


@given(data=st.data())
def test_a_frame_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    frames = sealed(["data: 1\n\n", "data: 2\n\n"])
    number = data.draw(st.integers(0, len(frames) - 1))
    raw = bytearray(base64.b64decode(frames[number]["sealed"]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    frames[number]["sealed"] = base64.b64encode(raw).decode()
    with pytest.raises(SealingFailed, match="changed on its way"):
        a_reader().feed(frames)


ONE, TWO, END = sealed(["data: 1\n\n", "data: 2\n\n"])
PLAIN: Frame = {"seq": 0, "run": "r", "status": 200, "content_type": "text/plain", "text": "forged"}
HEAD: Frame = {"seq": 0, "status": 200, "content_type": "text/plain"}


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([ONE, TWO | {"seq": 2}, END | {"seq": 1}], id="in another order"),
        pytest.param([ONE, ONE | {"seq": 1}, END], id="repeated"),
        pytest.param([ONE, END | {"seq": 1}], id="one left out"),
        pytest.param([ONE | {"end": True}], id="cut off"),
        pytest.param([ONE, TWO, {k: END[k] for k in ("seq", "run", "sealed")}], id="without end"),
        pytest.param([TWO | {"seq": 0}], id="begun later"),
        pytest.param([ONE | {"run": "q"}], id="of another run"),
        pytest.param([ONE | {"run": "\ud800"}], id="of a run that is no text"),
        pytest.param([ONE | {"run": None}], id="of no run"),
        pytest.param([sealed_frame(HEAD, salt=bytes(16))], id="of another job"),
        pytest.param([sealed_frame(HEAD, secret="x" * 32)], id="by another secret"),
        pytest.param([ONE | {"sealed": "no base64!"}], id="no base64"),
        pytest.param([ONE | {"sealed": ""}], id="empty"),
        pytest.param([ONE | {"sealed": ["x"]}], id="no text"),
        pytest.param([PLAIN | {"end": True}], id="not sealed"),
        pytest.param([PLAIN | {"start_failed": ["x"], "end": True}], id="no start that failed"),
        pytest.param([ONE, PLAIN | {"seq": 1, "end": True}], id="not sealed later"),
        pytest.param([ONE, PLAIN | {"seq": 1, "start_failed": "x", "end": True}], id="no start"),
        pytest.param([ONE, PLAIN | {"seq": 1, "seal_refused": "x", "end": True}], id="no refusal"),
        pytest.param([TWO, END], id="without the first"),
    ],
)
def test_frames_that_are_not_this_jobs_as_they_were_made_are_refused(frames: list[Frame]) -> None:
    reader = a_reader()
    with pytest.raises((SealingFailed, WorkerFailed)):  # the latter for a frame that is missing
        reader.complete(frames)
    assert not reader.ended


FORGED: Frame = {"run": "r", "text": "data: forged\n\n"}
BESIDE: list[Frame] = [
    {},
    {"start_failed": "out_of_memory"},
    {"start_failed": 7},
    {"seal_refused": "unsealed"},
    {"summary": {}},
    {"status": 200, "content_type": "text/event-stream"},
]
ENDS: list[Frame] = [{}, {"end": True}, {"end": False}, {"end": 1}]


@given(data=st.data())
def test_whatever_runpod_makes_of_frames_no_client_sees_another_answer(data: st.DataObject) -> None:
    """Each frame comes as it was made, or another one with its number, or one that is forged."""
    reader, got, genuine = a_reader(), b"", [ONE, TWO, END]
    for _ in range(data.draw(st.integers(1, 6))):
        base = data.draw(
            st.sampled_from([genuine[reader.passed % 3], ONE, TWO, END, FORGED, FORGED])
        )
        beside = data.draw(st.sampled_from(BESIDE)) | data.draw(st.sampled_from(ENDS))
        seq = data.draw(st.sampled_from([reader.passed, reader.passed, 0, 1, 2, 3]))
        try:
            got += reader.feed([base | beside | {"seq": seq}])
        except ProxyError:
            break
        if reader.head is not None and reader.head.start_failed is not None:
            return  # for which the answer ends in an error
    assert b"data: 1\n\ndata: 2\n\n".startswith(got)
    assert not reader.ended or got == b"data: 1\n\ndata: 2\n\n"


def test_frames_of_a_second_run_open_by_its_own_key() -> None:
    seal = Seal(SECRET.encode(), SALT)
    for run in ("a", "b", "a"):
        assert seal.open(sealed_frame(HEAD, run))["status"] == 200


def test_a_second_run_is_read_from_its_beginning() -> None:
    reader = a_reader()
    first, second = sealed(["data: 1\n\n"], "a"), sealed(["data: 2\n\n"], "b")
    assert reader.feed([first[1], *second]) == b"data: 2\n\n"
    assert reader.ended


def answered(runpod: ScriptedRunPod, *frames: Frame) -> None:
    """Have the worker answer the next job with these frames, sealed for it."""

    def script(job: dict[str, Any]) -> None:
        salt = base64.b64decode(job["input"]["sealed"]["salt"])
        runpod.script = [Page("COMPLETED", [sealed_frame(frame, salt=salt) for frame in frames])]

    runpod.on_job = script


@sealing
def test_runpod_is_given_nothing_of_the_prompt_and_the_client_all_of_the_answer(
    runpod: ScriptedRunPod, client: httpx.Client
) -> None:
    answered(runpod, {**HEAD, "text": "a sealed answer", "end": True})
    prompt = "a prompt that nobody else may read"
    answer = client.post(CHAT, json=chat(messages=[{"role": "user", "content": prompt}]))
    assert (answer.status_code, answer.text) == (200, "a sealed answer")
    [job] = runpod.jobs
    assert set(job["input"]) == {"sealed", "proxy"}
    assert job["input"]["proxy"] == {"protocol": 2}
    assert set(job["policy"]) == {"executionTimeout", "ttl"}
    assert opened_input(job["input"])["openai_input"]["messages"][0]["content"] == prompt
    assert not [word for word in prompt.split() if len(word) > 4 and word in json.dumps(job)]


@sealing
def test_a_job_that_is_too_large_when_it_is_sealed_is_refused(
    runpod: ScriptedRunPod, client: httpx.Client
) -> None:
    body = json.dumps(chat(padding="x" * 7_600_000))
    refused = client.post(CHAT, content=body, headers=AS_JSON)
    assert (refused.status_code, error_of(refused)["code"]) == (413, "request_too_large")
    assert "a third larger" in error_of(refused)["message"]
    assert runpod.jobs == []
    answered(runpod, {**HEAD, "text": "fits", "end": True})
    assert client.post(CHAT, content=body[:-200_000] + '"}', headers=AS_JSON).text == "fits"


REFUSAL: Frame = {"seq": 0, "status": 403, "content_type": "application/json", "end": True}


@sealing
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (REFUSAL | {"seal_refused": "no_secret"}, "set WORKER_SEAL_SECRET"),
        (REFUSAL | {"seal_refused": "wrong_secret"}, "not the proxy's secret"),
        (REFUSAL | {"seal_refused": "sth_new"}, "refused the job for how it is sealed"),
        (REFUSAL | {"seal_refused": ["x"]}, "refused the job for how it is sealed"),
        (REFUSAL | {"status": 400, "text": "This worker speaks protocol 1."}, "older release"),
        (REFUSAL | {"status": 200, "text": "forged"}, "The answer is not"),
        ({"object": "chat.completion", "choices": []}, "another one than this project's"),
        ('data: {"choices": []}\n\n', "another one than this project's"),
    ],
)
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_worker_that_does_not_seal_is_told_with_a_status(
    runpod: ScriptedRunPod, client: httpx.Client, output: Any, message: str, is_stream: bool
) -> None:
    runpod.script = [Page("COMPLETED", [output])]
    refused = client.post(CHAT, json=chat(stream=is_stream))
    assert (refused.status_code, error_of(refused)["code"]) == (502, "sealing_failed")
    assert refused.headers["x-should-retry"] == "false"
    assert message.lower() in error_of(refused)["message"].lower()


@sealing
@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        ("KeyError: 'messages'", 502, "worker_failed", "It is sealed"),
        ('{"error": {"message": "no", "code": 400}}', 502, "worker_failed", "It is sealed"),
        (str({"message": "m", "type": "startup_error"}), 503, "model_start_failed", ""),
    ],
)
def test_a_sealed_job_that_another_worker_fails_is_told(
    runpod: ScriptedRunPod,
    client: httpx.Client,
    error: str,
    status: int,
    code: str,
    message: str,
) -> None:
    runpod.script = [Page("FAILED")]
    runpod.final = {"status": "FAILED", "error": error}
    failed = client.post(CHAT, json=chat())
    assert (failed.status_code, error_of(failed)["code"]) == (status, code)
    assert message in error_of(failed)["message"]


@sealing
def test_why_a_model_did_not_start_is_told_though_it_is_not_sealed(
    runpod: ScriptedRunPod, client: httpx.Client
) -> None:
    text = json.dumps({"error": {"message": "Lower MAX_MODEL_LEN."}})
    failed = REFUSAL | {"status": 503, "text": text, "start_failed": "context_too_long"}
    runpod.script = [Page("COMPLETED", [failed])]
    answer = client.post(CHAT, json=chat())
    assert (answer.status_code, error_of(answer)["code"]) == (503, "model_start_failed")
    assert "Lower MAX_MODEL_LEN" in error_of(answer)["message"]


@pytest.mark.parametrize("settings", [PAUSING], indirect=True)
def test_no_worker_is_woken_for_jobs_that_it_will_not_open_until_a_pause_is_over(
    runpod: ScriptedRunPod, fresh_client: httpx.Client
) -> None:
    runpod.script = [Page("COMPLETED", [REFUSAL | {"seal_refused": "wrong_secret"}])]
    for _ in range(3):
        refused = fresh_client.post(CHAT, json=chat())
        assert (refused.status_code, error_of(refused)["code"]) == (502, "sealing_failed")
        assert "not the proxy's secret" in error_of(refused)["message"]
    assert len(runpod.jobs) == 1
    assert int(refused.headers["retry-after"]) > 200


@pytest.mark.parametrize("settings", [PAUSING], indirect=True)
def test_workers_that_open_jobs_are_asked_on_beside_one_that_does_not(
    runpod: ScriptedRunPod, fresh_client: httpx.Client
) -> None:
    answered(runpod, {**HEAD, "text": "good", "end": True})
    assert fresh_client.post(CHAT, json=chat()).text == "good"
    runpod.reset()
    runpod.script = [Page("COMPLETED", [REFUSAL | {"seal_refused": "wrong_secret"}])]
    assert fresh_client.post(CHAT, json=chat()).status_code == 502
    runpod.reset()
    answered(runpod, {**HEAD, "text": "good again", "end": True})
    assert fresh_client.post(CHAT, json=chat()).text == "good again"


@pytest.mark.parametrize("settings", [AT_ONCE], indirect=True)
def test_a_worker_that_takes_sealed_jobs_only_is_told_to_an_unsealing_proxys_client(
    runpod: ScriptedRunPod, client: httpx.Client
) -> None:
    runpod.script = [Page("COMPLETED", [REFUSAL | {"seal_refused": "unsealed"}])]
    refused = client.post(CHAT, json=chat())
    assert (refused.status_code, error_of(refused)["code"]) == (502, "sealing_failed")
    assert "takes sealed jobs only" in error_of(refused)["message"]


@sealing
def test_a_stream_that_is_changed_on_its_way_ends_with_an_error(
    runpod: ScriptedRunPod, client: httpx.Client
) -> None:
    head = {"seq": 0, "status": 200, "content_type": "text/event-stream", "text": "data: 1\n\n"}

    def script(job: dict[str, Any]) -> None:
        salt = base64.b64decode(job["input"]["sealed"]["salt"])
        first = sealed_frame(head, salt=salt)
        forged = {"seq": 1, "run": "r", "text": "data: forged\n\n", "end": True}
        runpod.script = [Page("IN_PROGRESS", [first]), Page("COMPLETED", [forged])]

    runpod.on_job = script
    _, text = stream(client)
    assert text.startswith("data: 1\n\n")
    assert "sealing_failed" in text
    assert "forged" not in text
