"""The scripted engine keeps the promises that the other tests rely on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from scripts.scripted_engine import create_engine
from tests.servers import free_port, serve
from tests.waiting import leaving_after, wait_until

ENGINE = Path(__file__).parents[2] / "scripts" / "scripted_engine.py"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def url() -> Iterator[str]:
    with serve(create_engine()) as base:
        yield base


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def chat(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny-chat", "messages": MESSAGES, **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def totals(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{url}/_engine/requests", timeout=30).json()
    return answer


def test_a_streamed_chat_says_the_same_as_a_whole_one(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(
        model="tiny-chat", messages=[{"role": "user", "content": "hi"}], max_tokens=9
    )
    stream = sdk.chat.completions.create(
        model="tiny-chat",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert len(text.encode()) > len(text), "the text holds multi-byte characters"


def test_a_text_completion_echoes_the_scripted_text(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(
        model="tiny-chat", prompt="x", extra_body={"script": {"text": "un deux  trois"}}
    )
    assert answer.choices[0].text == "un deux  trois"
    assert answer.choices[0].finish_reason == "stop"


def test_an_unknown_model_is_vllms_404(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="other", messages=[])
    assert caught.value.body == {
        "message": "The model `other` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


def test_a_client_that_leaves_aborts_the_generation(url: str) -> None:
    body = {"messages": MESSAGES, "stream": True, "script": {"tokens": 2, "hang_after": 1}}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert totals(url)["running"] == 1
    wait_until(lambda: totals(url)["aborted"] == 1)
    assert totals(url)["running"] == 0


def test_a_client_that_leaves_a_whole_answer_aborts_it(url: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{url}/v1/completions",
            json={"prompt": "x", "script": {"hang": True}},
            timeout=leaving_after(0.2),
        )
    wait_until(lambda: totals(url)["aborted"] == 1)


def test_a_script_can_cut_the_connection(url: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        chat(url, stream=True, script={"cut_after": 2})


def test_a_script_can_end_a_stream_with_an_error_event(url: str) -> None:
    events = chat(url, stream=True, script={"error_after": 1}).text.split("\n\n")
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == 500
    assert events[-2:] == ["data: [DONE]", ""]


def test_a_script_can_choose_the_status(url: str) -> None:
    answer = chat(url, script={"status": 503})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == 503


def test_a_misspelt_script_is_refused(url: str) -> None:
    assert chat(url, script={"tokenz": 3}).status_code == 400


def test_a_script_can_write_single_bytes(url: str) -> None:
    body = {"messages": MESSAGES, "stream": True, "script": {"text": "é", "chunk_bytes": 1}}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
        pieces = list(answer.iter_raw())
    assert {len(piece) for piece in pieces} == {1}


@pytest.fixture
def engine_process() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, str(ENGINE), "--port", str(port), "--model", "m", "--spawn-child"]
    command += ["--max-model-len", "2048", "--enforce-eager"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url), seconds=60)
        yield url, process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_the_process_takes_vllms_flags_and_can_die(
    engine_process: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, process = engine_process
    facts = httpx.get(f"{url}/_engine/argv", timeout=30).json()
    assert facts["argv"][-3:] == ["--max-model-len", "2048", "--enforce-eager"]
    assert facts["pid"] == process.pid
    assert os.getpgid(facts["child_pid"]) == process.pid
    assert httpx.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"] == "m"
    with pytest.raises(httpx.RemoteProtocolError):
        chat(url, model="m", script={"die_after": 1})
    assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize(
    "said",
    ["Bonjour 🙂", [{"type": "text", "text": "Bonjour 🙂"}, {"type": "image_url"}]],
)
def test_an_engine_that_introduces_itself_says_so_in_every_answer(said: Any) -> None:
    app = create_engine("scripted")
    app.state.engine.introduces_itself = True
    body = {"model": "scripted", "messages": [*MESSAGES, {"role": "user", "content": said}]}
    with serve(app) as base, httpx.Client(base_url=f"{base}/v1", timeout=30) as client:
        [choice] = client.post("chat/completions", json=body).json()["choices"]
        [model] = client.get("models").json()["data"]
        cut = client.post("chat/completions", json=body | {"max_tokens": 5}).json()
        text = client.post("completions", json={"prompt": "Salut"}).json()["choices"][0]["text"]
        followed = client.post("chat/completions", json=body | {"script": {"text": "a"}}).json()
    assert choice["message"]["content"].startswith("This is the scripted engine 🎭, no model")
    assert choice["message"]["content"].endswith("You wrote: Bonjour 🙂")
    assert model["owned_by"] == "scripted-engine"
    assert cut["choices"][0]["message"]["content"].strip() == "This is the scripted engine"
    assert cut["choices"][0]["finish_reason"] == "length"
    assert text.endswith("You wrote: Salut")
    assert followed["choices"][0]["message"]["content"] == "a"
