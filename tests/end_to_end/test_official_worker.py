"""The proxy in front of a worker that behaves as RunPod's own image does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from proxy.app import create_app
from scripts.scripted_engine import create_engine
from tests.emulator.running import API_KEY, emulator
from tests.proxy.conftest import KEY, chat, settings_for
from tests.servers import serve

WORKER = f"{sys.executable} {Path(__file__).parent / 'official_worker.py'}"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def engine_url() -> Iterator[str]:
    with serve(create_engine("m")) as url:
        yield url


@pytest.fixture(scope="module", params=["newer", "older"])
def sdk(request: pytest.FixtureRequest, engine_url: str) -> Iterator[openai.OpenAI]:
    """An OpenAI client of a proxy, in front of an emulator, in front of such a worker."""
    env = {"ENGINE_URL": engine_url, "STYLE": request.param}
    with emulator(ep={"worker": WORKER, "env": env, "idle_timeout_seconds": 60}) as client:
        runpod_url = client("ep").url.removesuffix("/v2/ep")
        settings = settings_for(
            runpod_url,
            runpod_api_key=API_KEY,
            queue_timeout_seconds=60,
            first_byte_hold_seconds=60,  # an early error keeps its status
        )
        with (
            serve(create_app(settings)) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as sdk,
        ):
            yield sdk


def told_directly(engine_url: str) -> str:
    """What the engine itself answers to the same chat."""
    url = f"{engine_url}/v1/chat/completions"
    answer = httpx.post(url, json=chat(max_tokens=40), timeout=60).json()
    text: str = answer["choices"][0]["message"]["content"]
    assert any(ord(char) > 127 for char in text)
    return text


def test_a_plain_chat_is_what_the_engine_says(sdk: openai.OpenAI, engine_url: str) -> None:
    answer = sdk.chat.completions.create(**chat(max_tokens=40))
    assert answer.choices[0].message.content == told_directly(engine_url)


def test_a_streamed_chat_is_what_the_engine_says(sdk: openai.OpenAI, engine_url: str) -> None:
    chunks = sdk.chat.completions.create(**chat(stream=True, max_tokens=40))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == told_directly(engine_url)


@pytest.mark.parametrize("wants_stream", [True, False])
def test_an_error_of_the_engine_keeps_its_status(sdk: openai.OpenAI, wants_stream: bool) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="scripted") as caught:
        sdk.chat.completions.create(
            **chat(stream=wants_stream), extra_body={"script": {"status": 422}}
        )
    assert caught.value.type is not None
