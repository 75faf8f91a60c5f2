"""OpenAI's own client on a load-balancing endpoint, whose worker is a scripted vLLM."""

import sys
from collections.abc import Iterator

import openai
import pytest

from tests.emulator.running import API_KEY, Client, one_endpoint
from tests.end_to_end.conftest import ENGINE
from tests.proxy.conftest import chat
from tests.waiting import wait_until

WORKER = f"sh -c 'exec {sys.executable} {ENGINE} --port $PORT --model m'"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runpod() -> Iterator[Client]:
    with one_endpoint(
        kind="load-balancing",
        worker=WORKER,
        env={"HEALTH_CHECK_PATH": "/health"},
        idle_timeout_seconds=60,
        balancing={"ping_interval_seconds": 0.05},
    ) as client:
        yield client


@pytest.fixture
def sdk(runpod: Client) -> Iterator[openai.OpenAI]:
    url = f"{runpod.relay_url}/v1"
    with openai.OpenAI(base_url=url, api_key=API_KEY, max_retries=0, timeout=90) as sdk:
        yield sdk


def test_a_chat_streamed_and_not_is_the_same_text(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(**chat(max_tokens=30)).choices[0].message.content
    chunks = sdk.chat.completions.create(**chat(max_tokens=30, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain
    assert plain


def test_vllms_error_comes_with_its_own_status(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sdk.chat.completions.create(**chat(model="unknown"))


def test_a_client_that_leaves_aborts_the_generation(runpod: Client, sdk: openai.OpenAI) -> None:
    script = {"script": {"hang_after": 2}}
    with sdk.chat.completions.create(**chat(stream=True), extra_body=script) as chunks:
        next(iter(chunks))
    wait_until(lambda: runpod.relayed("/_engine/requests").json()["aborted"] == 1)
