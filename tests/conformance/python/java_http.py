"""Java: `java.net.http.HttpClient`, the HTTP client of Java's own library, as it is by default."""

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.python.target import (
    LONG,
    TEXTS,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    assert_close,
    chat,
)

feature = pytest.mark.feature
pytestmark = pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK")
PROGRAM = Path(__file__).parents[1] / "java" / "Ask.java"
SECONDS = 110.0


def ask(
    target: Target,
    bodies: Sequence[Mapping[str, Any]],
    *,
    mode: str = "plain",
    path: str = "/chat/completions",
    base_url: str = "",
    api_key: str = "",
) -> list[tuple[int, str]]:
    """The status and the text of each answer; all are asked for at once."""
    done = subprocess.run(
        ["java", PROGRAM, mode, (base_url or target.base_url) + path, api_key or target.api_key],
        input="\n".join(map(json.dumps, bodies)).encode(),
        stdout=subprocess.PIPE,
        timeout=SECONDS,
        check=True,
    )
    answers = [line.split() for line in done.stdout.decode().splitlines()]
    return [(int(status), base64.b64decode("".join(said)).decode()) for status, *said in answers]


def said(answer: tuple[int, str]) -> str:
    status, text = answer
    assert status == 200, text
    content: str = json.loads(text)["choices"][0]["message"]["content"]
    return content


def streamed(answer: tuple[int, str]) -> str:
    status, text = answer
    assert status == 200, text
    *events, end = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert end == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def error(answer: tuple[int, str]) -> tuple[int, str]:
    status, text = answer
    message: str = json.loads(text)["error"]["message"]
    return status, message


@feature("chat")
def test_a_chat_is_vllms(target: Target) -> None:
    [answer] = ask(target, [chat(TEXTS[0], model=target.model)])
    assert said(answer) == target.told(TEXTS[0])


@feature("stream")
def test_a_streamed_chat_is_vllms(target: Target) -> None:
    [answer] = ask(target, [chat(TEXTS[0], model=target.model, stream=True)], mode="stream")
    assert streamed(answer) == target.told(TEXTS[0])


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(target: Target) -> None:
    bodies = [chat(text, model=target.model, stream=True) for text in TEXTS]
    answers = ask(target, bodies, mode="stream")
    assert [streamed(answer) for answer in answers] == [target.told(text) for text in TEXTS]


@feature("embeddings")
def test_embeddings_are_vllms(target: Target) -> None:
    body = {"model": target.embeddings_model, "input": list(TEXTS)}
    [(status, text)] = ask(target, [body], path="/embeddings", base_url=target.embeddings_url)
    assert status == 200, text
    vectors = [one["embedding"] for one in json.loads(text)["data"]]
    assert_close(vectors, target.vllm_embeddings())


@feature("error-key")
def test_a_wrong_key_is_told(keyed: Target) -> None:
    [answer] = ask(keyed, [chat("Hi", model=keyed.model)], api_key=WRONG_KEY)
    assert error(answer) == (401, "Incorrect API key provided.")


@feature("error-model")
def test_an_unknown_model_is_told(target: Target) -> None:
    [answer] = ask(target, [chat("Hi", model=UNKNOWN_MODEL)])
    status, message = error(answer)
    assert status == 404
    assert "does not exist" in message


@feature("error-request")
def test_a_bad_request_is_told(target: Target) -> None:
    [answer] = ask(target, [chat("Hi", model=target.model, temperature=-1)])
    status, message = error(answer)
    assert status == 400
    assert "temperature" in message


@feature("leaving")
def test_a_client_that_leaves_its_stream_stops_vllm(target: Target) -> None:
    body = chat("Hi", model=target.model, stream=True) | {"max_tokens": LONG, "ignore_eos": True}
    with target.is_left():
        ask(target, [body], mode="leave")


@feature("parallel")
def test_parallel_requests_do_not_mix(target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    answers = ask(target, [chat(text, model=target.model) for text in texts])
    assert list(map(said, answers)) == [target.told(text) for text in texts]
