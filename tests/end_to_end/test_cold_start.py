"""Scale to zero and back: keep-alives, an answer, and no process left."""

import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.end_to_end.conftest import Road, road
from tests.leaving import call_to_leave
from tests.proxy.conftest import KEY, chat
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def cold_road() -> Iterator[Road]:
    with road(idle_timeout_seconds=2, cold_start_delay_seconds=3) as stack:
        yield stack


def worker_processes(engine_port: int) -> list[psutil.Process]:
    """Every process that belongs to a worker of this road."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if environment.get("WORKER_VLLM_PORT") == str(engine_port):
            found.append(process)
    return found


def test_a_first_request_wakes_a_worker_and_is_kept_alive_until_it_answers(
    cold_road: Road,
) -> None:
    url = f"{cold_road.url}/chat/completions"
    cold_road.runpod.control("POST", "/ep/throttle")
    with httpx.stream("POST", url, json=chat(stream=True), headers=HEADERS, timeout=60) as answer:
        pieces = answer.iter_text()
        text = ""
        while text.count(": queued\n\n") < 3:
            text += next(pieces)
        assert text == ": queued\n\n" * text.count("\n\n")
        assert cold_road.workers() == 0
        models = httpx.get(f"{cold_road.url}/models", headers=HEADERS, timeout=60)
        assert [model["id"] for model in models.json()["data"]] == ["m"]
        cold_road.runpod.control("DELETE", "/ep/throttle")
        wait_until(lambda: bool(worker_processes(cold_road.engine_port)))
        text = "".join(pieces)
    assert text.endswith("data: [DONE]\n\n")
    wait_until(lambda: cold_road.workers() == 0, seconds=60)
    wait_until(lambda: not worker_processes(cold_road.engine_port))


def test_the_list_of_models_starts_no_worker(cold_road: Road) -> None:
    for path in ("/models", "/models/m"):
        assert httpx.get(cold_road.url + path, headers=HEADERS, timeout=60).status_code == 200
    time.sleep(1)  # nothing is to happen, so there is nothing to wait for
    assert cold_road.workers() == 0
    assert worker_processes(cold_road.engine_port) == []


def test_a_queued_job_that_is_left_never_runs() -> None:
    with road() as cold_road:
        cold_road.runpod.control("POST", "/ep/throttle")
        with call_to_leave(f"{cold_road.url}/chat/completions", key=KEY, body=chat()):
            wait_until(lambda: cold_road.runpod.health()["jobs"]["inQueue"] == 1)
        cold_road.wait_for_no_jobs()
        cold_road.runpod.control("DELETE", "/ep/throttle")
        cold_road.post(script={"text": "only this"})
        told = cold_road.engine()
    assert told["started"] == 1
    assert told["requests"][0]["body"]["script"] == {"text": "only this"}


def test_a_cold_start_that_takes_too_long_is_told_as_such() -> None:
    with road(cold_start_delay_seconds=30, settings={"queue_timeout_seconds": 1}) as stack:
        answer = stack.post()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "cold_start_timeout"
        assert answer.headers["retry-after"]
        stack.wait_for_no_jobs()
