"""Input that is wrong on purpose: a clear error in OpenAI's envelope, no job, nothing logged."""

import gzip
import json
import logging
import zlib
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.api.call import _fields, _named_twice
from proxy.api.route_table import ROUTES
from tests.proxy.conftest import AS_JSON, chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod

CHAT = "/v1/chat/completions"
SECRET = "my-darkest-secret"
MESSAGES = b'"messages": [{"role": "user", "content": "%s"}]' % SECRET.encode()


def deep(levels: int) -> bytes:
    return b'{"model": "m", %s, "x": %s%s}' % (MESSAGES, b"[" * levels, b"]" * levels)


WRONG = {
    "not UTF-8": b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}',
    "UTF-16": json.dumps(chat()).encode("utf-16"),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + json.dumps(chat()).encode(),
    "a model with half a surrogate pair": b'{"model": "m\\ud800", "messages": [1]}',
    "half a surrogate pair outside of a string": b'{"model": "m", %s, "x": \\ud800}' % MESSAGES,
    "NaN": b'{"model": "m", %s, "temperature": NaN}' % MESSAGES,
    "infinity": b'{"model": "m", %s, "temperature": -Infinity}' % MESSAGES,
    "a comment": b'{"model": "m", %s /* hi */}' % MESSAGES,
    "a trailing comma": b'{"model": "m", %s,}' % MESSAGES,
    "two objects": b'{"model": "m", %s} {}' % MESSAGES,
    "a control character": b'{"model": "m", %s, "x": "\x00"}' % MESSAGES,
    "two models": b'{"model": "m", %s, "model": "m"}' % MESSAGES,
    "two models, spelt apart": b'{"model": "m", %s, "\\u006dodel": "other"}' % MESSAGES,
    "two of a field we do not read": b'{"x": [1], "model": "m", %s, "x": {"y": 2}}' % MESSAGES,
    "a name inside a value": b'{"x": "\\", \\"y\\": 1, ", "model": "m", %s, "x": 1, "y": 1}'
    % MESSAGES,
    "too deep": deep(200),
    "far too deep": deep(200_000),
    "deep with closing brackets in strings": b'{"model": "m", %s, "x": %s"]"%s}'
    % (MESSAGES, b'["]", ' * 150, b"]" * 150),
    "a million tiny messages": b'{"model": "m", "messages": [%s]}'
    % b",".join([b'{"role":"user"}'] * 600_000),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_is_a_clear_error_and_no_job(
    client: httpx.Client, runpod: ScriptedRunPod, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.DEBUG)
    response = client.post(CHAT, content=WRONG[name], headers=AS_JSON)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"
    assert SECRET not in response.text
    assert SECRET not in caplog.text
    assert runpod.jobs == []


@pytest.mark.parametrize("number", [b"9" * 4301, b"-" + b"9" * 4301, b"1e999", b"9" * 309 + b".5"])
@pytest.mark.parametrize("place", [b"%s", b"-%s", b'[{"y": ["1e999", %s]}]', b"[0, %s \n]"])
@pytest.mark.parametrize("padding", [0, 100_000])
def test_a_number_that_is_too_large_is_refused_by_its_fields_name(
    client: httpx.Client, runpod: ScriptedRunPod, number: bytes, place: bytes, padding: int
) -> None:
    value = place % number.removeprefix(b"-")
    body = b'{"model": "m", %s, "y": 1, "x": %s, "z": "%s"}' % (MESSAGES, value, b"a" * padding)
    response = client.post(CHAT, content=body, headers=AS_JSON)
    assert response.status_code == 400
    assert error_of(response)["param"] == "x"
    assert runpod.jobs == []


@pytest.mark.parametrize(
    "fields",
    [
        {"x": [1e308, 12345678901234567890, -1e-999]},
        {"x": "1e999", "y": ["9" * 5000]},
        {"x": [[[1]], {"y": {"z": []}}] * 100},
        {"x": '", "model": "other", "model": "other'},
        {"x": "}" * 500 + "[" * 500},
        {"x": 10**400, "y": 1e-300, "z": "\u2028\u0000"},
        {"tools": [{"function": {"parameters": {"model": "m", "stream": 3}}}]},
    ],
)
def test_a_body_that_only_looks_odd_reaches_the_worker_as_it_was_sent(
    client: httpx.Client, runpod: ScriptedRunPod, fields: dict[str, Any]
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    body = json.dumps(chat(**fields), indent=3).encode()
    assert client.post(CHAT, content=body, headers=AS_JSON).status_code == 200
    sent = json.dumps(runpod.jobs[0]["input"]["openai_input"])
    assert json.loads(sent) == json.loads(body)


@pytest.mark.parametrize(
    "text",
    [
        rb"cut in the middle: \ud83d",
        rb"\uDE00 is the other half",
        rb"\ud83d\ud83d\ude00\ude00 \ud83d\u0041 \ud83d\\ude00",
        rb"\\ud83d \\\ud83d \\\\ude00 \\\\\ude00 \"\ud83d\"",
        "é \\ud83d 🙂".encode(),
        rb"\ud83d\ude00" * 10_000 + rb"\ud83d",
        b"x" * 65_500 + rb"\ud83d\ude00\ud83d" * 10,
    ],
)
@pytest.mark.parametrize("settings", [{}, {"count_tokens": True}], indirect=True)
def test_half_a_surrogate_pair_reaches_the_worker_as_it_was_sent(
    client: httpx.Client, runpod: ScriptedRunPod, text: bytes
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    messages = b'[{"role": "user", "content": "%s"}]' % text
    body = b'{"x": "%s", "model": "m", "messages": %s, "stream": false}' % (text, messages)
    assert client.post(CHAT, content=body, headers=AS_JSON).status_code == 200
    assert b'"openai_input":%s' % body in runpod.raw_jobs[0]
    runpod.reset()
    runpod.script = [Page("COMPLETED", ['data: {"choices": []}\n\ndata: [DONE]\n\n'])]
    body = body.replace(b"false", b"true")
    assert client.post(CHAT, content=body, headers=AS_JSON).status_code == 200
    assert b'"messages":%s' % messages in runpod.raw_jobs[0].replace(b'": [', b'":[')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    pairs=st.lists(st.tuples(st.sampled_from(["a", "b", "c\n", '"', "ü"]), VALUES), max_size=4),
    indent=st.sampled_from([None, 2]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_name_that_stands_twice_is_always_found(
    pairs: list[tuple[str, Any]], indent: int | None
) -> None:
    gap = "\n  " if indent else ""
    raw = ",".join(f"{gap}{json.dumps(k)} : {json.dumps(v, indent=indent)}" for k, v in pairs)
    body = f" {{{raw}{gap}}} ".encode()
    names = [name for name, _ in pairs]
    found = _named_twice(body, _fields.decode(body))
    assert (found is not None) == (len(set(names)) < len(names))


PACKED = gzip.compress(json.dumps(chat()).encode())


@pytest.mark.parametrize(
    ("content", "encoding", "status", "code"),
    [
        (PACKED[:-9], "gzip", 400, None),
        (PACKED + b"more", "gzip", 400, None),
        (b"no gzip at all", "gzip", 400, None),
        (PACKED[:20] + b"\x00\x01" + PACKED[22:], "gzip", 400, None),
        (gzip.compress(b" " * 50_000_000), "gzip", 413, "request_too_large"),
        (zlib.compress(b"{}"), "deflate", 415, "unsupported_media_type"),
        (b"{}", "br", 415, "unsupported_media_type"),
        (PACKED, "gzip, gzip", 415, "unsupported_media_type"),
    ],
    ids=["cut", "longer", "plain", "damaged", "too large", "deflate", "brotli", "twice"],
)
def test_a_body_that_cannot_be_unpacked_is_a_clear_error(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    content: bytes,
    encoding: str,
    status: int,
    code: str | None,
) -> None:
    response = client.post(CHAT, content=content, headers=AS_JSON | {"content-encoding": encoding})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert runpod.jobs == []


@pytest.mark.parametrize("settings", [{"max_buffered_bytes": 10}], indirect=True)
def test_a_body_for_which_there_is_no_memory_is_refused_without_a_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    response = client.post(CHAT, json=chat())
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert error_of(response)["code"] == "memory_limit_reached"
    assert runpod.jobs == []


def test_a_packed_body_is_unpacked(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    response = client.post(CHAT, content=PACKED, headers=AS_JSON | {"content-encoding": "gzip"})
    assert response.status_code == 200
    assert runpod.jobs[0]["input"]["openai_input"] == chat()


FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("multipart/form-data", PART % (b"model", b"m") + b"--b--"),
        ("multipart/form-data; boundary=", PART % (b"model", b"m") + b"--b--"),
        (f"multipart/form-data; boundary={'b' * 71}", b""),
        (FORM, b""),
        (FORM, b"{}"),
        (FORM, PART % (b"model", b"m")),
        (FORM, b"--b\r\n\r\nno name\r\n--b--\r\n"),
        (FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\nm\r\n--b--\r\n"),
        (FORM, PART % (b"model", b"m") + PART % (b"model", b"other") + b"--b--\r\n"),
        (FORM, PART % (b"model", b"\xff") + b"--b--\r\n"),
        (FORM, PART % (b"file", b"x") * 200 + b"--b--\r\n"),
    ],
)
def test_a_wrong_form_is_a_clear_error(
    client: httpx.Client, runpod: ScriptedRunPod, content_type: str, content: bytes
) -> None:
    headers = {"content-type": content_type}
    response = client.post("/v1/audio/transcriptions", content=content, headers=headers)
    assert response.status_code == 400
    error_of(response)
    assert runpod.jobs == []


def test_a_job_above_runpods_limit_is_refused_before_it_is_sent(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    files = {"file": ("a.wav", b"\x00" * 9_000_000, "audio/wav")}
    response = client.post("/v1/audio/transcriptions", data={"model": "m"}, files=files)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    assert runpod.jobs == []


@given(content=st.binary(max_size=300) | st.text(max_size=100).map(str.encode), data=st.data())
@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_bytes_at_all_make_the_proxy_fail(
    client: httpx.Client, runpod: ScriptedRunPod, content: bytes, data: st.DataObject
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    method, path = data.draw(st.sampled_from([route.split() for route in ROUTES]))
    content_type = data.draw(st.sampled_from(["application/json", FORM, "text/plain"]))
    wrapped = data.draw(st.sampled_from([b"%s", b'{"model": "m", "messages": %s}', b"--b\r\n%s"]))
    response = client.request(
        method,
        path.replace("{id}", "x"),
        content=wrapped % content,
        headers={"content-type": content_type},
    )
    assert response.status_code in (200, 400, 404, 415)
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"]
        assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON ;x=y",
        "application/vnd.api+json",
    ],
)
def test_json_may_be_called_by_any_of_its_names(
    client: httpx.Client, runpod: ScriptedRunPod, content_type: str
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    headers = {"content-type": content_type}
    assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
    assert runpod.jobs[0]["input"]["openai_input"] == chat()


@pytest.mark.parametrize("path", [CHAT, "/v1/audio/transcriptions", "/tokenize"])
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/plain;charset=UTF-8",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json-seq",
        "application/json, text/plain",
        "application/json;" + "x" * 300,
    ],
)
def test_a_body_that_is_not_called_json_is_no_job(
    client: httpx.Client, runpod: ScriptedRunPod, content_type: str | None, path: str
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.post(path, content=json.dumps(chat()).encode(), headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"
    assert runpod.jobs == []


def test_a_form_is_taken_where_a_route_takes_one_and_nowhere_else(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    content = PART % (b"model", b"m") + PART % (b"messages", b"[]") + b"--b--\r\n"
    response = client.post(CHAT, content=content, headers={"content-type": FORM})
    assert response.status_code == 415
    assert runpod.jobs == []


def test_a_byte_order_mark_stays_behind(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    body = b"\xef\xbb\xbf" + json.dumps(chat()).encode()
    assert client.post(CHAT, content=body, headers=AS_JSON).status_code == 200
    assert runpod.jobs[0]["input"]["openai_input"] == chat()
    assert b"\xef\xbb\xbf" not in runpod.raw_jobs[0]


@pytest.mark.parametrize("between", [b"", b"\x00" * 7])
def test_gzip_of_several_members_is_unpacked(
    client: httpx.Client, runpod: ScriptedRunPod, between: bytes
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    body = json.dumps(chat(text="x" * 200_000)).encode()
    packed = between.join([gzip.compress(body[:9]), gzip.compress(b""), gzip.compress(body[9:])])
    headers = AS_JSON | {"content-encoding": "gzip"}
    assert client.post(CHAT, content=packed + between, headers=headers).status_code == 200
    assert runpod.jobs[0]["input"]["openai_input"] == json.loads(body)
