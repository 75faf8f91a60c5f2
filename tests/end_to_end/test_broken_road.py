"""The direct road breaks in every way a network has, under answers that come by it."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.backends.runpod.direct import dialing
from tests.emulator.running import API_KEY, Json
from tests.end_to_end.conftest import Road, road
from tests.proxy.conftest import KEY
from tests.proxy.process import Proxy
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TEXT = " ".join(f"слово{number}" for number in range(60))
DIRECT: dict[str, Any] = {"direct": True, "direct_private_addresses": True}


@pytest.fixture(scope="module")
def stack() -> Iterator[Road]:
    """A stack whose answers come past the queue; a job that is not heard of goes on soon."""
    with (
        pytest.MonkeyPatch.context() as patch,
        road(ports=["8899/tcp"], min_workers=1, lease_seconds=4, settings=DIRECT) as stack,
    ):
        for name in ("FIRST_PAUSE_SECONDS", "LOST_PAUSE_SECONDS", "MAX_PAUSE_SECONDS"):
            patch.setattr(dialing, name, 1.0)
        yield stack


@pytest.fixture(autouse=True)
def has_channel(stack: Road) -> Iterator[None]:
    """There is a channel at first; afterwards the road is as it was."""
    wait_until(lambda: comes_directly(stack))
    yield
    control(stack, "DELETE", "/road")
    control(stack, "DELETE", "/freeze")


def control(stack: Road, method: str, path: str, body: Any = None) -> Any:
    return stack.runpod.control(method, f"/ep{path}", body)


def roads(stack: Road, *, road: str, reason: str = "") -> int:
    """How many answers have come by this road."""
    headers = {"authorization": f"Bearer {KEY}"}
    page = httpx.get(f"{stack.url.removesuffix('/v1')}/metrics", headers=headers, timeout=60).text
    line = f'^proxy_roads_total{{endpoint="ep",reason="{reason}",road="{road}"}} (\\d+)'
    return sum(map(int, re.findall(line, page, re.MULTILINE)))


def comes_directly(stack: Road) -> bool:
    before = roads(stack, road="direct")
    stack.post(script={"text": "a b c", "delay_seconds": 0.1})
    return roads(stack, road="direct") > before


class Answer:
    """A streamed answer of TEXT, which takes seconds."""

    def __init__(self, stack: Road, **script: Any) -> None:
        self._sdk = stack.sdk()
        self._chunks = self._sdk.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            extra_body={"script": {"text": TEXT, "delay_seconds": 0.05} | script},
        )
        self.text = ""

    def read(self, *, until: str | None = None) -> str:
        """What has come when this word has, or at the end."""
        for chunk in self._chunks:
            self.text += chunk.choices[0].delta.content or ""
            if until is not None and until in self.text:
                break
        else:
            self._sdk.close()
        return self.text


@pytest.mark.parametrize(
    "conditions",
    [
        {"drop": "to_worker"},
        {"drop": "from_worker"},
        {"drop": "both"},
        {"drop": "both", "dials": "ignore"},
    ],
)
def test_a_channel_that_goes_silent_costs_no_word(stack: Road, conditions: Json) -> None:
    answer = Answer(stack)
    answer.read(until="слово9")
    control(stack, "PUT", "/road", conditions)
    assert answer.read() == TEXT


@pytest.mark.parametrize(
    "conditions",
    [
        {"cut_after_bytes": 3000},
        {"latency_seconds": 0.3, "jitter_seconds": 0.3},
    ],
)
def test_channels_that_are_late_or_break_again_and_again_cost_no_word(
    stack: Road, conditions: Json
) -> None:
    answer = Answer(stack)
    answer.read(until="слово9")
    control(stack, "PUT", "/road", conditions)
    assert answer.read() == TEXT


def test_a_proxy_whose_channel_is_silent_stops_in_order(stack: Road, tmp_path: Path) -> None:
    runpod_url = stack.runpod.url.removesuffix("/v2/ep")
    proxy = Proxy(runpod_url, runpod_api_key=API_KEY, state_dir=tmp_path, **DIRECT)
    try:
        own = Road(f"{proxy.url}/v1", stack.runpod, stack.engine_port)
        wait_until(lambda: comes_directly(own))
        control(stack, "PUT", "/road", {"drop": "both"})
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(60) == 0
    finally:
        proxy.close()


@pytest.mark.parametrize(("dials", "reason"), [("refuse", "refused"), ("ignore", "timeout")])
def test_answers_come_by_the_queue_while_the_workers_cannot_be_reached(
    stack: Road, dials: str, reason: str
) -> None:
    control(stack, "PUT", "/road", {"dials": dials})
    control(stack, "POST", "/road/cut")
    wait_until(lambda: is_whole_by_queue(stack, reason))
    control(stack, "DELETE", "/road")
    wait_until(lambda: comes_directly(stack))


def is_whole_by_queue(stack: Road, reason: str) -> bool:
    before = roads(stack, road="queue", reason=reason)
    assert Answer(stack, delay_seconds=0).read() == TEXT
    return roads(stack, road="queue", reason=reason) > before


def test_a_worker_whose_port_has_moved_is_answered_by_the_queue_and_the_next_one_directly(
    stack: Road,
) -> None:
    answer = Answer(stack)
    answer.read(until="слово9")
    control(stack, "POST", "/road/move")
    assert answer.read() == TEXT
    assert not comes_directly(stack)
    control(stack, "POST", "/crash")
    wait_until(lambda: comes_directly(stack))


def test_a_worker_that_is_frozen_for_longer_than_its_lease_says_no_word_twice(stack: Road) -> None:
    answer = Answer(stack)
    answer.read(until="слово9")
    control(stack, "POST", "/freeze", {"seconds": 7})
    code = None
    try:
        answer.read()
    except openai.APIError as error:
        code = error.code
    assert (answer.text, code) == (TEXT, None) or (
        TEXT.startswith(answer.text) and code == "worker_failed"
    )
    stack.wait_for_no_jobs()


def test_a_worker_that_dies_under_an_answer_is_an_error_event_and_no_end(stack: Road) -> None:
    answer = Answer(stack)
    answer.read(until="слово9")
    control(stack, "POST", "/crash")
    with pytest.raises(openai.APIError) as caught:
        answer.read()
    assert caught.value.code == "worker_failed"
    assert TEXT.startswith(answer.text)


def test_a_worker_that_dies_before_its_answer_has_begun_costs_no_word(stack: Road) -> None:
    requests = stack.engine()["running"]
    answer = Answer(stack, first_delay_seconds=2)
    wait_until(lambda: stack.engine()["running"] > requests)
    control(stack, "POST", "/crash")
    assert answer.read() == TEXT
