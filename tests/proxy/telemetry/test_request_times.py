"""How long requests took, by model, route and key."""

import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from proxy.api.answer import Course
from proxy.telemetry.ended_request import EndedRequest
from proxy.telemetry.request_times import MAX_KEYS, RequestTimes
from tests.proxy.conftest import chat
from tests.proxy.http.test_streaming import CHAT, FRAMES, HEAD, event
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.waiting import wait_until

LABELS = {"model": "m", "route": f"POST {CHAT}", "key": "key-1"}
ENDED = EndedRequest("id", "POST", CHAT, 200, "completed", 3.0, f"POST {CHAT}", "key-1", "m")
COUNTED = [
    HEAD | {"text": event("a") + event("b")},
    {
        "seq": 1,
        "text": 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}\n\n'
        "data: [DONE]\n\n",
        "end": True,
    },
]


def observed(registry: CollectorRegistry, name: str, **labels: str) -> tuple[float, float]:
    """How many times were noted, and their sum."""
    labels = LABELS | labels
    count = registry.get_sample_value(f"{name}_count", labels)
    return count or 0.0, registry.get_sample_value(f"{name}_sum", labels) or 0.0


@pytest.mark.parametrize("settings", [{"count_tokens": True}], indirect=True)
def test_a_streams_times_are_told_by_model_route_and_key(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", COUNTED[:1]), Page("COMPLETED")]
    runpod.final = {"status": "COMPLETED", "output": COUNTED, "delayTime": 4321}
    fresh_client.post(CHAT, json=chat(stream=True))
    wait_until(lambda: value(fresh_client, "proxy_request_seconds_count", **LABELS) == 1)
    assert value(fresh_client, "proxy_queue_seconds_sum", **LABELS) == 4.321
    took = value(fresh_client, "proxy_request_seconds_sum", **LABELS)
    first = value(fresh_client, "proxy_time_to_first_token_seconds_sum", **LABELS)
    further = value(fresh_client, "proxy_time_per_output_token_seconds_sum", **LABELS)
    assert 0 < first <= took
    assert first + 8 * further == pytest.approx(took)


RESPONSES = "/v1/responses"
CREATED = 'event: response.created\ndata: {"type":"response.created"}\n\n'
DELTA = 'event: response.output_text.delta\ndata: {"type":"response.output_text.delta"}\n\n'
COMPLETED = 'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'


@pytest.mark.parametrize(("middle", "tokens"), [(DELTA, 1), ("", 0)])
def test_an_event_that_comes_before_the_first_token_is_none(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, middle: str, tokens: int
) -> None:
    frames = [HEAD | {"text": CREATED}, {"seq": 1, "text": middle + COMPLETED, "end": True}]
    runpod.script = [Page("IN_PROGRESS", frames[:1]), Page("COMPLETED", frames[1:])]
    body = {"model": "m", "input": "hi", "stream": True}
    fresh_client.post(RESPONSES, json=body)
    labels = LABELS | {"route": f"POST {RESPONSES}"}
    wait_until(lambda: value(fresh_client, "proxy_request_seconds_count", **labels) == 1)
    name = "proxy_time_to_first_token_seconds_count"
    assert value(fresh_client, name, **labels) == tokens


def test_how_long_a_request_waited_for_a_start_is_told(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()
    runpod.script = [Page("IN_QUEUE", [], hold=begun), Page("COMPLETED", FRAMES)]

    def begin() -> None:
        wait_until(lambda: "a worker has to be started" in caplog.text)
        begun.set()

    with caplog.at_level("INFO", "proxy"):
        waiting = threading.Thread(target=begin)
        waiting.start()
        fresh_client.post(CHAT, json=chat(stream=True))
        waiting.join()
    wait_until(lambda: value(fresh_client, "proxy_cold_start_seconds_count", **LABELS) == 1)
    waited = value(fresh_client, "proxy_cold_start_seconds_sum", **LABELS)
    assert 0 < waited <= value(fresh_client, "proxy_time_to_first_token_seconds_sum", **LABELS)


@pytest.mark.parametrize(
    ("known", "seconds"),
    [
        ({}, None),
        ({"course": Course(was_cold=False, queue_seconds=7)}, None),
        ({"course": Course(was_cold=True, queue_seconds=7), "first_byte_seconds": 9}, 7),
        ({"course": Course(was_cold=True), "first_byte_seconds": 9}, 9),
        (
            {
                "course": Course(was_cold=True, queue_seconds=7),
                "first_byte_seconds": 9,
                "is_stream": True,
            },
            9,
        ),
        ({"course": Course(was_cold=True)}, None),
    ],
)
def test_a_cold_start_is_as_long_as_its_request_waited(
    known: dict[str, Any], seconds: float | None
) -> None:
    assert replace(ENDED, **known).cold_start_seconds == seconds


@pytest.mark.parametrize(
    ("known", "seconds"),
    [
        ({"first_token_seconds": 1.0, "tokens": (5, 11)}, 0.2),
        ({"first_token_seconds": 1.0, "tokens": (5, 1)}, None),
        ({"first_token_seconds": 1.0}, None),
        ({"tokens": (5, 11)}, None),
    ],
)
def test_the_time_of_a_token_is_that_of_those_after_the_first(
    known: dict[str, Any], seconds: float | None
) -> None:
    assert replace(ENDED, **known).seconds_per_token == seconds


def test_what_failed_is_in_no_histogram_of_what_went_well() -> None:
    registry = CollectorRegistry()
    times = RequestTimes(registry)
    course = Course(queue_seconds=2.0)
    failed = replace(ENDED, outcome="worker_failed", first_token_seconds=1.0, course=course)
    times.note(failed)
    assert observed(registry, "proxy_request_seconds") == (0, 0)
    assert observed(registry, "proxy_time_to_first_token_seconds") == (0, 0)
    assert observed(registry, "proxy_queue_seconds") == (1, 2.0)


def test_only_so_many_keys_have_series_of_their_own() -> None:
    registry = CollectorRegistry()
    times = RequestTimes(registry)
    for number in [*range(MAX_KEYS + 3), 0]:
        times.note(replace(ENDED, key=f"k{number}"))
    name = "proxy_request_seconds"
    assert observed(registry, name, key="k0") == (2, 6.0)
    assert observed(registry, name, key=f"k{MAX_KEYS - 1}") == (1, 3.0)
    assert observed(registry, name, key="other") == (3, 9.0)
    assert observed(registry, name, key=f"k{MAX_KEYS}") == (0, 0)
