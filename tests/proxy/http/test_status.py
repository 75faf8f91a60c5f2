"""What the status page is told, and the chat by which an admin tries a model."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from proxy.telemetry import history
from tests.proxy.conftest import KEY, asked, chat, settings_for
from tests.proxy.http.test_welcome import ADMIN_KEY
from tests.proxy.scripted_runpod import Page as Step
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

AS_ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
TEXT = 'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n'
STREAM = {"seq": 0, "status": 200, "content_type": "text/event-stream", "text": TEXT, "end": True}


@pytest.fixture
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    settings: dict[str, Any],
    tmp_path: Path,
) -> Iterator[str]:
    """A proxy that no other test has used, with an admin."""
    values = {"admin_keys": ADMIN_KEY, "state_dir": tmp_path} | settings
    with serve(create_app(settings_for(scripted_runpod[1], **values))) as url:
        yield url


@pytest.fixture
def admin(proxy: str) -> Iterator[httpx.Client]:
    """An admin's program."""
    with httpx.Client(base_url=proxy, headers=AS_ADMIN, timeout=30) as client:
        yield client


@pytest.fixture
def session(proxy: str) -> Iterator[httpx.Client]:
    """An admin's browser."""
    with httpx.Client(base_url=proxy, timeout=30) as client:
        assert client.post("/admin/session", headers=AS_ADMIN).is_success
        client.headers["origin"] = proxy
        yield client


@pytest.fixture
def client(proxy: str) -> Iterator[httpx.Client]:
    """A client of that proxy."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=proxy, headers=headers, timeout=30) as client:
        yield client


def status_of(admin: httpx.Client, **query: str) -> dict[str, Any]:
    """What the page is told."""
    answer = admin.get("/admin/status", params=query)
    assert answer.headers["cache-control"] == "no-store"
    told: dict[str, Any] = answer.raise_for_status().json()
    return told


@pytest.mark.parametrize(("method", "path"), [("GET", "/admin/status"), ("POST", "/admin/chat")])
def test_only_admins_see_the_status_and_chat_by_it(
    client: httpx.Client, runpod: ScriptedRunPod, method: str, path: str
) -> None:
    def code_of(headers: dict[str, str]) -> int:
        url = client.base_url.join(path)
        return httpx.request(method, url, headers=headers, json=chat()).status_code

    assert code_of({}) == 401
    assert code_of({"authorization": "Bearer wrong"}) == 401
    assert code_of({"authorization": f"Bearer {KEY}"}) == 403
    assert runpod.jobs == []


def test_the_state_of_endpoints_is_told_and_no_worker_woken(
    awake: None, admin: httpx.Client, runpod: ScriptedRunPod
) -> None:
    def endpoint() -> dict[str, Any]:
        (told,) = status_of(admin)["endpoints"]
        return dict(told)

    wait_until(lambda: endpoint()["workers"] is not None)
    told = endpoint()
    assert (told["name"], told["state"], told["models"]) == ("ep", "ready", ["m"])
    others = {"running": 0, "starting": 0, "throttled": 0, "unhealthy": 0}
    assert told["workers"] == {"idle": 1} | others
    assert told["requests"] == {"waiting": 0, "running": 0, "in_line": 0}
    assert status_of(admin)["models"] == [{"id": "m", "state": "ready"}]
    assert runpod.jobs == []


def test_a_request_is_told_of_while_it_is_under_way(
    admin: httpx.Client, client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Step("IN_QUEUE")]
    with asked(client, stream=True):
        wait_until(lambda: status_of(admin)["endpoints"][0]["requests"]["waiting"] == 1)
        told = status_of(admin)["live"]
        (live,) = told["requests"]
        assert (told["total"], live["key"], live["model"]) == (1, "key-1", "m")
        assert (live["phase"], live["route"]) == ("waiting", "POST /v1/chat/completions")
    wait_until(lambda: status_of(admin)["live"] == {"total": 0, "requests": []})


def test_errors_are_told_with_their_code_and_not_what_was_asked(
    admin: httpx.Client, client: httpx.Client
) -> None:
    name = "<img src=x onerror=alert(1)>"
    client.post("/v1/chat/completions", json=chat(model=name))
    told = status_of(admin)
    (error,) = told["errors"]
    assert (error["outcome"], error["status"], error["key"]) == ("model_not_found", 404, "key-1")
    assert name not in json.dumps(told)


@pytest.mark.slow
def test_samples_tell_what_came_of_requests_and_only_the_new_ones_are_sent(
    admin: httpx.Client,
    client: httpx.Client,
    runpod: ScriptedRunPod,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "STEP_SECONDS", 1)
    runpod.script = [Step("COMPLETED", [STREAM])]
    assert client.post("/v1/chat/completions", json=chat(stream=True)).is_success

    def samples() -> list[dict[str, Any]]:
        return [made for made in status_of(admin)["samples"] if made["models"]]

    wait_until(lambda: samples() != [] and samples()[0]["models"]["m"]["seconds"] > 0)
    (made,) = samples()
    assert made["completed"] == 1
    assert made["keys"]["key-1"]["requests"] == 1
    assert made["now"]["requests"] == {"waiting": 0, "running": 0, "in_line": 0}
    copy, number = status_of(admin)["copy"], made["number"]
    later = status_of(admin, have=f"ffffffff:1,{copy}:{number}")["samples"]
    assert all(sample["number"] > number for sample in later)
    assert made in status_of(admin, have=f"ffffffff:{number}")["samples"]
    assert made in status_of(admin, have="nonsense,:::")["samples"]


def test_a_session_chats_as_the_admin_and_nowhere_else(
    session: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Step("COMPLETED", [STREAM])]
    answer = session.post("/admin/chat", json=chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert '"Hi"' in answer.text
    (job,) = runpod.jobs
    assert job["input"]["openai_route"] == "/v1/chat/completions"
    assert session.post("/v1/chat/completions", json=chat()).status_code == 401


def test_a_page_of_another_origin_cannot_chat_by_the_session(
    session: httpx.Client, runpod: ScriptedRunPod
) -> None:
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert session.post("/admin/chat", json=chat(), headers=headers).status_code == 403
        assert session.get("/admin/status", headers=headers).status_code == 403
    assert runpod.jobs == []


def test_a_chat_that_is_left_gives_up_its_job(
    session: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Step("IN_QUEUE", hold=threading.Event())]
    with session.stream("POST", "/admin/chat", json=chat(stream=True)):
        wait_until(lambda: runpod.jobs != [])
    wait_until(lambda: runpod.cancelled != [])


@pytest.mark.parametrize("settings", [{"routes": "POST /v1/embeddings"}])
def test_there_is_no_chat_where_clients_have_none(
    admin: httpx.Client, runpod: ScriptedRunPod
) -> None:
    assert admin.post("/admin/chat", json=chat()).status_code == 404
    assert runpod.jobs == []


def test_a_session_reads_the_ledger_here_and_not_at_the_clients_route(
    session: httpx.Client,
) -> None:
    assert session.get("/admin/usage", params={"keys": "all"}).json()["object"] == "usage"
    assert session.get("/v1/usage", params={"keys": "all"}).status_code == 401


def test_a_session_that_ends_sees_nothing_more(session: httpx.Client) -> None:
    assert session.get("/admin/status").is_success
    assert session.delete("/admin/session").is_success
    assert session.get("/admin/status").status_code == 401
