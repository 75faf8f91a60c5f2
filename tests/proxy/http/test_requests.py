"""What a client may send, and what it is told when it sends something else: never a job."""

from typing import Any

import httpx
import pytest

from tests.proxy.conftest import AS_JSON, chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod

CHAT = "/v1/chat/completions"
MESSAGE = {"role": "user", "content": "hi"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    envelope = response.json()
    assert set(envelope) == {"error"}
    error: dict[str, Any] = envelope["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b'{"model": "m", "messages": [NaN]}', None),
        (b"\xff\xfe", None),
        (b"[]", None),
        (b'"text"', None),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": 3, "messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": "", "messages": [{"role": "user", "content": "hi"}]}', "model"),
        (b'{"model": "m"}', "messages"),
        (b'{"model": "m", "messages": []}', "messages"),
        (b'{"model": "m", "messages": "hi"}', "messages"),
        (b'{"model": "m", "messages": ["hi"]}', "messages[0]"),
        (b'{"model": "m", "messages": [{"content": "hi"}]}', "messages[0].role"),
        (b'{"model": "m", "messages": [{"role": "user"}], "stream": "yes"}', "stream"),
    ],
)
def test_a_wrong_body_is_refused_without_a_job(
    client: httpx.Client, runpod: ScriptedRunPod, body: bytes, param: str | None
) -> None:
    response = client.post(CHAT, content=body, headers=AS_JSON)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert runpod.jobs == []


@pytest.mark.parametrize(("prompt", "is_wrong"), [(3, True), (None, True), ({}, True)])
def test_a_wrong_prompt_is_refused_without_a_job(
    client: httpx.Client, runpod: ScriptedRunPod, prompt: Any, is_wrong: bool
) -> None:
    response = client.post("/v1/completions", json={"model": "m", "prompt": prompt})
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"
    assert runpod.jobs == []


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer sk-wrong", "sk-test", "Basic sk-test"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_missing_or_wrong_key_is_refused_without_a_job(
    proxy_url: str, runpod: ScriptedRunPod, header: str | None, path: str
) -> None:
    headers = {} if header is None else {"authorization": header}
    response = httpx.post(proxy_url + path, json=chat(), headers=headers, timeout=30)
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    assert runpod.jobs == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m"])
def test_the_list_of_models_needs_a_key(proxy_url: str, path: str) -> None:
    assert httpx.get(proxy_url + path, timeout=30).status_code == 401


def test_an_unknown_model_is_refused_without_a_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    response = client.post(CHAT, json=chat(model="other"))
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert runpod.jobs == []


def test_an_unknown_route_is_an_openai_error(client: httpx.Client) -> None:
    response = client.post("/v1/nothing", json={})
    assert response.status_code == 404
    assert error_of(response)["code"] == "unknown_url"


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("DELETE", "/v1/models")])
def test_a_wrong_method_is_an_openai_error(client: httpx.Client, method: str, path: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert error_of(response)["code"] == "method_not_allowed"
    assert response.headers["allow"]


@pytest.mark.parametrize("settings", [{"max_body_bytes": 1000}])
@pytest.mark.parametrize("size", [1001, 5_000_000])
def test_a_body_over_the_limit_is_refused_without_a_job(
    client: httpx.Client, runpod: ScriptedRunPod, size: int
) -> None:
    response = client.post(CHAT, content=b" " * size, headers=AS_JSON)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    assert runpod.jobs == []


def test_a_refusal_tells_the_sdk_not_to_repeat_the_request(client: httpx.Client) -> None:
    assert client.post(CHAT, content=b"{", headers=AS_JSON).headers["x-should-retry"] == "false"


def test_the_body_reaches_the_worker_as_it_was_sent(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    body = chat(unknown_field={"deep": [1, 2.50, None]}, temperature=0.0, text="\u2028 ẞ 🌍")
    assert client.post(CHAT, json=body).status_code == 200
    assert runpod.jobs[0]["input"]["openai_route"] == CHAT
    assert runpod.jobs[0]["input"]["openai_input"] == body


def test_every_job_has_limits_of_its_own(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    client.post(CHAT, json=chat())
    policy = runpod.jobs[0]["policy"]
    assert 5_000 <= policy["executionTimeout"] < policy["ttl"] <= 7 * 24 * 3600 * 1000


def test_a_request_id_from_the_client_is_kept(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    response = client.post(CHAT, json=chat(), headers={"x-request-id": "req-from-me"})
    assert response.headers["x-request-id"] == "req-from-me"
    assert runpod.jobs[0]["input"]["proxy"] == {"protocol": 1, "request_id": "req-from-me"}


def test_an_odd_request_id_is_replaced(client: httpx.Client) -> None:
    response = client.get("/health", headers={"x-request-id": "a b" * 100})
    assert response.headers["x-request-id"].startswith("req_")


def test_the_models_are_listed_without_a_job(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["m"]
    one = client.get("/v1/models/m").json()
    looks_differ = {"state", "state_reason"}  # a look at the endpoint may come in between
    assert one.keys() == models["data"][0].keys() > looks_differ
    for field in one.keys() - looks_differ:
        assert one[field] == models["data"][0][field]
    assert client.get("/v1/models/other").status_code == 404
    assert runpod.jobs == []


@pytest.mark.parametrize("settings", [{"models": ""}])
def test_without_names_the_endpoint_stands_for_its_model_until_it_is_known(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [{"model": "org/served", "choices": []}])]
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["ep"]
    client.post(CHAT, json=chat(model="ep"))
    assert "model" not in runpod.jobs[0]["input"]["openai_input"]
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["org/served"]
    assert client.get("/v1/models/org/served").status_code == 200


@pytest.mark.parametrize("settings", [{"api_keys": "", "allow_anonymous": True}])
def test_a_proxy_may_be_open_to_everybody(proxy_url: str) -> None:
    assert httpx.get(proxy_url + "/v1/models", timeout=30).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_needs_no_key(proxy_url: str, path: str) -> None:
    assert httpx.get(proxy_url + path, timeout=30).status_code == 200
