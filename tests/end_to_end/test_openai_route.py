"""OpenAI's own client on RunPod's /openai route, with our worker behind it."""

from collections.abc import Iterator

import openai
import pytest

from tests.emulator.running import API_KEY
from tests.end_to_end.conftest import Road
from tests.proxy.conftest import chat

pytestmark = pytest.mark.slow


@pytest.fixture
def sdk(warm_road: Road) -> Iterator[openai.OpenAI]:
    url = f"{warm_road.runpod.url}/openai/v1"
    with openai.OpenAI(base_url=url, api_key=API_KEY, max_retries=0, timeout=90) as sdk:
        yield sdk


def test_a_chat_streamed_and_not_is_the_same_text(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(**chat(max_tokens=30)).choices[0].message.content
    chunks = sdk.chat.completions.create(**chat(max_tokens=30, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain
    assert plain


def test_the_models_are_the_workers(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["m"]


def test_vllms_error_comes_with_status_200(sdk: openai.OpenAI) -> None:
    """OpenAI's client takes it for an answer, which is why the proxy does not use this route."""
    answer = sdk.chat.completions.with_raw_response.create(**chat(model="unknown"))
    assert answer.status_code == 200
    assert "does not exist" in answer.text
