"""The direct channel on the whole road: proxy, emulator, RunPod's SDK, worker, and what breaks."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from scripts.set_up import next_worker_environment, set_up_next_worker
from tests.end_to_end.conftest import Road, road
from tests.end_to_end.scripted_streams import leave, said
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PORT = "8899/tcp"
DIRECT = {
    "direct": True,
    "direct_private_addresses": True,  # the emulator's workers are on this machine
    "first_byte_hold_seconds": 60,
}


@pytest.fixture(scope="module")
def direct_road() -> Iterator[Road]:
    """A stack whose tokens come by the channel, with one worker up."""
    with road(min_workers=1, ports=[PORT], settings=DIRECT) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        open_channel(stack)
        yield stack


@pytest.fixture
def sdk(direct_road: Road) -> Iterator[openai.OpenAI]:
    with direct_road.sdk() as sdk:
        yield sdk
    direct_road.runpod.control("DELETE", "/ep/road")


def connections(stack: Road) -> int:
    """How many connections the road to the workers carries."""
    workers = stack.runpod.control("GET", "")["endpoints"]["ep"]["road"]["workers"]
    return sum(one[PORT]["connections"] for one in workers.values())


def open_channel(stack: Road) -> None:
    """Have the proxy dial the worker: it does so with an answer, a while after it was cut off."""

    def is_open() -> bool:
        with stack.sdk() as sdk:
            said(sdk, tokens=1)
        return connections(stack) == 1

    wait_until(is_open)


def came_by_the_channel(stack: Road) -> bool:
    """Whether the queue has not had all of the last answer; a busy machine acknowledges late."""
    summary = last_output(stack).get("summary")
    return summary is not None and summary["posted"] < summary["frames"]


def last_output(stack: Road) -> Any:
    """What the last job's result ends with."""
    stack.wait_for_no_jobs()
    return stack.runpod.control("GET", "")["endpoints"]["ep"]["jobs"][-1]["output"][-1]


TEXT = "поток 🌍 ẞ\u2028 " * 60
SLOWLY: dict[str, Any] = {"delay_seconds": 0.02, "chunk_bytes": 7}


def test_a_stream_comes_by_the_channel(sdk: openai.OpenAI, direct_road: Road) -> None:
    assert said(sdk, text=TEXT, **SLOWLY) == TEXT
    assert came_by_the_channel(direct_road)


def test_a_plain_answer_comes_by_the_channel_too(direct_road: Road) -> None:
    answer = direct_road.post(script={"text": TEXT})
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    assert last_output(direct_road)["summary"]["usage"] == answer.json()["usage"]


def test_twenty_streams_share_a_channel_and_do_not_mix(
    sdk: openai.OpenAI, direct_road: Road
) -> None:
    texts = [f"{number} {TEXT}" for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda text: said(sdk, text=text, **SLOWLY), texts)) == texts
    assert connections(direct_road) == 1


def test_streams_are_whole_however_often_the_channel_is_cut(
    sdk: openai.OpenAI, direct_road: Road
) -> None:
    texts = [f"{number} {TEXT}" for number in range(5)]
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(said, sdk, text=text, **SLOWLY) for text in texts]
        while not all(stream.done() for stream in streams):
            direct_road.runpod.control("POST", "/ep/road/cut")
            time.sleep(0.7)
    assert [stream.result() for stream in streams] == texts


def test_a_client_that_leaves_stops_vllm_before_runpod_has_heard_of_it(
    sdk: openai.OpenAI, direct_road: Road
) -> None:
    open_channel(direct_road)
    direct_road.runpod.inject(operation="cancel", times=0, delay_seconds=30)
    aborted = direct_road.engine()["aborted"]
    leave(sdk)
    wait_until(lambda: direct_road.engine()["aborted"] == aborted + 1, seconds=15)
    direct_road.runpod.control("DELETE", "/faults")


def test_a_worker_that_was_frozen_ends_its_stream_and_opens_its_door_anew(
    sdk: openai.OpenAI, direct_road: Road
) -> None:
    open_channel(direct_road)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(said, sdk, text=TEXT * 4, **SLOWLY)
        wait_until(lambda: direct_road.engine()["running"] == 1)
        direct_road.runpod.control("POST", "/ep/freeze", {"seconds": 6})
        assert stream.result(timeout=120) == TEXT * 4

    def comes_by_the_channel() -> bool:
        said(sdk, tokens=3)
        return "summary" in last_output(direct_road)

    wait_until(comes_by_the_channel)


def test_it_is_the_same_with_runpods_next_sdk() -> None:
    set_up_next_worker()
    python = next_worker_environment().python
    with (
        road(min_workers=1, ports=[PORT], worker=f"{python} -m worker", settings=DIRECT) as stack,
        stack.sdk() as sdk,
    ):
        open_channel(stack)
        assert said(sdk, text=TEXT, **SLOWLY) == TEXT
        assert came_by_the_channel(stack)
        stack.runpod.control("POST", "/ep/road/cut")
        assert said(sdk, text=TEXT, **SLOWLY) == TEXT
