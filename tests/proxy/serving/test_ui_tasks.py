"""What chat UIs ask on their own, as recorded from them, wakes no GPU behind the shield."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from tests.emulator.running import API_KEY, PLAIN, Client, emulator
from tests.proxy.conftest import KEY, settings_for
from tests.servers import serve
from tests.waiting import wait_until

RECORDED = Path(__file__).parent / "ui_tasks"
ANSWERS = {
    "open_webui_title": {"title": "Hello! Who are you?"},
    "open_webui_tags": {"tags": ["General"]},
    "open_webui_follow_ups": {"follow_ups": []},
    "open_webui_queries": {"queries": []},
    "open_webui_autocomplete": {"text": ""},
    "open_webui_emoji": "🙂",
    "librechat_title": "New Chat",
    "librechat_title_structured": {"language": "English", "title": "New Chat"},
}
MESSAGES = {"open_webui_chat"}


def recorded(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return body


@pytest.fixture(scope="module")
def sleeping() -> Iterator[tuple[httpx.Client, Client]]:
    """A proxy with its shield up, in front of an endpoint that has no worker."""
    with emulator(ep={"worker": PLAIN, "max_workers": 0}) as client_of:
        runpod = client_of("ep")
        url = runpod.url.removesuffix("/v2/ep")
        changes = {"runpod_api_key": API_KEY, "models": "tiny-chat", "wake_shield": True}
        headers = {"authorization": f"Bearer {KEY}"}
        with (
            serve(create_app(settings_for(url, **changes))) as proxy_url,
            httpx.Client(base_url=proxy_url, headers=headers, timeout=30) as client,
        ):
            yield client, runpod


@pytest.mark.parametrize("name", ANSWERS)
def test_a_task_is_answered_without_a_job(sleeping: tuple[httpx.Client, Client], name: str) -> None:
    client, runpod = sleeping
    answer = client.post("/v1/chat/completions", json=recorded(name)).raise_for_status().json()
    text = answer["choices"][0]["message"]["content"]
    expected = ANSWERS[name]
    assert (text if isinstance(expected, str) else json.loads(text)) == expected
    assert runpod.health()["jobs"]["inQueue"] == 0


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_becomes_a_job(sleeping: tuple[httpx.Client, Client], name: str) -> None:
    client, runpod = sleeping
    with client.stream("POST", "/v1/chat/completions", json=recorded(name)):
        wait_until(lambda: runpod.health()["jobs"]["inQueue"] == 1)
    wait_until(lambda: runpod.health()["jobs"]["inQueue"] == 0)


def test_every_recording_is_tried() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == ANSWERS.keys() | MESSAGES
