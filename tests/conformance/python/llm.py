"""`llm`, by its command line, with the target as one of its `extra-openai-models.yaml`."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance.python.target import (
    CITIES,
    LONG,
    MAX_TOKENS,
    PARAMETERS,
    TEXTS,
    TOO_LONG,
    UNKNOWN_MODEL,
    WAIT_SECONDS,
    WRONG_KEY,
    Target,
)

feature = pytest.mark.feature
MODELS = """\
- model_id: chat
  model_name: {model}
  api_base: {base_url}
  api_key_name: target
  supports_schema: true
  supports_tools: true
- model_id: completion
  model_name: {model}
  api_base: {base_url}
  api_key_name: target
  completion: true
- model_id: unknown
  model_name: {unknown}
  api_base: {base_url}
  api_key_name: target
"""
GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", str(MAX_TOKENS))


class CommandLine:
    """`llm` with a configuration of its own."""

    def __init__(self, target: Target, folder: Path) -> None:
        models = MODELS.format(model=target.model, base_url=target.base_url, unknown=UNKNOWN_MODEL)
        (folder / "extra-openai-models.yaml").write_text(models)
        (folder / "keys.json").write_text(json.dumps({"target": target.api_key}))
        self.environment = {**os.environ, "LLM_USER_PATH": str(folder)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "llm", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        said, complained = process.communicate(timeout=WAIT_SECONDS)
        return process.returncode, said, complained

    def said(self, *words: str) -> str:
        code, said, complained = self.run(*words)
        assert code == 0, complained
        return said.removesuffix("\n")


@pytest.fixture
def llm(target: Target, tmp_path: Path) -> CommandLine:
    return CommandLine(target, tmp_path)


@feature("chat")
def test_a_chat_is_vllms(llm: CommandLine, target: Target) -> None:
    said = llm.said("-m", "chat", *GREEDY, "--no-stream", TEXTS[0])
    assert said == target.told(TEXTS[0])


@feature("stream")
def test_a_streamed_chat_is_vllms(llm: CommandLine, target: Target) -> None:
    assert llm.said("-m", "chat", *GREEDY, TEXTS[0]) == target.told(TEXTS[0])


@feature("usage")
def test_a_stream_tells_its_usage(llm: CommandLine) -> None:
    _, _, told = llm.run("-m", "chat", *GREEDY, "--usage", "Hi")
    assert "output" in told


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(llm: CommandLine, target: Target) -> None:
    for text in TEXTS[1:]:
        assert llm.said("-m", "chat", *GREEDY, text) == target.told(text)


@feature("schema")
@pytest.mark.parametrize("options", [(), ("--no-stream",)])
def test_an_answer_follows_its_schema(llm: CommandLine, options: tuple[str, ...]) -> None:
    said = llm.said("-m", "chat", *GREEDY, *options, "--schema", json.dumps(PARAMETERS), "Where?")
    assert json.loads(said)["city"] in CITIES


@feature("completions")
def test_a_completion_is_vllms(llm: CommandLine, target: Target) -> None:
    fields = {"model": target.model, "prompt": "Es war", "temperature": 0, "max_tokens": MAX_TOKENS}
    told = target.vllm("/v1/completions", fields)["choices"][0]["text"]
    assert llm.said("-m", "completion", *GREEDY, "Es war") == told


@feature("error-key")
def test_a_wrong_key_is_told(keyed: Target, llm: CommandLine) -> None:
    code, _, complained = llm.run("-m", "chat", "--key", WRONG_KEY, "Hi")
    assert (code, "401" in complained) == (1, True), complained


@feature("error-model")
def test_an_unknown_model_is_told(llm: CommandLine) -> None:
    code, _, complained = llm.run("-m", "unknown", "Hi")
    assert (code, "404" in complained) == (1, True), complained


@feature("error-request")
def test_a_bad_request_is_told(llm: CommandLine) -> None:
    code, _, complained = llm.run("-m", "chat", *GREEDY, TOO_LONG)
    assert (code, "400" in complained) == (1, True), complained


@feature("leaving")
def test_an_interrupt_stops_vllm(llm: CommandLine, target: Target) -> None:
    with target.is_left():
        long = ("-o", "max_tokens", str(LONG), "-o", "json_object", "true")
        process = llm.start("-m", "chat", *long, "Hi")
        assert process.stdout
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_SECONDS)


@feature("parallel")
def test_parallel_requests_do_not_mix(llm: CommandLine, target: Target, tmp_path: Path) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(3)]
    # Several at once would fight about their log's database, which each makes if there is none.
    databases = [str(tmp_path / f"{i}.db") for i in range(len(texts))]

    def said(text: str, database: str) -> str:
        return llm.said("--database", database, "-m", "chat", *GREEDY, text)

    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(said, texts, databases))
    assert answers == [target.told(text) for text in texts]
