"""aider: `aider --message`, over its own LiteLLM."""

import json
import sys
from pathlib import Path

import pytest

from tests.conformance.python.programs import Said, run
from tests.conformance.python.target import LONG, UNKNOWN_MODEL, WRONG_KEY, Target

feature = pytest.mark.feature

OPTIONS = (
    *("--no-git", "--yes-always", "--no-check-update", "--no-analytics", "--no-pretty"),
    *("--no-show-model-warnings", "--no-detect-urls", "--map-tokens", "0", "--edit-format", "ask"),
)


def asked(target: Target, home: Path, *options: str, model: str = "", api_key: str = "") -> Said:
    name = f"openai/{model or target.model}"
    # Without prices it would ask for them at a host of its own, three times over.
    prices = home / ".aider" / "caches" / "model_prices_and_context_window.json"
    prices.parent.mkdir(parents=True)
    about = {"max_input_tokens": 32_000, "max_output_tokens": LONG, "litellm_provider": "openai"}
    prices.write_text(json.dumps({name: {**about, "mode": "chat"}}))
    environment = {
        "OPENAI_API_BASE": target.base_url,
        "OPENAI_API_KEY": api_key or target.api_key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    program = Path(sys.prefix) / "bin" / "aider"
    message = ("--message", "Hello! Who are you?")
    return run([program, "--model", name, *OPTIONS, *options, *message], home, environment)


@feature("chat")
def test_an_answer_is_shown_whole(target: Target, tmp_path: Path) -> None:
    said = asked(target, tmp_path, "--no-stream")
    assert said.code == 0, said.text
    assert "Tokens:" in said.text


@feature("stream")
def test_a_streamed_answer_is_the_plain_one(target: Target, tmp_path: Path) -> None:
    plain, streamed = (
        asked(target, tmp_path / option, option) for option in ("--no-stream", "--stream")
    )
    assert answer_of(streamed) == answer_of(plain)


def answer_of(said: Said) -> str:
    """What stands between its greeting and its count of tokens."""
    text, found, _ = said.words.partition(" Tokens:")
    assert found, said.text
    return text.rpartition("release-notes ")[2].rpartition("Repo-map: disabled ")[2]


@feature("error-key")
def test_a_wrong_key_is_told(keyed: Target, tmp_path: Path) -> None:
    assert "Incorrect API key provided" in asked(keyed, tmp_path, api_key=WRONG_KEY).words


@feature("error-model")
def test_an_unknown_model_is_told(target: Target, tmp_path: Path) -> None:
    assert "does not exist" in asked(target, tmp_path, model=UNKNOWN_MODEL).words
