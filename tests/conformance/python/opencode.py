"""opencode: `opencode run`, over the AI SDK's `@ai-sdk/openai-compatible`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.python.programs import Said, platform_binary, run
from tests.conformance.python.target import UNKNOWN_MODEL, WRONG_KEY, Target

feature = pytest.mark.feature

ALONE = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
}


def asked(target: Target, home: Path, *, model: str = "", api_key: str = "") -> Said:
    name = model or target.model
    options = {"baseURL": target.base_url, "apiKey": api_key or target.api_key}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "checked",
        "options": options,
        "models": {name: {"name": name, "limit": {"context": 32_000, "output": 200}}},
    }
    settings = {
        "$schema": "https://opencode.ai/config.json",
        "autoupdate": False,
        "share": "disabled",
        "model": f"checked/{name}",
        "small_model": f"checked/{name}",
        "provider": {"checked": provider},
    }
    folder = home / ".config" / "opencode"
    folder.mkdir(parents=True)
    (folder / "opencode.json").write_text(json.dumps(settings))
    program = platform_binary("opencode", "opencode")
    return run([program, "run", "--format", "json", "Hello! Who are you?"], home, ALONE)


def parts(said: Said, kind: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in said.text.splitlines() if line.startswith("{")]
    return [event["part"] for event in events if event["type"] == kind]


@feature("stream")
def test_an_answer_is_shown_whole(target: Target, tmp_path: Path) -> None:
    said = asked(target, tmp_path)
    assert said.code == 0, said.text
    assert "".join(part["text"] for part in parts(said, "text")).strip()


@feature("usage")
def test_a_turn_tells_its_usage(target: Target, tmp_path: Path) -> None:
    *_, last = parts(asked(target, tmp_path), "step_finish")
    assert last["tokens"]["output"] > 0


@feature("error-key")
def test_a_wrong_key_is_told(keyed: Target, tmp_path: Path) -> None:
    assert "Incorrect API key provided" in asked(keyed, tmp_path, api_key=WRONG_KEY).text


@feature("error-model")
def test_an_unknown_model_is_told(target: Target, tmp_path: Path) -> None:
    assert "does not exist" in asked(target, tmp_path, model=UNKNOWN_MODEL).text
