"""Cline's command line, with its provider `openai-compatible`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.python.programs import NODE, PACKAGES, Said, run
from tests.conformance.python.target import UNKNOWN_MODEL, WRONG_KEY, Target

feature = pytest.mark.feature
PROVIDER = "openai-compatible"
WITHOUT_HUB = {"CLINE_SESSION_BACKEND_MODE": "local"}
"""Its hub would outlive the check, at a port that a user's own hub may have."""


def asked(target: Target, home: Path, *, model: str = "", api_key: str = "") -> Said:
    name, key = model or target.model, api_key or target.api_key
    program: list[str | Path] = [NODE, PACKAGES / "cline" / "bin" / "cline"]
    known = run([*program, "auth", PROVIDER, "-k", key, "-m", name, "-b", target.base_url], home)
    assert known.code == 0, known.text
    options = ("--json", "--auto-approve", "false", "--retries", "1", "--timeout", "100")
    which = ("-P", PROVIDER, "-k", key, "-m", name)
    return run([*program, *options, *which, "Hello! Who are you?"], home, WITHOUT_HUB)


def result(said: Said) -> dict[str, Any]:
    events = [json.loads(line) for line in said.text.splitlines() if line.startswith("{")]
    last: dict[str, Any]
    [last] = [event for event in events if event["type"] == "run_result"]
    return last


@feature("stream")
def test_an_answer_is_shown_whole(target: Target, tmp_path: Path) -> None:
    said = asked(target, tmp_path)
    assert said.code == 0, said.text
    assert result(said)["finishReason"] == "completed"
    assert result(said)["text"].strip()


@feature("usage")
def test_a_turn_tells_its_usage(target: Target, tmp_path: Path) -> None:
    assert result(asked(target, tmp_path))["usage"]["outputTokens"] > 0


@feature("error-key")
def test_a_wrong_key_is_told(keyed: Target, tmp_path: Path) -> None:
    assert "Incorrect API key provided" in asked(keyed, tmp_path, api_key=WRONG_KEY).text


@feature("error-model")
def test_an_unknown_model_is_told(target: Target, tmp_path: Path) -> None:
    assert "does not exist" in asked(target, tmp_path, model=UNKNOWN_MODEL).text
