"""A proxy that is told to stop: streams finish in the grace time, the rest end honestly."""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from proxy import app
from proxy.backends.runpod.journal import Journal, Orphan
from tests.leaving import call_to_leave
from tests.proxy.conftest import KEY, asked, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import (
    BODY,
    CHAT,
    FRAMES,
    last_error,
    parts_of,
    without_comments,
)
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve
from tests.waiting import wait_until

BALANCED = """
[endpoints.lb]
kind = "load-balancing"
url = "{url}"
[models.m]
endpoint = "lb"
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of this test that differ."""
    changes: dict[str, Any] = getattr(request, "param", {})
    return changes


@pytest.fixture
def proxy(
    scripted_runpod: tuple[ScriptedRunPod, str],
    request: pytest.FixtureRequest,
    changes: dict[str, Any],
    tmp_path: Path,
) -> Iterator[Proxy]:
    proxy = Proxy(scripted_runpod[1], drain_seconds=request.param, state_dir=tmp_path, **changes)
    yield proxy
    proxy.close()


def is_refused(proxy: Proxy) -> bool:
    """Whether the proxy takes no more connections, as it does once it has seen the signal."""
    try:
        socket.create_connection(("127.0.0.1", httpx.URL(proxy.url).port or 80), 30).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("proxy", [20], indirect=True)
def test_a_stream_that_ends_in_the_grace_time_is_whole(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", FRAMES[1:], hold=hold)]
    with proxy.client.stream("POST", CHAT, json=chat(stream=True), timeout=30) as response:
        pieces = response.iter_bytes()
        first = next(pieces)
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(proxy))
        hold.set()
        rest = b"".join(pieces)
    assert without_comments((first + rest).decode()) == BODY
    assert proxy.process.wait(timeout=30) == 0
    assert runpod.cancelled == []


@pytest.mark.parametrize("proxy", [1], indirect=True)
def test_a_stream_that_does_not_end_gets_an_error_and_its_job_is_cancelled(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    with proxy.client.stream("POST", CHAT, json=chat(stream=True), timeout=30) as response:
        parts = parts_of(response.iter_bytes())
        assert FRAMES[0]["text"] in parts
        proxy.process.send_signal(signal.SIGTERM)
        text = "".join(parts)
    assert last_error(text)["code"] == "shutting_down"
    assert proxy.process.wait(timeout=30) == 0
    assert runpod.cancelled == [runpod.job_id]


@pytest.mark.parametrize("proxy", [3], indirect=True)
def test_more_signals_do_not_move_the_end_of_the_grace_time(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    with proxy.client.stream("POST", CHAT, json=chat(stream=True), timeout=30) as response:
        pieces = response.iter_bytes()
        received = next(pieces)
        for piece in pieces:  # a comment every second or so
            proxy.process.send_signal(signal.SIGTERM)
            received += piece
    assert last_error(received.decode())["code"] == "shutting_down"


@pytest.mark.parametrize("proxy", [0], indirect=True)
def test_a_job_whose_submission_runpod_has_not_answered_yet_is_cancelled(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.run_delay_seconds = 5
    with asked(proxy.client):
        wait_until(lambda: runpod.jobs != [])
    proxy.client.close()
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(timeout=30) == 0
    assert runpod.job_id in runpod.cancelled


@pytest.mark.parametrize("refusals", [0, 1])
@pytest.mark.parametrize("proxy", [0], indirect=True)
def test_a_request_that_is_still_being_submitted_when_the_grace_time_ends_is_told(
    proxy: Proxy, runpod: ScriptedRunPod, refusals: int
) -> None:
    refusal = Response(status_code=429, headers={"retry-after": "60"})
    runpod.run_answers = [refusal] * refusals
    runpod.run_delay_seconds = 0 if refusals else 8
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(proxy.client.post, CHAT, json=chat(), timeout=httpx.Timeout(30))
        wait_until(lambda: runpod.jobs != [] or (refusals > 0 and runpod.run_answers == []))
        proxy.process.send_signal(signal.SIGTERM)
        assert answer.result().status_code == 503
    assert error_of(answer.result())["code"] == "shutting_down"
    # Nor does RunPod answer it in the middle of the next test.
    wait_until(lambda: refusals > 0 or runpod.job_id != "")


@pytest.mark.parametrize("proxy", [1], indirect=True)
def test_a_stream_whose_rest_is_being_fetched_when_the_grace_time_ends_is_told(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("COMPLETED")]
    runpod.final = {"status": "COMPLETED", "output": FRAMES}
    runpod.status_drips = threading.Event()
    with proxy.client.stream("POST", CHAT, json=chat(stream=True), timeout=30) as response:
        parts = parts_of(response.iter_bytes())
        assert FRAMES[0]["text"] in parts
        proxy.process.send_signal(signal.SIGTERM)
        text = "".join(parts)
    assert last_error(text)["code"] == "shutting_down"
    assert proxy.process.wait(timeout=30) == 0


def test_a_load_balancing_call_that_is_long_in_coming_ends_with_the_grace_time(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path: Path
) -> None:
    server = ScriptedServer()
    server.replies = [Reply(head_hold=threading.Event())]
    config = tmp_path / "proxy.toml"
    with serve(server.app) as url, ThreadPoolExecutor() as pool:
        config.write_text(BALANCED.format(url=url))
        proxy = Proxy(scripted_runpod[1], drain_seconds=1, state_dir=tmp_path, config=config)
        try:
            answer = pool.submit(proxy.client.post, CHAT, json=chat(), timeout=60)
            wait_until(lambda: len(server.requests) == 1)
            proxy.process.send_signal(signal.SIGTERM)
            assert error_of(answer.result())["code"] == "shutting_down"
            assert proxy.process.wait(timeout=30) == 0
        finally:
            proxy.close()


@pytest.mark.parametrize("proxy", [60], indirect=True)
def test_an_idle_proxy_stops_at_once(proxy: Proxy) -> None:
    proxy.client.close()
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(timeout=50) == 0


@pytest.fixture
def leaving(scripted_runpod: tuple[ScriptedRunPod, str], tmp_path: Path) -> Iterator[Proxy]:
    """A proxy that would take requests for minutes after it is told to stop."""
    proxy = Proxy(scripted_runpod[1], shutdown_delay_seconds=600, state_dir=tmp_path)
    yield proxy
    proxy.close()


def test_a_proxy_that_is_told_to_stop_answers_on_until_the_delay_is_over(
    leaving: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    leaving.process.send_signal(signal.SIGTERM)
    wait_until(lambda: leaving.client.get("/ready").status_code == 503)
    wait_until(lambda: leaving.client.get("/health").headers.get("connection") == "close")
    response = httpx.post(
        leaving.url + CHAT,
        json=chat(stream=True),
        headers={"authorization": f"Bearer {KEY}"},
        timeout=30,
    )
    assert (response.status_code, response.headers["connection"]) == (200, "close")
    assert without_comments(response.text) == BODY
    assert leaving.client.get("/health").status_code == 200


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_delay(leaving: Proxy, second: signal.Signals) -> None:
    leaving.process.send_signal(signal.SIGTERM)
    wait_until(lambda: leaving.client.get("/ready").status_code == 503)
    leaving.client.close()
    leaving.process.send_signal(second)
    assert leaving.process.wait(timeout=60) == 0


def test_a_proxy_stops_by_itself_when_the_delay_is_over(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path: Path
) -> None:
    proxy = Proxy(scripted_runpod[1], shutdown_delay_seconds=1, state_dir=tmp_path)
    try:
        proxy.client.close()
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(timeout=60) == 0
    finally:
        proxy.close()


def test_what_was_begun_is_ended_however_the_proxy_ends(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path: Path
) -> None:
    application = app.create_app(settings_for(scripted_runpod[1], state_dir=tmp_path))

    def journals() -> list[Path]:
        return list(tmp_path.glob("*.sqlite3"))

    async def breaks() -> None:
        async with application.router.lifespan_context(application):
            assert journals() != []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(breaks())
    assert journals() == []


@pytest.mark.parametrize("proxy", [0], indirect=True)
@pytest.mark.parametrize("changes", [{"cancel_limit": "10/5"}], indirect=True)
def test_more_jobs_than_runpod_lets_cancel_in_ten_seconds_are_all_cancelled(
    proxy: Proxy, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1])] * 12 + [Page("IN_PROGRESS")]
    with ExitStack() as streams:
        for _ in range(12):
            streams.enter_context(asked(proxy.client, stream=True))
        wait_until(lambda: len(proxy.journal()) == 12)
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(timeout=90) == 0
    assert len(set(runpod.cancelled)) == 12
    assert list(proxy.state_dir.glob("*.sqlite3")) == []


def test_jobs_that_could_not_be_cancelled_are_named_and_kept_for_the_next_start(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(app, "LAST_CALLS_SECONDS", 1)
    runpod.script = [Page("IN_PROGRESS")]
    settings = settings_for(scripted_runpod[1], state_dir=tmp_path)
    with serve(app.create_app(settings)) as url:
        with call_to_leave(f"{url}{CHAT}", key=KEY, body=chat()):
            wait_until(lambda: runpod.stream_calls > 0)
        runpod.cancel_answers = [Response(status_code=500)] * 100
    endpoint = f"{scripted_runpod[1]}/v2/ep"
    left = f"1 jobs may still run at endpoint ep; POST {endpoint}/cancel/ID stops one: "
    assert left + runpod.job_id in caplog.text
    assert "1 jobs stay in" in caplog.text
    with closing(Journal(tmp_path)) as journal:
        assert journal.orphans() == [Orphan(endpoint, runpod.job_id)]
        journal.remove(runpod.job_id)
