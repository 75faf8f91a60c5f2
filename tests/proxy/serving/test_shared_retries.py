"""A retry of an SDK that lands on another copy of the proxy gets the answer that is under way."""

import http.client
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import httpx
import openai
import pytest
import redis as redis_client

from proxy.api import retries
from proxy.serving import claims, handed_on, several_readers
from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.serving.test_shared_answers import (
    AGAIN,
    Copies,
    copies,
    is_wanted,
    keys_in,
    redis,
)
from tests.proxy.serving.test_sharing import (
    JAVASCRIPT,
    PLAIN,
    TEXT,
    TWO_KEYS,
    ask,
    leave,
    patient_margin,
)
from tests.redis_server import RedisServer
from tests.waiting import wait_until

__all__ = ["copies", "patient_margin", "redis"]

RETRY = JAVASCRIPT | {"x-stainless-retry-count": "1"}
OVERDUE = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "1e-6"}
LANGCHAIN = JAVASCRIPT | {"user-agent": "langchainjs-openai/1.0.0"}


@contextmanager
def sdk_of_both(copies: Copies, **options: Any) -> Iterator[tuple[openai.OpenAI, list[int]]]:
    """OpenAI's SDK before two copies, each attempt to the next, and the ports that were asked."""
    ports = cycle(copy.base_url.port for copy in copies)
    asked: list[int] = []

    def to_next(request: Any) -> None:
        asked.append(next(ports) or 0)
        request.url = request.url.copy_with(port=asked[-1])

    client = openai.DefaultHttpxClient(event_hooks={"request": [to_next]})
    url = str(copies[0].base_url.join("/v1"))
    with openai.OpenAI(base_url=url, api_key=KEY, http_client=client, **options) as client_of_both:
        yield client_of_both, asked


@contextmanager
def waiting(runpod: ScriptedRunPod) -> Iterator[Callable[[], None]]:
    """Jobs wait, until what this gives is called: then each is answered."""
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", hold=hold)]

    def answer() -> None:
        runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(10)]
        hold.set()

    try:
        yield answer
    finally:
        hold.set()


def left_in(redis: RedisServer) -> int:
    """How many answers may be taken by another copy."""
    with redis_client.Redis.from_url(redis.url) as client:
        return sum(client.llen(key) for key in client.keys("*:answer:*:left"))


def leave_one(
    copy: httpx.Client,
    runpod: ScriptedRunPod,
    redis: RedisServer,
    headers: dict[str, str] = JAVASCRIPT,
) -> None:
    """Ask there as an SDK does, and leave."""
    before = left_in(redis)
    leave(copy, runpod, headers)
    wait_until(lambda: left_in(redis) == before + 1)


@pytest.mark.slow
def test_the_retry_of_an_sdk_whose_timeout_passes_joins_at_the_other_copy(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A copy may see the request seconds after the SDK has begun to count its own.
    monkeypatch.setattr(retries, "TIMEOUT_SHARE", 0.05)
    with (
        waiting(runpod) as answer_jobs,
        ThreadPoolExecutor() as pool,
        sdk_of_both(copies, timeout=4, max_retries=5) as (client, asked),
    ):
        answer = pool.submit(ask, client)
        wait_until(lambda: is_wanted(redis))
        answer_jobs()
        assert answer.result() == "Grüße"
    assert len(set(asked)) == 2
    assert len(runpod.jobs) == 1
    assert runpod.cancelled == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"first_byte_hold_seconds": 60}])
def test_the_retry_of_a_stream_joins_at_the_other_copy_by_its_idempotency_key(
    copies: Copies, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", hold=hold), Page("COMPLETED", FRAMES)]

    def streamed(client: openai.OpenAI) -> str:
        stream = client.chat.completions.create(**chat(stream=True), extra_headers=AGAIN)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    with (
        ThreadPoolExecutor() as pool,
        sdk_of_both(copies, timeout=4, max_retries=5) as (client, asked),
    ):
        answer = pool.submit(streamed, client)
        wait_until(lambda: len(asked) >= 2)
        hold.set()
        assert answer.result() == "Grüße 🌍, \u2028ok"
    assert len(set(asked)) == 2
    assert len(runpod.jobs) == 1
    assert runpod.cancelled == []


@pytest.mark.parametrize("again", [RETRY, LANGCHAIN])
def test_what_was_left_at_one_copy_is_told_at_the_other(
    copies: Copies,
    runpod: ScriptedRunPod,
    redis: RedisServer,
    patient_margin: None,
    again: dict[str, str],
) -> None:
    one, other = copies
    with waiting(runpod) as answer_jobs:
        leave_one(one, runpod, redis)
        answer_jobs()
        answer = other.post(CHAT, json=chat(), headers=again)
    assert (answer.status_code, answer.text) == (200, TEXT)
    assert answer.headers["x-runpod-job-id"] == runpod.job_id
    assert len(runpod.jobs) == 1
    assert runpod.cancelled == []
    wait_until(lambda: keys_in(redis, "*:claim") + keys_in(redis, "*:left") == [])


def test_redis_can_read_no_prompt(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, patient_margin: None
) -> None:
    with waiting(runpod):
        leave_one(copies[0], runpod, redis)
        with redis_client.Redis.from_url(redis.url) as client:
            names = list(client.keys())
            kept = b"".join([*names, *(client.dump(name) or b"" for name in names)])
    assert chat()["messages"][0]["content"].encode() not in kept


def test_a_request_that_is_no_retry_asks_redis_nothing_of_answers(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, patient_margin: None
) -> None:
    one, other = copies
    python = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "600"}
    with redis_client.Redis.from_url(redis.url) as client:
        runpod.script = [Page("COMPLETED", [PLAIN])]
        assert one.post(CHAT, json=chat(), headers=python).text == TEXT
        assert "cmdstat_rpush" not in client.info("commandstats")
        with waiting(runpod) as answer_jobs:
            leave_one(one, runpod, redis)
            answer_jobs()
            for headers in ({}, python, JAVASCRIPT):
                assert other.post(CHAT, json=chat(), headers=headers).text == TEXT
        assert "cmdstat_lpop" not in client.info("commandstats")
    assert len(runpod.jobs) == 5


@pytest.mark.parametrize("settings", [TWO_KEYS])
def test_another_keys_retry_gets_an_answer_of_its_own(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, patient_margin: None
) -> None:
    one, other = copies
    with waiting(runpod) as answer_jobs:
        leave_one(one, runpod, redis)
        answer_jobs()
        headers = RETRY | {"authorization": "Bearer sk-other"}
        answer = other.post(CHAT, json=chat(), headers=headers)
        different = other.post(CHAT, json=chat(n=2), headers=RETRY)
        assert (answer.text, different.text) == (TEXT, TEXT)
        assert len(runpod.jobs) == 3
        assert left_in(redis) == 1


def test_retries_that_come_alike_take_a_job_each(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, patient_margin: None
) -> None:
    one, other = copies
    with waiting(runpod) as answer_jobs, ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            leave_one(one, runpod, redis, OVERDUE)
        again = [pool.submit(other.post, CHAT, json=chat(), headers=RETRY) for _ in range(3)]
        wait_until(lambda: len(runpod.jobs) == 3)
        answer_jobs()
        assert len({answer.result().headers["x-runpod-job-id"] for answer in again}) == 3


def test_what_a_retry_joins_in_its_own_copy_no_other_copy_gets(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, patient_margin: None
) -> None:
    one, other = copies
    with waiting(runpod) as answer_jobs, ThreadPoolExecutor(2) as pool:
        leave_one(one, runpod, redis)
        here = pool.submit(one.post, CHAT, json=chat(), headers=RETRY)
        wait_until(lambda: left_in(redis) == 0)
        there = pool.submit(other.post, CHAT, json=chat(), headers=RETRY)
        wait_until(lambda: len(runpod.jobs) == 2)
        answer_jobs()
        assert len({answer.result().headers["x-runpod-job-id"] for answer in (here, there)}) == 2


def test_a_client_whose_timeout_has_passed_counts_as_gone_before_that_is_known(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer
) -> None:
    hold = threading.Event()
    begun = {key: value for key, value in PLAIN.items() if key != "end"} | {"text": TEXT[:9]}
    runpod.script = [
        Page("IN_PROGRESS", [begun]),
        Page("IN_PROGRESS", hold=hold),
        Page("COMPLETED", [{"seq": 1, "text": TEXT[9:], "end": True}]),
    ]
    one, other = copies
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.post, CHAT, json=chat(), headers=OVERDUE)
        wait_until(lambda: left_in(redis) == 1)
        again = pool.submit(other.post, CHAT, json=chat(), headers=RETRY)
        try:
            wait_until(lambda: is_wanted(redis))
            wait_until(lambda: len(keys_in(redis, "*:answer:*")) == 3)  # it is handed on
        finally:
            hold.set()
        assert (first.result().text, again.result().text) == (TEXT, TEXT)
    assert len(runpod.jobs) == 1


def test_a_retry_may_be_left_too_and_the_next_one_comes_back(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, patient_margin: None
) -> None:
    one, other = copies
    with waiting(runpod) as answer_jobs:
        leave_one(one, runpod, redis)
        _leave_when_taken(other, redis)
        wait_until(lambda: left_in(redis) == 1)
        answer_jobs()
        answer = one.post(CHAT, json=chat(), headers=RETRY | {"x-stainless-retry-count": "2"})
    assert answer.text == TEXT
    assert len(runpod.jobs) == 1


@pytest.mark.slow
def test_a_job_whose_retry_is_left_for_good_is_cancelled_without_waiting_for_a_lease(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handed_on, "LEASE_SECONDS", 3600)
    monkeypatch.setattr(several_readers, "RETRY_MARGIN_SECONDS", 60)
    runpod.script = [Page("IN_QUEUE")]
    leave_one(copies[0], runpod, redis)
    monkeypatch.setattr(several_readers, "RETRY_MARGIN_SECONDS", 0)
    _leave_when_taken(copies[1], redis)
    wait_until(lambda: runpod.job_id in runpod.cancelled)
    assert len(runpod.jobs) == 1


def test_when_the_copy_that_had_it_says_nothing_any_more_the_retry_starts_anew(
    copies: Copies,
    runpod: ScriptedRunPod,
    redis: RedisServer,
    patient_margin: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handed_on, "LEASE_SECONDS", 1)
    one, other = copies
    with waiting(runpod) as answer_jobs, ThreadPoolExecutor() as pool:
        leave_one(one, runpod, redis)
        monkeypatch.setattr(claims.Claim, "renew", _never)
        again: Future[httpx.Response] = pool.submit(other.post, CHAT, json=chat(), headers=RETRY)
        wait_until(lambda: len(runpod.jobs) == 2)
        answer_jobs()
        assert again.result().text == TEXT


def test_while_redis_is_away_a_retry_has_a_job_of_its_own(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer, patient_margin: None
) -> None:
    one, other = copies
    with waiting(runpod) as answer_jobs:
        leave_one(one, runpod, redis)
        redis.stop()
        answer_jobs()
        assert other.post(CHAT, json=chat(), headers=RETRY).text == TEXT
        assert len(runpod.jobs) == 2
        assert one.post(CHAT, json=chat(), headers=RETRY).text == TEXT
        assert len(runpod.jobs) == 2


async def _never(claim: Any) -> None:
    """In place of a copy that has died."""


def _leave_when_taken(copy: httpx.Client, redis: RedisServer) -> None:
    """Send a retry there, and leave when it waits for the other copy."""
    request = copy.build_request("POST", CHAT, json=chat(), headers=RETRY)
    connection = http.client.HTTPConnection(request.url.netloc.decode(), timeout=30)
    connection.request("POST", CHAT, request.content, dict(request.headers))
    wait_until(lambda: is_wanted(redis))
    connection.close()
