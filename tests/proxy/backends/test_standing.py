"""A key that RunPod refuses, and an endpoint it does not know: said in the log, once per change."""

import logging
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from proxy.app import create_app
from proxy.backends import standing
from proxy.backends.standing import Standing
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve

CHAT = "/v1/chat/completions"
FRAME = {"seq": 0, "status": 200, "content_type": "application/json", "text": "{}", "end": True}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines about the standing of endpoints."""
    return [r.getMessage() for r in caplog.records if r.name == "proxy.backends.standing"]


@pytest.mark.slow
def test_a_refused_key_is_told_once_and_that_it_works_again(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standing, "CALM_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "proxy.backends.standing")
    runpod.run_answers = [Response(status_code=status) for status in (401, 403, 401, 404)]
    settings = settings_for(scripted_runpod[1], runpod_api_key="rpa_SECRET")
    with serve(create_app(settings)) as url:
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=url, headers=headers, timeout=100) as client:
            while runpod.run_answers:
                client.post(CHAT, json=chat())
            runpod.script = [Page("COMPLETED", [FRAME])]
            assert client.post(CHAT, json=chat()).status_code == 200
    lines = [line for line in said(caplog) if "works again" not in line]
    assert lines[0].startswith(
        "endpoint ep: the key that RUNPOD_API_KEY holds is refused; see python -m proxy --check"
    )
    assert any(line.startswith("endpoint ep: no endpoint of this id is known") for line in lines)
    assert said(caplog)[-1] == "endpoint ep works again"
    assert all(one != other for one, other in zip(said(caplog), said(caplog)[1:], strict=False))
    assert "SECRET" not in caplog.text


@pytest.mark.slow
def test_a_refused_key_of_a_fallback_is_told_by_its_variable(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "proxy.backends.standing")
    monkeypatch.setenv("FALLBACK_KEY", "sk-SECRET")
    runpod.script = [Page("FAILED")]
    server = ScriptedServer()
    server.replies = [Reply(401, headers={})]
    with serve(server.app) as server_url:
        path = tmp_path / "proxy.toml"
        path.write_text(
            "[endpoints.ep]\n[models.m]\nendpoint = 'ep'\n"
            f"fallback = {{ url = '{server_url}/v1', model = 'm', api_key_env = 'FALLBACK_KEY' }}\n"
        )
        settings = settings_for(scripted_runpod[1], config=path)
        with serve(create_app(settings)) as url:
            headers = {"authorization": f"Bearer {KEY}"}
            httpx.post(f"{url}{CHAT}", json=chat(), headers=headers, timeout=100)
    assert said(caplog) == [
        "fallback 127.0.0.1: the key that FALLBACK_KEY holds is refused; "
        "see python -m proxy --check"
    ]


def test_calls_refused_and_taken_by_turns_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "proxy.backends.standing")
    endpoint = Standing("endpoint ep", "RUNPOD_API_KEY")
    for status in (200, 401, 200, 403, 404, 200, 401, 404):
        endpoint.note(status)
    assert [line.partition(";")[0] for line in said(caplog)] == [
        "endpoint ep: the key that RUNPOD_API_KEY holds is refused",
        "endpoint ep: no endpoint of this id is known",
    ]
