"""The log, at its most talkative, holds no key, no prompt and no answer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import websockets.exceptions
import websockets.sync.client

from tests.proxy.conftest import chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import free_port, serve
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
EVENTS = (
    'data: {"id":"c","object":"chat.completion.chunk","choices":[{"delta":{"content":"ANSWER"}}]}'
    "\n\ndata: [DONE]\n\n"
)
FRAME = {
    "seq": 0,
    "status": 200,
    "content_type": "text/event-stream",
    "text": EVENTS,
    "end": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("level", ["debug", "info"])
def test_no_level_shows_keys_prompts_or_answers(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    level: str,
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    server = ScriptedServer()
    server.replies = [Reply(pieces=[EVENTS.encode()], content_type="text/event-stream", headers={})]
    port = free_port()
    with serve(server.app) as server_url:
        (tmp_path / "proxy.toml").write_text(
            "[endpoints.ep]\ndirect = true\n[endpoints.balanced]\nkind = 'load-balancing'\n"
            f"url = '{server_url}'\napi_key_env = 'OTHER_KEY'\n"
            "[models.m]\nendpoint = 'ep'\n[models.n]\nendpoint = 'balanced'\n"
        )
        variables = {
            "PROXY_LOG_LEVEL": level,
            "PROXY_CONFIG": str(tmp_path / "proxy.toml"),
            "PROXY_API_KEYS": "sk-SECRET",
            "PROXY_ADMIN_KEYS": "sk-admins-SECRET-of-many-characters",
            "PROXY_PORT": str(port),
            "PROXY_STATE_DIR": str(tmp_path / "state"),
            "PROXY_PUBLIC_URL": "https://proxy-1.example.com",
            "RUNPOD_API_KEY": "rpa_SECRET",
            "OTHER_KEY": "other_SECRET",
            "RUNPOD_ENDPOINT_BASE_URL": f"{scripted_runpod[1]}/v2",
        }
        log = tmp_path / "log"
        with log.open("w") as output:
            proxy = subprocess.Popen(
                [sys.executable, "-m", "proxy", "--env-file", os.devnull],
                cwd=ROOT,
                env=os.environ | variables,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(lambda: "startup complete" in log.read_text(), seconds=60)
            _talk(f"http://127.0.0.1:{port}")
            made = _administer(f"http://127.0.0.1:{port}")
            proxy.send_signal(signal.SIGTERM)
            assert proxy.wait(timeout=60) == 0
        finally:
            proxy.kill()
            proxy.wait()
    told = log.read_text()
    assert "POST /v1/chat/completions 200" in told
    for hidden in ("SECRET", "PROMPT", "ANSWER", *made):
        assert hidden not in told


def _talk(url: str) -> None:
    """Say PROMPT on every way there is: to a queue, to a server, streamed, wrong, and unwelcome."""
    headers = {"authorization": "Bearer sk-SECRET"}
    messages = [{"role": "user", "content": "PROMPT"}]
    path = "/v1/chat/completions"
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        for model in ("m", "n"):
            for stream in (True, False):
                body = chat(model=model, stream=stream, messages=messages)
                assert "ANSWER" in client.post(path, json=body).text or not stream
        client.post(path, json=chat(model="unknown", messages=messages))
        client.post(path, content=b'{"model": "m", "messages": "PROMPT')
        client.post(path, data={"prompt": "PROMPT"})
        client.post(path, files={"file": b"PROMPT"}, data={"model": "m"})
        client.get("/v1/models", headers={"authorization": "Bearer sk-SECRET-wrong"})
        client.get("/v1/models", headers={"x-api-key": "sk-SECRET"})
    token = {"authorization": "Bearer SECRET"}
    with pytest.raises(websockets.exceptions.InvalidStatus):
        websockets.sync.client.connect(
            url.replace("http:", "ws:") + "/channel", additional_headers=token
        )


def _administer(url: str) -> list[str]:
    """Log in, rightly and not, and make a key; returns what is secret of it."""
    headers = {"authorization": "Bearer sk-admins-SECRET-of-many-characters"}
    with httpx.Client(base_url=url, timeout=60) as client:
        client.post("/admin/session", headers={"authorization": "Bearer sk-SECRET-wrong"})
        token = client.post("/admin/session", headers=headers).cookies["runpod_proxy_session"]
        client.get("/admin/session")
        client.headers["sec-fetch-site"] = "same-origin"
        made = client.post("/admin/keys", json={"name": "alice"}).json()["key"]
        client.post("/admin/keys", json={"name": "PROMPT", "key": "SECRET", "expires": "PROMPT"})
        assert client.get("/v1/models", headers={"x-api-key": made}).status_code == 200
        return [token, made]
