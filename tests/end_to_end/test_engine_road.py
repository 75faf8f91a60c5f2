"""From an OpenAI client to the engine and back, through the real SDK: many at once, and leaving."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.conftest import Road, road
from tests.end_to_end.scripted_streams import leave, said
from tests.leaving import call_to_leave
from tests.proxy.conftest import KEY
from tests.proxy.test_metrics import value
from tests.waiting import leaving_after, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def sdk(warm_road: Road) -> Iterator[openai.OpenAI]:
    with warm_road.sdk() as sdk:
        yield sdk


def dripped(sdk: openai.OpenAI, text: str) -> str:
    """This text as it arrives, if it comes slowly and cut anywhere."""
    return said(sdk, text=text, delay_seconds=0.01, chunk_bytes=7)


def test_twenty_streams_at_once_do_not_mix(sdk: openai.OpenAI, warm_road: Road) -> None:
    texts = [f"поток {i} " + f"— {i} 🌍 ẞ\u2028 " * 40 for i in range(20)]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda text: dripped(sdk, text), texts)) == texts
    warm_road.wait_for_no_jobs()


def test_a_client_that_leaves_a_stream_stops_the_engine(
    sdk: openai.OpenAI, warm_road: Road
) -> None:
    aborted = warm_road.engine()["aborted"]
    leave(sdk)
    wait_until(lambda: warm_road.engine()["aborted"] == aborted + 1)
    wait_until(lambda: warm_road.engine()["running"] == 0)


def test_the_time_that_a_worker_took_for_a_plain_answer_is_counted(warm_road: Road) -> None:
    before = worker_seconds(warm_road)
    assert warm_road.post(script={"tokens": 2, "first_delay_seconds": 1}).status_code == 200
    wait_until(lambda: worker_seconds(warm_road) - before >= 0.9)
    assert worker_seconds(warm_road) - before < 30


def worker_seconds(road: Road) -> float:
    """For how long workers have had jobs, by the metrics."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=road.url.removesuffix("/v1"), headers=headers, timeout=60) as client:
        return value(client, "proxy_worker_seconds_total", endpoint="ep")


def test_a_client_that_leaves_a_plain_request_stops_the_engine(warm_road: Road) -> None:
    aborted = warm_road.engine()["aborted"]
    body = _body({"tokens": 10_000, "delay_seconds": 0.02})
    with call_to_leave(f"{warm_road.url}/chat/completions", key=KEY, body=body):
        wait_until(lambda: warm_road.engine()["running"] == 1)
    wait_until(lambda: warm_road.engine()["aborted"] == aborted + 1)


def test_a_job_that_is_left_just_after_it_was_taken_stops_all_the_same(warm_road: Road) -> None:
    with ThreadPoolExecutor(8) as pool:
        for timeout in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4):
            pool.submit(_leave_after, warm_road, timeout, {"hang": True})
    warm_road.wait_for_no_jobs()
    wait_until(lambda: warm_road.engine()["running"] == 0)


def _body(script: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], "script": script}


def _leave_after(road: Road, seconds: float, script: dict[str, Any]) -> None:
    """Ask, and hang up; not by an SDK's own timeout, after which its job is held for a retry."""
    headers = {"authorization": f"Bearer {KEY}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{road.url}/chat/completions",
            json=_body(script),
            headers=headers,
            timeout=leaving_after(seconds),
        )


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
@pytest.mark.parametrize("wants_stream", [True, False])
def test_an_error_of_the_engine_arrives_as_it_is(
    warm_road: Road, status: int, wants_stream: bool
) -> None:
    answer = warm_road.post(script={"status": status}, stream=wants_stream)
    assert answer.status_code == status
    assert "scripted" in answer.json()["error"]["message"]


def test_half_a_surrogate_pair_reaches_the_engine_as_it_was_sent(warm_road: Road) -> None:
    messages = [{"role": "user", "content": "cut off: \ud83d"}]
    body = json.dumps({"model": "m", "messages": messages, "script": {"text": "Hi"}})
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = f"{warm_road.url}/chat/completions"
    assert httpx.post(url, content=body, headers=headers, timeout=60).status_code == 200
    assert warm_road.engine()["requests"][-1]["body"]["messages"] == messages


def test_an_answer_larger_than_a_frame_is_whole(warm_road: Road) -> None:
    text = "日本語🙂" * 100_000
    answer = warm_road.post(script={"text": text})
    assert answer.json()["choices"][0]["message"]["content"] == text


def test_a_result_too_large_to_be_returned_is_whole() -> None:
    """RunPod refuses it, and has the job COMPLETED without an output."""
    script = {"tokens": 2_000, "event_bytes": 1_000}
    with road(max_run_bytes=1_000_000) as stack, stack.sdk() as sdk:
        answer = stack.post(script=script).json()["choices"][0]["message"]["content"]
        assert len(answer) >= 2_000_000
        assert said(sdk, **script) == answer
        stack.wait_for_no_jobs()
        jobs = stack.runpod.control("GET", "")["endpoints"]["ep"]["jobs"]
        assert [(job["status"], job.get("output")) for job in jobs] == [("COMPLETED", None)] * 2


def test_an_engine_that_breaks_off_ends_the_stream_with_an_error(
    sdk: openai.OpenAI, warm_road: Road
) -> None:
    stream = sdk.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"script": {"tokens": 10, "cut_after": 5, "delay_seconds": 0.01}},
    )
    with pytest.raises(openai.APIError):
        list(stream)


def test_the_models_are_listed_while_the_worker_is_busy(
    sdk: openai.OpenAI, warm_road: Road
) -> None:
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(dripped, sdk, "word " * 100)
        assert [model.id for model in sdk.models.list()] == ["m"]
        busy.result()
