"""A start that is waited for, told with a clock: so long already, and how long it usually takes."""

import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.emulator.running import Client
from tests.end_to_end.test_failed_starts import ask, model_of, stack
from tests.proxy.conftest import KEY, chat
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
SLOW = {"START_SECONDS": "2"}


def streamed(client: httpx.Client) -> str:
    """The whole text of a streamed chat."""
    return client.post("/v1/chat/completions", json=chat(stream=True)).text


def wait_for_no_worker(runpod: Client) -> None:
    """Until the endpoint has scaled to zero."""
    wait_until(lambda: not any(runpod.health()["workers"].values()))


def test_a_start_is_told_with_the_time_that_past_ones_took(tmp_path: Path) -> None:
    settings = {"state_dir": tmp_path, "first_byte_hold_seconds": 0}
    with stack("hook", settings, env=SLOW, idle_timeout_seconds=0.5) as (client, runpod):
        first = streamed(client)
        assert set(re.findall(r"^:.*", first, re.MULTILINE)) == {": queued"}
        assert first.endswith("data: [DONE]\n\n")
        wait_for_no_worker(runpod)
        wait_until(lambda: model_of(client)["state"] == "cold")
        assert re.search(
            r"; a request starts one, usually in \d+ s", model_of(client)["state_reason"]
        )
        second = streamed(client)
        comments = re.findall(r"^:.*", second, re.MULTILINE)
        assert comments
        assert all(re.fullmatch(r": queued \d+ s, usually [1-9]\d* s", one) for one in comments)
    assert len((tmp_path / "start_times.json").read_text().split(",")) == 2


def test_the_state_tells_for_how_long_a_worker_has_been_starting(tmp_path: Path) -> None:
    settings = {"state_dir": tmp_path, "first_byte_hold_seconds": 0}
    with stack("hook", settings, env=SLOW, idle_timeout_seconds=0.5) as (client, runpod):
        ask(client)
        wait_for_no_worker(runpod)
        wait_until(lambda: model_of(client)["state"] == "cold")
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
            reasons = []
            for _ in response.iter_bytes():
                reasons.append(model_of(client)["state_reason"])
    told = r"a worker is starting: \d+ s, usually \d+ s"
    assert any(re.fullmatch(told, reason) for reason in reasons), reasons


def test_a_chat_may_be_told_of_a_start_in_its_reasoning(tmp_path: Path) -> None:
    settings = {
        "state_dir": tmp_path,
        "first_byte_hold_seconds": 0,
        "cold_start_notice": "reasoning",
        "reasoning_fields": "both",
    }
    with stack("hook", settings, env=SLOW) as (client, _):
        sdk = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, max_retries=0)
        messages = [{"role": "user", "content": "hi"}]
        create: Any = sdk.chat.completions.create
        chunks = list(create(model="m", messages=messages, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert re.match(r"Waiting for a worker: \d+ s\n", deltas[0].reasoning_content)
        assert deltas[0].reasoning == deltas[0].reasoning_content
        assert not any(hasattr(delta, "reasoning_content") for delta in deltas[-1:])
        assert deltas[-1].content
        assert len({chunk.id for chunk in chunks}) == 1
        # What is no stream of a chat has no place for it.
        body = {"model": "m", "prompt": "hi", "stream": True}
        assert "Waiting" not in client.post("/v1/completions", json=body).text
