"""What browsers are told, so that pages of allowed origins can use the proxy and no others."""

import logging

import httpx
import pytest

from proxy.serving.sharing import Sharing
from tests.proxy.conftest import chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.waiting import wait_until

ORIGIN = "https://chat.example"
CHAT = "/v1/chat/completions"
FAILED = {
    "seq": 0,
    "status": 500,
    "content_type": "application/json",
    "text": '{"error": {"message": "out of memory"}}',
    "end": True,
}

pytestmark = pytest.mark.parametrize(
    "settings", [{"cors_origins": f"https://a.example,{ORIGIN}"}], ids=["two origins"]
)


def readable(answer: httpx.Response) -> set[str]:
    """The names of the headers that the page may read."""
    return set(answer.headers.get("access-control-expose-headers", "").split(", "))


def preflight(client: httpx.Client, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    return client.options(CHAT, headers=headers)


def test_a_page_may_send_any_header_after_it_has_asked(client: httpx.Client) -> None:
    answer = preflight(client, ORIGIN)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    allowed = answer.headers["access-control-allow-headers"]
    assert allowed == "authorization,content-type,x-stainless-lang"


def test_a_page_of_another_origin_may_not(client: httpx.Client) -> None:
    answer = preflight(client, "https://evil.example")
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_reads_that_its_sdk_should_not_repeat_a_request(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [FAILED])]
    answer = client.post(CHAT, json=chat(), headers={"origin": ORIGIN})
    assert answer.status_code == 500
    assert {"x-should-retry", "x-request-id", "x-runpod-job-id"} <= set(answer.headers)
    assert {"x-should-retry", "x-request-id", "x-runpod-job-id"} <= readable(answer)


@pytest.mark.parametrize(
    ("path", "key", "status"), [("/v1/models", "sk-no", 401), ("/no/such", "sk-test", 404)]
)
def test_a_page_reads_errors_too(client: httpx.Client, path: str, key: str, status: int) -> None:
    headers = {"origin": ORIGIN, "authorization": f"Bearer {key}"}
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "x-should-retry" in readable(answer)


def test_a_preflight_has_an_id_a_line_in_the_log_and_a_count(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"model": "", "status": "200", "outcome": "completed"}
    before = value(client, "proxy_requests_total", **labels)
    with caplog.at_level(logging.INFO, "proxy.access"):
        request_id = preflight(client, ORIGIN).headers["x-request-id"]
        wait_until(lambda: f"{request_id} OPTIONS {CHAT} 200 " in caplog.text)
    assert value(client, "proxy_requests_total", **labels) > before


def test_a_page_may_reach_a_proxy_in_a_private_network(client: httpx.Client) -> None:
    headers = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    answer = client.options(CHAT, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"
    refused = client.options(CHAT, headers=headers | {"origin": "https://evil.example"})
    assert refused.status_code == 400


def test_a_page_reads_what_nobody_caught(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Sharing, "share", breaks)
    answer = client.post(CHAT, json=chat(), headers={"origin": ORIGIN})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-request-id"].startswith("req_")
