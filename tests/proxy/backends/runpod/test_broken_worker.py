"""A worker or a RunPod that says nonsense is a clean 502, or is asked again: never a traceback."""

import gzip
import logging
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from starlette.responses import JSONResponse

from proxy.api.answer import MAX_MODELS
from proxy.backends.runpod.queue import MAX_SERVED
from tests.proxy.backends.runpod.test_any_json import nested
from tests.proxy.conftest import chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import BODY, CHAT, FRAMES, PATIENT, stream
from tests.proxy.scripted_runpod import Page, Raw, ScriptedRunPod
from tests.waiting import wait_until

PLAIN: dict[str, Any] = {"seq": 0, "status": 200, "content_type": "application/json", "text": "1"}
END = {"end": True}


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.exc_info] == []
    assert "Traceback" not in caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "frame",
    [
        {"status": 100},
        {"status": 101},
        {"status": 199},
        {"status": 204},
        {"status": 205},
        {"status": 304},
        {"status": 600},
        {"status": -200},
        {"status": 2**70},
        {"status": True},
        {"status": "200"},
        {"status": 200.0},
        {"status": None},
        {"status": [200]},
        {"content_type": "a/b\r\nx-evil: 1"},
        {"content_type": "a/b\n"},
        {"content_type": "a/b; x=é"},
        {"content_type": "ä/b"},
        {"content_type": ""},
        {"content_type": "nonsense"},
        {"content_type": "a/" + "b" * 10_000},
        {"content_type": "a/b; " + "b" * 10_000},
        {"content_type": None},
        {"content_type": ["a/b"]},
        {"text": 1},
        {"text": None},
        {"text": ["x"]},
        {"base64": 1},
        {"base64": None},
        {"base64": "é"},
        {"base64": "A"},
        {"run": ["a"]},
        {"run": {"a": nested(700)}},
        {"run": "a" * 10_000},
        {"headers": ["metadata"]},
        {"headers": {"metadata": 1}},
        {"headers": {"metadata": "a\r\nb: c"}},
        {"headers": {"metadata": "é"}},
        {"headers": {"metadata": "x" * 100_000}},
        {"seq": True},
        {"seq": -1},
        {"seq": 0.0},
        {"seq": "0"},
        {"seq": None},
    ],
    ids=lambda frame: repr(frame)[:40],
)
@pytest.mark.parametrize("wants_stream", [False, True])
@PATIENT
def test_a_frame_that_makes_no_sense_is_the_workers_failure(
    client: httpx.Client, runpod: ScriptedRunPod, frame: dict[str, Any], wants_stream: bool
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN | END | frame])]
    response = client.post(CHAT, json=chat(stream=wants_stream))
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")


@pytest.mark.parametrize("status", [204, 205, 304])
def test_an_answer_that_has_no_body_is_passed_on(
    client: httpx.Client, runpod: ScriptedRunPod, status: int
) -> None:
    frame = {"seq": 0, "status": status, "content_type": "", "end": True}
    runpod.script = [Page("COMPLETED", [frame])]
    response = client.post(CHAT, json=chat())
    assert (response.status_code, response.content) == (status, b"")


@pytest.mark.parametrize(
    "output",
    [nested(700), {"x": nested(700)}, None, 5, True, 1.5, [[["a"]], 5]],
    ids=lambda output: repr(output)[:40],
)
@pytest.mark.parametrize("wants_stream", [False, True])
@PATIENT
def test_an_output_of_another_worker_that_makes_no_sense_is_its_failure(
    client: httpx.Client, runpod: ScriptedRunPod, output: Any, wants_stream: bool
) -> None:
    runpod.script = [Page("COMPLETED", [output])]
    response = client.post(CHAT, json=chat(stream=wants_stream))
    if response.status_code == 200:  # it can be passed on after all
        assert not wants_stream or "[DONE]" in response.text
    else:
        assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")


def test_a_number_that_only_some_parsers_can_hold_is_passed_on(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    page = b'{"status": "COMPLETED", "stream": [{"output": {"seed": 1%s}}]}' % (b"0" * 30)
    runpod.script = [Raw(page)]
    assert client.post(CHAT, json=chat()).json() == {"seed": 10**30}


@pytest.mark.parametrize("code", ["200", "204", "304", "999", "000", "100", "600", "99", "１２３"])
def test_a_failed_job_with_a_status_that_is_no_error_is_the_workers_failure(
    client: httpx.Client, runpod: ScriptedRunPod, code: str
) -> None:
    error = str({"message": f"vLLM returned HTTP {code}: x"})
    runpod.script, runpod.final = [Page("FAILED")], {"status": "FAILED", "error": error}
    response = client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")


@pytest.mark.parametrize(
    "page",
    [
        b'{"stream": 5}',
        b'{"stream": "x"}',
        b'{"stream": {"output": 1}}',
        b'{"stream": [5]}',
        b'{"stream": [[]]}',
        b'{"stream": [{"x": 1}], "status": []}',
        b'{"status": []}',
        b'{"status": {"a": 1}, "stream": null}',
        b'{"status": null}',
        b"[]",
        b"5",
        b"",
        b"\xff",
        b'{"stream": [',
        b"[" * 100_000,
        b'{"stream": [{"output": "\\ud800"}]}',
        b'{"stream": [{"output": 1e999}]}',
    ],
    ids=lambda page: repr(page)[:40],
)
def test_a_page_of_runpods_that_makes_no_sense_is_asked_for_again(
    client: httpx.Client, runpod: ScriptedRunPod, page: bytes
) -> None:
    runpod.script = [Raw(page), Page("COMPLETED", FRAMES)]
    assert stream(client) == (200, BODY)


@pytest.mark.parametrize(
    "job_id",
    ["", "a\nb", "a\r\nx: 1", "a/b", "../x", "..", "a?b", "a#b", "a b", "é", "x" * 10_000, 5, None],
    ids=lambda job_id: repr(job_id)[:20],
)
def test_a_job_id_that_cannot_be_asked_for_is_a_502(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, job_id: Any
) -> None:
    runpod.run_answers = [JSONResponse({"id": job_id, "status": "IN_QUEUE"})]
    response = fresh_client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")
    assert "x-runpod-job-id" not in response.headers
    assert runpod.stream_calls == 0


@pytest.mark.parametrize("settings", [{"models": ""}], indirect=True)
def test_models_that_make_no_sense_are_left_out_of_the_list(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    odd = [5, {}, {"id": 5}, {"id": ""}, {"id": "x" * 201}, {"id": "a\nb"}, nested(700)]
    lengths = {"a": 8192, "b": "long", "c": True, "d": -1, "e": 2**60, "f": None}
    told = [*odd, *({"id": name, "max_model_len": value} for name, value in lengths.items())]
    runpod.script = [Page("COMPLETED", [PLAIN | END | {"models": told}])]
    assert fresh_client.post(CHAT, json=chat()).text == "1"
    listed = fresh_client.get("/v1/models").json()["data"]
    assert {model["id"]: model.get("max_model_len") for model in listed} == {
        name: 8192 if name == "a" else None for name in lengths
    }


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"models": ""}], indirect=True)
def test_a_worker_that_tells_new_models_with_each_answer_makes_no_endless_list(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    for answer in range(MAX_SERVED // MAX_MODELS + 2):
        told = [{"id": f"{answer}-{number}"} for number in range(MAX_MODELS * 2)]
        runpod.script, runpod.stream_calls = (
            [Page("COMPLETED", [PLAIN | END | {"models": told}])],
            0,
        )
        assert fresh_client.post(CHAT, json=chat()).text == "1"
    listed = fresh_client.get("/v1/models").json()["data"]
    assert len(listed) == MAX_SERVED
    assert listed[MAX_MODELS - 1]["id"] == f"0-{MAX_MODELS - 1}"


def packed(page: bytes) -> Raw:
    return Raw(gzip.compress(page), {"content-encoding": "gzip"})


def test_runpod_is_asked_for_no_packing_and_read_when_it_packs_all_the_same(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    outputs = [{"output": PLAIN | END}]
    runpod.script = [packed(msgspec.json.encode({"status": "COMPLETED", "stream": outputs}))]
    assert client.post(CHAT, json=chat()).text == "1"
    assert {headers["accept-encoding"] for headers in runpod.stream_headers} == {"identity"}


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip"])
def test_a_page_that_cannot_be_unpacked_is_asked_for_again(
    client: httpx.Client, runpod: ScriptedRunPod, encoding: str
) -> None:
    runpod.script = [Raw(b"nonsense", {"content-encoding": encoding}), Page("COMPLETED", FRAMES)]
    assert stream(client) == (200, BODY)


@pytest.mark.slow
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_page_larger_than_any_is_refused_in_little_memory(
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    monkeypatch: pytest.MonkeyPatch,
    is_packed: bool,
) -> None:
    monkeypatch.setattr("proxy.backends.runpod.endpoint.MAX_ANSWER_BYTES", 2**20)
    page = b'{"stream": [{"output": "%s"}]}' % (b"x" * 40 * 2**20)
    runpod.script = [packed(page) if is_packed else Raw(page)]
    tracemalloc.start()
    try:
        response = fresh_client.post(CHAT, json=chat())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")
    assert peak < 20 * 2**20
    wait_until(lambda: runpod.cancelled == [runpod.job_id])


@pytest.mark.parametrize("settings", [{"max_buffered_bytes": 600_000}], indirect=True)
def test_an_answer_counts_against_the_memory_for_all(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN | {"text": "x" * 800_000} | END])]
    response = fresh_client.post(CHAT, json=chat())
    assert (response.status_code, error_of(response)["code"]) == (503, "memory_limit_reached")
    for _ in range(3):  # and is given back
        runpod.script, runpod.stream_calls = (
            [Page("COMPLETED", [PLAIN | {"text": "x" * 150_000} | END])],
            0,
        )
        assert fresh_client.post(CHAT, json=chat()).status_code == 200
