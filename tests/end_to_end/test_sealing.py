"""Sealed jobs on the whole road: nothing that RunPod keeps or sends holds a word of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from proxy.app import create_app
from tests.emulator.running import API_KEY
from tests.emulator.work.test_webhooks import receiver
from tests.end_to_end.conftest import Road, road
from tests.end_to_end.scripted_streams import said
from tests.end_to_end.test_direct_channel import DIRECT, PORT, connections, last_output
from tests.proxy.conftest import settings_for
from tests.servers import serve
from tests.waiting import wait_until
from tests.wire.sealing import opened_frame, sealed_input

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NEW = "the-new-secret-of-proxy-and-worker"
OLD = "the-old-secret-of-proxy-and-worker"
PROMPT = "heliotrope asks"
SAID = "aubergine answers " * 20 + "🌍"
SLOWLY: dict[str, Any] = {"text": SAID, "delay_seconds": 0.01, "chunk_bytes": 7}


@pytest.fixture(scope="module")
def sealed_road() -> Iterator[Road]:
    """A stack whose jobs are sealed, with one worker up that takes the secret before, too."""
    with road(
        min_workers=1,
        ports=[PORT],
        worker_env={"WORKER_SEAL_SECRET": NEW, "WORKER_SEAL_SECRET_OLD": OLD},
        settings={"seal_secret": NEW, "first_byte_hold_seconds": 60},
    ) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        yield stack


@contextmanager
def proxy_of(stack: Road, **settings: Any) -> Iterator[Road]:
    """The same stack by another proxy."""
    changes = {"runpod_api_key": API_KEY, "first_byte_hold_seconds": 60} | settings
    app = create_app(settings_for(stack.runpod.url.removesuffix("/v2/ep"), **changes))
    with serve(app) as url:
        yield Road(f"{url}/v1", stack.runpod, stack.engine_port)


def kept(stack: Road) -> str:
    """All that the platform has of the endpoint: its jobs with results, and its worker's log."""
    stack.wait_for_no_jobs()
    shown = stack.runpod.control("GET", "")["endpoints"]["ep"]
    answers = [stack.runpod.status(job["id"]) for job in shown["jobs"]]
    return json.dumps([shown, answers, log_up_to(stack, shown["jobs"][-1]["id"])])


def log_up_to(stack: Road, job_id: str) -> list[str]:
    """The lines of the worker's log, up to the one that says that this job is finished."""
    url = stack.runpod.url.partition("/v2/")[0] + "/v2/serverless/ep/workers"
    [worker] = stack.runpod.http.get(url).json()["workers"]
    lines = []
    with stack.runpod.http.stream("GET", f"{url}/{worker['id']}/logs") as log:
        for line in log.iter_lines():
            lines.append(line)
            if job_id in line and "Finished" in line:
                break
    return lines


def asked(stack: Road, **body: Any) -> Any:
    return stack.post(messages=[{"role": "user", "content": PROMPT}], **body)


def test_nothing_that_runpod_keeps_holds_a_word_of_prompt_or_answer(sealed_road: Road) -> None:
    sealed_road.runpod.control("POST", "/reset")
    with sealed_road.sdk() as sdk:
        assert said(sdk, **SLOWLY) == SAID
    answer = asked(sealed_road, script={"text": SAID}).json()
    assert answer["choices"][0]["message"]["content"] == SAID
    assert sealed_road.engine()["requests"][-1]["body"]["messages"][0]["content"] == PROMPT
    refused = asked(sealed_road, script={"status": 422, "text": SAID})
    assert (refused.status_code, "scripted" in refused.text) == (422, True)
    platform = kept(sealed_road)
    assert platform.count('"sealed"') >= 9  # each input and output twice or more
    for word in ("heliotrope", "aubergine", "messages", "choices", "content_type", "req_"):
        assert word not in platform, word


def test_a_stream_and_a_webhook_bring_what_is_sealed_alone(sealed_road: Road) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "script": {"text": SAID}}
    job_input = {
        "openai_route": "/v1/chat/completions",
        "openai_input": body | {"stream": True},
        "proxy": {"protocol": 1, "request_id": "req_1"},
    }
    with receiver() as hook:
        job_id = sealed_road.runpod.run(sealed_input(job_input, NEW), webhook=hook.url)
        outputs = sealed_road.runpod.outputs(job_id)
        wait_until(lambda: len(hook.calls) == 1)
    [(_, told)] = hook.calls
    assert "aubergine" in "".join(opened_frame(output, NEW)["text"] for output in outputs)
    assert "sealed" in told.decode()
    for word in ("heliotrope", "aubergine"):
        assert word not in told.decode() + json.dumps(outputs)


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"seal_secret": OLD}, 200, ""),
        ({"seal_secret": "neither-of-the-secrets-of-this-worker"}, 502, "not the proxy's secret"),
        ({}, 502, "takes sealed jobs only"),
    ],
)
def test_by_which_secret_a_job_is_sealed_decides_before_vllm_is_asked(
    sealed_road: Road, settings: dict[str, Any], status: int, message: str
) -> None:
    before = len(sealed_road.engine()["requests"])
    with proxy_of(sealed_road, **settings) as stack:
        answer = asked(stack)
        assert (answer.status_code, message in answer.text) == (status, True)
        with stack.sdk() as sdk:
            if status == 200:
                assert said(sdk, text="a stream") == "a stream"
            else:
                with pytest.raises(openai.APIStatusError, match=message):
                    said(sdk, text="a stream")
    assert (len(sealed_road.engine()["requests"]) > before) == (status == 200)


def test_an_engine_that_breaks_off_ends_a_sealed_stream_with_an_error(sealed_road: Road) -> None:
    with sealed_road.sdk() as sdk, pytest.raises(openai.APIError, match="broke off"):
        said(sdk, tokens=10, cut_after=5, delay_seconds=0.01)


def test_outputs_that_are_lost_on_the_way_are_found_in_the_result(sealed_road: Road) -> None:
    sealed_road.runpod.inject(operation="stream", skip=1, drop="answer")
    with sealed_road.sdk() as sdk:
        assert said(sdk, **SLOWLY) == SAID
    assert sealed_road.runpod.control("GET", "")["faults"][0]["hits"] == 1
    sealed_road.runpod.control("DELETE", "/faults")


def test_sealed_frames_come_by_the_channel_too(sealed_road: Road) -> None:
    with proxy_of(sealed_road, seal_secret=NEW, **DIRECT) as stack, stack.sdk() as sdk:

        def comes_by_the_channel() -> bool:
            assert said(sdk, **SLOWLY) == SAID
            return connections(stack) == 1 and "summary" in last_output(stack)

        wait_until(comes_by_the_channel)
        platform = kept(stack)
    for word in ("aubergine", "usage", "nonce", '"certificate'):
        assert word not in platform, word
