"""Who may start jobs where no key is needed: programs, and pages of the listed origins."""

import httpx
import pytest

from tests.proxy.conftest import chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example"
OPEN = {"api_keys": "", "allow_anonymous": True}

FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://127.0.0.1"},
    {"origin": f"{PAGE}:8443"},
    {"origin": f"{PAGE}.evil.example"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("settings", [OPEN, OPEN | {"cors_origins": PAGE}])
@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CHAT),
        ("POST", "/tokenize"),
        ("POST", "/v1/models/m/warm"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ],
)
def test_a_page_of_another_origin_starts_no_job(
    client: httpx.Client, runpod: ScriptedRunPod, method: str, path: str, headers: dict[str, str]
) -> None:
    content = None if method == "GET" else b""
    response = client.request(method, path, content=content, headers=headers)
    assert response.status_code == 403
    assert error_of(response)["code"] == "permission_denied"
    assert runpod.jobs == []


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        (OPEN, {}),
        (OPEN, {"sec-fetch-site": "none"}),
        (OPEN | {"cors_origins": PAGE}, {"origin": PAGE, "sec-fetch-site": "cross-site"}),
        (OPEN | {"cors_origins": "null"}, {"origin": "null"}),
        (OPEN | {"cors_origins": "*"}, {"origin": "https://any.example"}),
        ({}, {"origin": "https://any.example"}),
    ],
)
def test_programs_listed_pages_and_holders_of_a_key_are_served(
    client: httpx.Client, runpod: ScriptedRunPod, headers: dict[str, str]
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
