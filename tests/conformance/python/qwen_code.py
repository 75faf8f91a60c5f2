"""Qwen Code: `qwen -p`, over chat completions."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.python.programs import NODE, PACKAGES, Said, run
from tests.conformance.python.target import MAX_TOKENS, UNKNOWN_MODEL, WRONG_KEY, Target

feature = pytest.mark.feature


def asked(target: Target, home: Path, *, model: str = "", api_key: str = "") -> Said:
    # Of itself it asks for no end, and the model's answer may take minutes.
    sampling = {"temperature": 0, "max_tokens": MAX_TOKENS}
    settings = {
        "model": {"generationConfig": {"samplingParams": sampling}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False, "disableAutoUpdate": True},
    }
    folder = home / ".qwen"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = {
        # It asks a proxy that the environment names for every host, loopback too.
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), ""),
        "OPENAI_API_KEY": api_key or target.api_key,
        "OPENAI_BASE_URL": target.base_url,
        "OPENAI_MODEL": model or target.model,
    }
    program = PACKAGES / "@qwen-code" / "qwen-code" / "cli.js"
    options = ("--auth-type", "openai", "--output-format", "json")
    return run([NODE, program, *options, "-p", "Hello! Who are you?"], home, environment)


def result(said: Said) -> dict[str, Any]:
    """The last of the messages that it prints as one list."""
    lines = [line for line in said.text.splitlines() if line.startswith("[{")]
    last: dict[str, Any] = json.loads(lines[-1])[-1]
    assert last["type"] == "result"
    return last


@feature("stream")
def test_an_answer_is_shown_whole(target: Target, tmp_path: Path) -> None:
    said = asked(target, tmp_path)
    assert said.code == 0, said.text
    last = result(said)
    assert last["result"].strip()
    assert "[API Error" not in last["result"]  # it takes one for an answer


@feature("usage")
def test_a_turn_tells_its_usage(target: Target, tmp_path: Path) -> None:
    assert result(asked(target, tmp_path))["usage"]["output_tokens"] > 0


@feature("error-key")
def test_a_wrong_key_is_told(keyed: Target, tmp_path: Path) -> None:
    assert "Incorrect API key provided" in asked(keyed, tmp_path, api_key=WRONG_KEY).text


@feature("error-model")
def test_an_unknown_model_is_told(target: Target, tmp_path: Path) -> None:
    assert "does not exist" in asked(target, tmp_path, model=UNKNOWN_MODEL).text
