"""A request that comes again at another copy of the proxy joins the job that runs for it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_client

from proxy.app import create_app
from proxy.serving import handed_on, several_readers
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import BODY, CHAT, FRAMES
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.serving.test_sharing import PLAIN, TEXT
from tests.redis_server import RedisServer, redis_server
from tests.servers import serve
from tests.waiting import wait_until

AGAIN = {"idempotency-key": "once"}
Copies = tuple[httpx.Client, httpx.Client]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def copies(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    redis: RedisServer,
    tmp_path: Path,
    settings: dict[str, Any],
) -> Iterator[Copies]:
    """Clients of two copies."""
    headers = {"authorization": f"Bearer {KEY}"}
    with ExitStack() as stack:
        clients = []
        for name in ("a", "b"):
            app = create_app(
                settings_for(
                    scripted_runpod[1],
                    redis_url=redis.url,
                    copies=2,
                    state_dir=tmp_path / name,
                    **settings,
                )
            )
            url = stack.enter_context(serve(app))
            client = httpx.Client(base_url=url, headers=headers, timeout=60)
            clients.append(stack.enter_context(client))
        yield clients[0], clients[1]


def test_a_repetition_at_another_copy_gets_the_answer_that_is_under_way(
    copies: Copies, runpod: ScriptedRunPod
) -> None:
    release = threading.Event()
    runpod.script = [Page("IN_PROGRESS", hold=release), Page("COMPLETED", [PLAIN])]
    one, other = copies
    with ThreadPoolExecutor() as pool:
        first = pool.submit(one.post, CHAT, json=chat(), headers=AGAIN)
        wait_until(lambda: len(runpod.jobs) == 1)
        wrong = other.post(CHAT, json=chat(n=2), headers=AGAIN)
        assert (wrong.status_code, error_of(wrong)["code"]) == (400, "idempotency_key_reused")
        second = pool.submit(other.post, CHAT, json=chat(), headers=AGAIN)
        release.set()
        answers = [first.result(), second.result()]
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, TEXT)] * 2
    jobs = {answer.headers["x-runpod-job-id"] for answer in answers}
    assert len(jobs) == len(runpod.jobs) == 1


def test_a_stream_that_is_left_at_one_copy_comes_whole_at_the_other(
    copies: Copies, runpod: ScriptedRunPod
) -> None:
    release = threading.Event()
    runpod.script = [
        Page("IN_PROGRESS", FRAMES[:2]),
        Page("IN_PROGRESS", hold=release),
        Page("COMPLETED", FRAMES[2:]),
    ]
    one, other = copies
    body = chat(stream=True)
    with one.stream("POST", CHAT, json=body, headers=AGAIN) as left:
        next(left.iter_raw())
    with other.stream("POST", CHAT, json=body, headers=AGAIN) as answer:
        pieces = answer.iter_raw()
        seen = b""
        while FRAMES[1]["text"].encode() not in seen:  # it comes before the end does
            seen += next(pieces)
        release.set()
        seen += b"".join(pieces)
    events = [event for event in seen.split(b"\n\n") if not event.startswith(b":")]
    assert b"\n\n".join(events) == BODY.encode()
    assert len(runpod.jobs) == 1
    assert runpod.cancelled == []


def test_an_answer_that_has_ended_is_given_again_by_another_copy(
    copies: Copies, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    for client in (*copies, *copies):
        assert client.post(CHAT, json=chat(), headers=AGAIN).text == TEXT
    assert len(runpod.jobs) == 1


def test_an_error_at_one_copy_is_told_at_the_other(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer
) -> None:
    release = threading.Event()
    runpod.script = [Page("IN_PROGRESS", hold=release), Page("FAILED")]
    runpod.final = {"status": "FAILED", "error": "no luck"}
    one, other = copies
    with ThreadPoolExecutor() as pool:
        first = pool.submit(one.post, CHAT, json=chat(), headers=AGAIN)
        wait_until(lambda: len(runpod.jobs) == 1)
        second = pool.submit(other.post, CHAT, json=chat(), headers=AGAIN)
        wait_until(lambda: is_wanted(redis))
        release.set()
        answers = [first.result(), second.result()]
    assert {answer.status_code for answer in answers} == {502}
    assert {error_of(answer)["code"] for answer in answers} == {"worker_failed"}
    assert len(runpod.jobs) == 1
    # Which is not kept: asking again may well help.
    runpod.script, runpod.final = [Page("COMPLETED", [PLAIN])], None
    wait_until(lambda: other.post(CHAT, json=chat(), headers=AGAIN).status_code == 200)


@pytest.mark.slow
def test_what_nobody_wants_at_either_copy_is_cancelled(
    copies: Copies, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(several_readers, "HOLD_SECONDS", 1.0)
    monkeypatch.setattr(handed_on, "LEASE_SECONDS", 4.0)
    runpod.script = [Page("IN_PROGRESS", FRAMES[:2]), Page("IN_PROGRESS")]
    for client in copies:
        with client.stream("POST", CHAT, json=chat(stream=True), headers=AGAIN) as left:
            next(left.iter_raw())
    wait_until(lambda: len(runpod.cancelled) == len(runpod.jobs) == 1)


def test_a_redis_that_goes_meanwhile_is_told_and_costs_no_second_job(
    copies: Copies, runpod: ScriptedRunPod, redis: RedisServer
) -> None:
    release = threading.Event()
    runpod.script = [Page("IN_PROGRESS", hold=release), Page("COMPLETED", [PLAIN])]
    one, other = copies
    with ThreadPoolExecutor() as pool:
        first = pool.submit(one.post, CHAT, json=chat(), headers=AGAIN)
        wait_until(lambda: len(runpod.jobs) == 1)
        second = pool.submit(other.post, CHAT, json=chat(), headers=AGAIN)
        wait_until(lambda: is_wanted(redis))
        redis.stop()
        refused = second.result()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "shared_state_away")
        assert refused.headers["retry-after"] == "1"
        release.set()
        assert first.result().text == TEXT
    assert len(runpod.jobs) == 1


@pytest.mark.slow
def test_when_the_copy_that_had_it_is_killed_the_request_starts_anew(
    copies: Copies,
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    redis: RedisServer,
    tmp_path: Path,
) -> None:
    never = threading.Event()
    runpod.script = [Page("IN_PROGRESS", hold=never)]
    killed = Proxy(scripted_runpod[1], state_dir=tmp_path / "killed", redis_url=redis.url, copies=2)
    try:
        with ThreadPoolExecutor() as pool:
            pool.submit(killed.client.post, CHAT, json=chat(), headers=AGAIN)
            wait_until(lambda: len(runpod.jobs) == 1)
            second = pool.submit(copies[0].post, CHAT, json=chat(), headers=AGAIN)
            wait_until(lambda: is_wanted(redis))
            runpod.script = [Page("COMPLETED", [PLAIN])]
            killed.process.kill()
            assert second.result().text == TEXT
        assert len(runpod.jobs) == 2
    finally:
        killed.close()


def keys_in(server: RedisServer, pattern: str) -> list[str]:
    with redis_client.Redis.from_url(server.url, decode_responses=True) as client:
        return [str(key) for key in client.keys(pattern)]


def is_wanted(server: RedisServer) -> bool:
    """Whether a copy waits for an answer that another has."""
    return bool(keys_in(server, "*:answer:*:wanted"))
