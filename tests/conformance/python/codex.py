"""Codex CLI: `codex exec`, over the Responses API."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.python.programs import NODE, PACKAGES, Said, run
from tests.conformance.python.target import UNKNOWN_MODEL, WRONG_KEY, Target

feature = pytest.mark.feature

CONFIG = """\
model = "{model}"
model_provider = "checked"
check_for_update_on_startup = false
analytics.enabled = false

[model_providers.checked]
name = "checked"
base_url = "{base_url}"
env_key = "CHECKED_KEY"
wire_api = "responses"
supports_websockets = {websockets}
request_max_retries = 0
stream_max_retries = 0
"""


def asked(
    target: Target, home: Path, *, model: str = "", api_key: str = "", websockets: str = "false"
) -> Said:
    folder = home / ".codex"
    folder.mkdir()
    settings = CONFIG.format(
        model=model or target.model, base_url=target.base_url, websockets=websockets
    )
    (folder / "config.toml").write_text(settings)
    program = PACKAGES / "@openai" / "codex" / "bin" / "codex.js"
    options = ("exec", "--skip-git-repo-check", "--json", "--sandbox", "read-only")
    environment = {"CODEX_HOME": str(folder), "CHECKED_KEY": api_key or target.api_key}
    return run([NODE, program, *options, "Hello! Who are you?"], home, environment)


def events(said: Said) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.text.splitlines() if line.startswith("{")]


def answer_of(said: Said) -> str:
    assert said.code == 0, said.text
    items = [event["item"] for event in events(said) if event["type"] == "item.completed"]
    [answer] = [item["text"] for item in items if item["type"] == "agent_message"]
    assert isinstance(answer, str)
    return answer


@feature("responses-stream")
def test_an_answer_is_shown_whole(target: Target, tmp_path: Path) -> None:
    assert answer_of(asked(target, tmp_path)).strip()


@feature("responses-stream")
def test_an_answer_is_shown_whole_where_a_websocket_is_refused(
    target: Target, tmp_path: Path
) -> None:
    said = asked(target, tmp_path, websockets="true")
    assert answer_of(said).strip()
    assert "failed to connect to Responses WebSocket" in said.text


@feature("usage")
def test_a_turn_tells_its_usage(target: Target, tmp_path: Path) -> None:
    *_, last = events(asked(target, tmp_path))
    assert last["type"] == "turn.completed"
    assert last["usage"]["output_tokens"] > 0


@feature("error-key")
def test_a_wrong_key_is_told(keyed: Target, tmp_path: Path) -> None:
    said = asked(keyed, tmp_path, api_key=WRONG_KEY)
    assert said.code != 0
    assert "Incorrect API key provided" in said.text


@feature("error-model")
def test_an_unknown_model_is_told(target: Target, tmp_path: Path) -> None:
    said = asked(target, tmp_path, model=UNKNOWN_MODEL)
    assert said.code != 0
    assert f"{UNKNOWN_MODEL}` does not exist" in said.text.replace("'", "`")
