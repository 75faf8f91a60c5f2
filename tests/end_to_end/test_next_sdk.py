"""The whole road with RunPod's next SDK in the worker."""

from collections.abc import Iterator

import pytest

from scripts.set_up import next_worker_environment, set_up_next_worker
from tests.end_to_end.conftest import Road, road
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def next_road() -> Iterator[Road]:
    set_up_next_worker()
    worker = f"{next_worker_environment().python} -m worker"
    with road(worker=worker, min_workers=1) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        yield stack


def test_a_chat_is_streamed(next_road: Road) -> None:
    with next_road.sdk() as sdk:
        stream = sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True, max_tokens=5
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == next_road.post(max_tokens=5).json()["choices"][0]["message"]["content"]


def test_a_client_that_leaves_aborts_the_generation(next_road: Road) -> None:
    script = {"tokens": 100_000, "delay_seconds": 0.01}
    with next_road.sdk() as sdk:
        stream = sdk.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            extra_body={"script": script},
        )
        next(iter(stream))
        stream.close()
    wait_until(lambda: next_road.engine()["running"] == 0)
    next_road.wait_for_no_jobs()
