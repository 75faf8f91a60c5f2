"""The proxy in front of a load-balancing endpoint: cold at first, a scripted vLLM behind it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.app import create_app
from tests.emulator.running import API_KEY, Client, emulator
from tests.end_to_end.conftest import ENGINE
from tests.proxy.conftest import KEY, chat, settings_for
from tests.servers import serve
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
WORKER = f"sh -c 'exec {sys.executable} {ENGINE} --port $PORT --model m'"
CONFIG = """
[endpoints.ep]
kind = "load-balancing"
url = "{url}"
[models.m]
endpoint = "ep"
queue_timeout_seconds = 60
"""


@contextmanager
def balanced(folder: Path, **balancing: Any) -> Iterator[tuple[openai.OpenAI, Client]]:
    endpoint = {
        "kind": "load-balancing",
        "worker": WORKER,
        "env": {"HEALTH_CHECK_PATH": "/health"},
        "idle_timeout_seconds": 60,
        "cold_start_delay_seconds": 2,
        "balancing": {"ping_interval_seconds": 0.05, **balancing},
    }
    with ExitStack() as stack:
        runpod = stack.enter_context(emulator(ep=endpoint))("ep")
        path = folder / "proxy.toml"
        path.write_text(CONFIG.format(url=runpod.relay_url))
        base = runpod.url.removesuffix("/v2/ep")
        url = stack.enter_context(
            serve(create_app(settings_for(base, runpod_api_key=API_KEY, config=path)))
        )
        yield (
            stack.enter_context(
                openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=90)
            ),
            runpod,
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[openai.OpenAI, Client]]:
    # The platform gives up after half a second without a worker, which takes seconds to start.
    with balanced(tmp_path_factory.mktemp("config"), worker_wait_seconds=0.5) as both:
        yield both


@pytest.fixture
def sdk(stack: tuple[openai.OpenAI, Client]) -> openai.OpenAI:
    return stack[0]


@pytest.fixture
def runpod(stack: tuple[openai.OpenAI, Client]) -> Client:
    return stack[1]


def is_served(sdk: openai.OpenAI) -> bool:
    try:
        return bool(sdk.chat.completions.create(**chat(max_tokens=3)).choices)
    except openai.InternalServerError:
        return False


def aborted(runpod: Client) -> int:
    """How many generations the engine has aborted, once the platform says it is well."""
    wait_until(lambda: runpod.workers("ready") == 1)
    return int(runpod.relayed("/_engine/requests").raise_for_status().json()["aborted"])


def listed_state(sdk: openai.OpenAI) -> Any:
    model = sdk.models.retrieve("m")
    return getattr(model, "state", None)


def test_a_cold_start_longer_than_the_platform_waits_is_waited_out(
    sdk: openai.OpenAI, runpod: Client
) -> None:
    refused = runpod.relayed("/v1/models")
    assert refused.status_code == 400
    chunks = sdk.chat.completions.create(**chat(stream=True, max_tokens=30))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    plain = sdk.chat.completions.create(**chat(max_tokens=30)).choices[0].message.content
    assert text == plain
    assert text
    assert listed_state(sdk) == "ready"


def test_vllms_error_comes_with_its_own_status(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        sdk.chat.completions.create(**chat(), extra_body={"script": {"status": 400}})


def test_a_client_that_leaves_aborts_the_generation(sdk: openai.OpenAI, runpod: Client) -> None:
    before = aborted(runpod)
    script = {"script": {"hang_after": 2}}
    with sdk.chat.completions.create(**chat(stream=True), extra_body=script) as chunks:
        next(iter(chunks))
    wait_until(lambda: aborted(runpod) == before + 1)


@pytest.mark.parametrize("after", [0, 3])
def test_a_worker_that_dies_is_an_error_and_its_successor_answers(
    sdk: openai.OpenAI, runpod: Client, after: int
) -> None:
    script = {"script": {"die_after": after, "tokens": 9}}
    with pytest.raises(openai.APIError) as caught:
        list(sdk.chat.completions.create(**chat(stream=True), extra_body=script))
    assert not isinstance(caught.value, openai.APIConnectionError)
    wait_until(lambda: is_served(sdk), seconds=60)  # until its death is noticed: 502


def test_bytes_and_forms_pass_both_ways(sdk: openai.OpenAI) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"model": "m", "input": ["a", "b"], "encoding_format": "bytes"}
    answer = httpx.post(f"{sdk.base_url}embeddings", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert len(answer.content) == 32
