"""What of a client's headers reaches vLLM, and what does not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from proxy.access.keys import Key, KeyLimits
from proxy.api.call import Call, JSONContent
from proxy.api.route_table import find_route
from proxy.app import create_app
from proxy.serving.passed_headers import passed_headers
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_streaming import CHAT
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "wire" / "passed_headers.json").read_text()
)
HEADERS: dict[str, str] = RECORDED["input"]["proxy"]["headers"]
TRACE = HEADERS["traceparent"]


def priority_of(key_priority: int, asked: str | None, field: str | None) -> str | None:
    """What vLLM is told of a key of this priority, whose client asked so by header and body."""
    fields = {} if field is None else {"priority": msgspec.Raw(field.encode())}
    content = JSONContent(b"{}", fields, fields, "m", wants_stream=False)
    call = Call("req", find_route("POST /v1/chat/completions"), "", content)
    key = Key("k", limits=KeyLimits(priority=key_priority))
    headers = {} if asked is None else {"x-vllm-priority": asked}
    return passed_headers(headers, key, call).get("x-vllm-priority")


@pytest.mark.parametrize("settings", [{"models": "tiny-chat"}], indirect=True)
def test_three_headers_travel_in_the_job_as_recorded(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", RECORDED["outputs"])]
    others = {"x-request-id": "req_recorded", "x-data-parallel-rank": "3", "x-other": "1"}
    body = RECORDED["input"]["openai_input"]
    response = client.post(CHAT, json=body, headers=HEADERS | others)
    assert response.text == RECORDED["body"]
    assert runpod.jobs[0]["input"] == RECORDED["input"]


def test_without_them_the_job_is_what_it_was(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    client.post(CHAT, json=chat(), headers={"x-request-id": "req_1"})
    assert runpod.jobs[0]["input"]["proxy"] == {"protocol": 1, "request_id": "req_1"}


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": TRACE.upper()},
        {"traceparent": TRACE[:-1]},
        {"traceparent": "x" * 300},
        {"x-session-id": "two words"},
        {"x-session-id": "s" * 201},
        {"x-session-id": ""},
        {"x-vllm-priority": "first"},
        {"x-vllm-priority": "1.5"},
        {"x-vllm-priority": "9" * 30},
        {"x-vllm-priority": "\u0663".encode()},
    ],
)
def test_a_header_that_makes_no_sense_is_left_out(
    client: httpx.Client, runpod: ScriptedRunPod, headers: dict[str, Any]
) -> None:
    runpod.script = [Page("COMPLETED", [{"ok": True}])]
    assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
    assert "headers" not in runpod.jobs[0]["input"]["proxy"]


@pytest.mark.parametrize(
    ("key", "asked", "field", "told"),
    [
        (1, None, None, None),
        (1, "5", None, "5"),
        (1, "-5", None, "0"),
        (1, None, "-5", "0"),
        (1, None, "5", "5"),
        (1, None, '"x"', None),
        (4, None, None, "-3"),
        (4, "-2", None, "-2"),
        (4, "-9", "7", "-3"),
        (4, "2", "-7", "2"),
        (4, "none", "-7", "-3"),
    ],
)
def test_a_clients_priority_is_no_better_than_its_keys(
    key: int, asked: str | None, field: str | None, told: str | None
) -> None:
    assert priority_of(key, asked, field) == told


@pytest.fixture
def server() -> Iterator[tuple[ScriptedServer, str]]:
    server = ScriptedServer()
    with serve(server.app) as url:
        yield server, url


CONFIGURATIONS = {
    "a balanced worker": """
[endpoints.lb]
kind = "load-balancing"
url = "{url}"
[models.m]
endpoint = "lb"
""",
    "a fallback": """
[endpoints.ep]
[models.m]
endpoint = "ep"
fallback = {{ url = "{url}/v1", model = "m" }}
""",
}


@pytest.mark.parametrize(("kind", "hears"), [("a balanced worker", True), ("a fallback", False)])
def test_a_balanced_worker_is_sent_them_and_another_server_is_not(
    server: tuple[ScriptedServer, str],
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    kind: str,
    hears: bool,
) -> None:
    runpod.drops_run = True
    scripted, url = server
    scripted.replies = [Reply(pieces=[b'{"ok": true}'])]
    file = tmp_path / "proxy.toml"
    file.write_text(CONFIGURATIONS[kind].format(url=url))
    headers = {"authorization": f"Bearer {KEY}"} | HEADERS
    with serve(create_app(settings_for(scripted_runpod[1], config=file))) as proxy:
        assert httpx.post(proxy + CHAT, json=chat(), headers=headers, timeout=30).is_success
    sent = {name: scripted.requests[-1]["headers"].get(name) for name in HEADERS}
    assert sent == (HEADERS if hears else dict.fromkeys(HEADERS))
