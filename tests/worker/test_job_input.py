"""The three forms of a job's input, and what is refused."""

import json
from typing import Any

import pytest

from worker.errors import InvalidInput
from worker.job_input import VLLMRequest, parse, wants_frames

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PROXY = {"protocol": 1, "request_id": "req_7"}


def parsed(**job_input: Any) -> VLLMRequest:
    return parse({"id": "job-1", "input": job_input}, "tiny-chat")


def body_of(request: VLLMRequest) -> Any:
    assert request.body is not None
    return json.loads(request.body)


def refused(**job_input: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parsed(**job_input)
    return caught.value


def test_openai_input_passes_untouched() -> None:
    body = {"messages": MESSAGES, "novel": {"option": [1, None, 0.5]}, "model": "x"}
    request = parsed(openai_route=CHAT, openai_input=body)
    assert (request.method, request.route, body_of(request)) == ("POST", CHAT, body)


@pytest.mark.parametrize(
    "told",
    [
        {"authorization": "Bearer x", "x-request-id": "other", "X-Session-ID": "s", "host": "x"},
        {"x-session-id": "a b", "traceparent": "a\r\nx: y", "x-vllm-priority": 3},
        {"x-session-id": ""},
        {"x-session-id": "s" * 201},
        ["x-session-id"],
        "x-session-id",
        None,
    ],
)
def test_no_other_header_is_handed_on(told: Any) -> None:
    request = parsed(openai_input={"messages": MESSAGES}, proxy=PROXY | {"headers": told})
    assert request.headers == {}
    assert request.request_id == "req_7"


def test_openai_input_without_a_route_is_a_chat() -> None:
    assert parsed(openai_input={"messages": MESSAGES}).route == CHAT


@pytest.mark.parametrize("rest", [{}, {"openai_input": None}, {"openai_input": {}}])
def test_the_models_are_read_with_get(rest: dict[str, Any]) -> None:
    request = parsed(openai_route="/v1/models", **rest)
    assert (request.method, request.body) == ("GET", None)


def test_an_empty_body_stays_a_post() -> None:
    request = parsed(openai_route=CHAT, openai_input={})
    assert (request.method, request.body) == ("POST", b"{}")


def test_a_method_is_respected() -> None:
    assert parsed(openai_route="/v1/responses/r1", method="delete").method == "DELETE"
    assert parsed(openai_route="/v1/responses/r1/cancel", method="POST").method == "POST"


def test_any_route_takes_any_json_body() -> None:
    request = parsed(route="/tokenize?x=1", body=[1, "é"])
    assert (request.method, request.route, body_of(request)) == ("POST", "/tokenize?x=1", [1, "é"])


def test_any_route_without_a_body_is_read_with_get() -> None:
    assert parsed(route="/metrics").method == "GET"


def test_a_body_that_is_not_json_comes_as_base64() -> None:
    request = parsed(
        route="/v1/audio/transcriptions", body_base64="AAH/", content_type="multipart/form-data"
    )
    assert (request.body, request.content_type) == (b"\x00\x01\xff", "multipart/form-data")


def test_the_shorthand_fills_in_the_model_and_merges_the_sampling_params() -> None:
    request = parsed(prompt="once", sampling_params={"max_tokens": 3}, stream=True)
    assert request.route == "/v1/completions"
    assert body_of(request) == {
        "model": "tiny-chat",
        "max_tokens": 3,
        "stream": True,
        "prompt": "once",
    }


def test_the_shorthand_with_messages_is_a_chat() -> None:
    request = parsed(messages=MESSAGES, sampling_params={"model": "lora"})
    assert request.route == CHAT
    assert body_of(request) == {"model": "lora", "stream": False, "messages": MESSAGES}


def test_sampling_fields_beside_a_prompt_count_unless_sampling_params_has_them() -> None:
    request = parsed(
        prompt="once", max_tokens=5, temperature=0, stop=["x"], top_k=None, sampling_params={"n": 2}
    )
    assert body_of(request) == {
        "model": "tiny-chat",
        "max_tokens": 5,
        "temperature": 0,
        "stop": ["x"],
        "n": 2,
        "stream": False,
        "prompt": "once",
    }
    request = parsed(messages=MESSAGES, max_tokens=5, sampling_params={"max_tokens": 6}, model="l")
    assert (body_of(request)["max_tokens"], body_of(request)["model"]) == (6, "l")


def test_what_means_nothing_beside_a_prompt_is_named_and_never_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert "max_tokenz" not in body_of(parsed(prompt="x", max_tokenz="private", stream=False))
    assert "'max_tokenz'" in caplog.text
    assert "private" not in caplog.text
    caplog.clear()
    parsed(prompt="x", sampling_params={}, stream=True, proxy=PROXY, max_batch_size=1)
    assert not caplog.text


def test_a_lone_surrogate_in_a_prompt_reaches_vllm_as_it_came() -> None:
    request = parsed(prompt="\ud800")
    assert body_of(request)["prompt"] == "\ud800"


def test_the_request_id_is_the_proxys_or_else_the_jobs() -> None:
    assert parsed(prompt="x").request_id == "job-1"
    assert parsed(prompt="x", proxy=PROXY).request_id == "req_7"
    assert parsed(prompt="x", proxy={"protocol": 1}).request_id == "job-1"


def test_frames_are_for_our_proxy() -> None:
    assert wants_frames({"input": {"proxy": PROXY}})
    assert not wants_frames({"input": {"prompt": "x"}})
    assert not wants_frames({"input": None})


@pytest.mark.parametrize(
    "route",
    [
        "",
        "v1/models",
        "http://elsewhere/v1/models",
        "//elsewhere/v1/models",
        "/\\elsewhere",
        "/v1/../metrics",
        "/v1/%2e%2E/metrics",
        "/v1\\..\\metrics",
        "/v1/models#x",
        "/v1/models HTTP/1.1\r\nHost: x",
        "/v1/mödels",
        "/./metrics",
    ],
)
def test_a_route_that_is_not_a_plain_path_on_vllm_is_refused(route: str) -> None:
    assert refused(route=route).param == "route"
    assert refused(openai_route=route).param == "openai_route"


@pytest.mark.parametrize(
    ("job_input", "param"),
    [
        ({}, "input"),
        ({"sampling_params": {}}, "input"),
        ({"openai_route": CHAT, "openai_input": "text"}, "openai_input"),
        ({"openai_route": 7}, "openai_route"),
        ({"route": "/x", "method": "TRACE"}, "method"),
        ({"route": "/x", "method": 1}, "method"),
        ({"route": "/x", "body_base64": "?"}, "body_base64"),
        ({"route": "/x", "body_base64": "é"}, "body_base64"),
        ({"route": "/x", "body_base64": "AAAA", "content_type": "a\r\nb: c"}, "content_type"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "sampling_params": []}, "sampling_params"),
        ({"prompt": "x", "proxy": {"protocol": 2}}, "proxy.protocol"),
        ({"prompt": "x", "proxy": True}, "proxy.protocol"),
        ({"prompt": "x", "proxy": PROXY | {"request_id": "a\nb"}}, "proxy.request_id"),
    ],
)
def test_wrong_input_is_refused_and_the_part_at_fault_named(
    job_input: dict[str, Any], param: str
) -> None:
    error = refused(**job_input)
    assert error.param == param
    assert json.loads(error.body())["error"]["type"] == "invalid_request_error"


def test_an_input_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidInput):
        parse({"id": "job-1", "input": "text"}, None)
