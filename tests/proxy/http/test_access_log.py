"""What each answer carries, and what is written down of it."""

import logging

import httpx
import pytest

from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.waiting import wait_until


@pytest.mark.parametrize("given", ["abc", "Root=1-67891233-abcdef", "a/b+c@d~e:f_g.h", "x" * 200])
def test_a_clients_own_id_is_used(client: httpx.Client, given: str) -> None:
    assert client.get("/health", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["a b", "a,b", 'a"b', "x" * 201, ""])
def test_an_id_that_cannot_be_used_is_replaced_and_the_log_says_so(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    with caplog.at_level(logging.INFO, "proxy.access"):
        answer = client.get("/health", headers={"x-request-id": given})
        request_id = answer.headers["x-request-id"]
        wait_until(lambda: request_id in caplog.text)
    assert request_id.startswith("req_")
    assert f"its x-request-id of {len(given)} characters is no plain id" in caplog.text


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/m", "/metrics"])
def test_head_is_answered_as_get_is(
    client: httpx.Client, runpod: ScriptedRunPod, path: str
) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert runpod.jobs == []


def test_head_without_a_key_is_refused_as_get_is(proxy_url: str) -> None:
    assert httpx.head(f"{proxy_url}/v1/models").status_code == 401
