"""What a request's body holds of memory, and how long: until RunPod has taken the job."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI

from proxy.app import create_app
from proxy.services import Services
from tests.leaving import call_to_leave
from tests.proxy.backends.test_relay import CONFIG
from tests.proxy.conftest import AS_JSON, KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.proxy.serving.test_sharing import PLAIN
from tests.servers import serve
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
BODY_BYTES = 4_000_000
HEADERS = {"authorization": f"Bearer {KEY}"}

Send = Callable[[], None]


@pytest.fixture
def app(scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod) -> FastAPI:
    """A proxy whose memory holds one large body."""
    limits = {"max_body_bytes": BODY_BYTES + 1000, "max_buffered_bytes": 3 * BODY_BYTES}
    return create_app(settings_for(scripted_runpod[1], **limits))


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    """Where it is."""
    with serve(app) as url:
        yield url


def used_bytes(app: FastAPI) -> int:
    services: Services = app.state.services
    return services.memory.used_bytes


def large_chat() -> dict[str, object]:
    return chat(text="x" * BODY_BYTES)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_body_is_let_go_when_runpod_has_taken_the_job(
    app: FastAPI, url: str, runpod: ScriptedRunPod, stream: bool
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    runpod.run_hold = threading.Event()
    with call_to_leave(url + CHAT, key=KEY, body=large_chat() | {"stream": stream}):
        wait_until(lambda: runpod.jobs != [])
        assert used_bytes(app) > BODY_BYTES
        runpod.run_hold.set()
        wait_until(lambda: runpod.stream_calls > 0)
        wait_until(lambda: used_bytes(app) < 1000)  # the answer of a poll
        assert runpod.cancelled == []


@pytest.mark.slow
def test_beyond_the_bound_a_request_is_answered_503_until_there_is_room(
    app: FastAPI, url: str, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    runpod.run_hold = threading.Event()
    with httpx.Client(base_url=url, headers=HEADERS, timeout=60) as client:
        with call_to_leave(url + CHAT, key=KEY, body=large_chat()):
            wait_until(lambda: runpod.jobs != [])
            response = client.post(CHAT, json=large_chat())
            assert response.status_code == 503
            assert error_of(response)["code"] == "memory_limit_reached"
            assert int(response.headers["retry-after"]) > 0
            assert "x-should-retry" not in response.headers
            assert len(runpod.jobs) == 1
            runpod.run_hold.set()
            wait_until(lambda: used_bytes(app) < 1000)
        runpod.script = [Page("COMPLETED", [{"ok": True}])]
        assert client.post(CHAT, json=large_chat()).status_code == 200
        wait_until(lambda: used_bytes(app) < 1000)


@pytest.mark.slow
def test_a_body_is_let_go_when_a_server_has_begun_to_answer(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    head_hold, hold = threading.Event(), threading.Event()
    pieces = [b'{"a": ', b"1}"]
    server = ScriptedServer()
    server.replies = [Reply(200, pieces, head_hold=head_hold, hold=hold)]
    with serve(server.app) as lb:
        path = tmp_path / "proxy.toml"
        path.write_text(CONFIG.format(url=lb, queue=60, idle=60))
        limits = {"max_body_bytes": BODY_BYTES + 1000, "max_buffered_bytes": 3 * BODY_BYTES}
        app = create_app(settings_for(scripted_runpod[1], config=path, **limits))
        with serve(app) as url, call_to_leave(url + CHAT, key=KEY, body=large_chat()):
            wait_until(lambda: server.requests != [])
            assert used_bytes(app) > BODY_BYTES
            head_hold.set()
            wait_until(lambda: used_bytes(app) < 1000)
            assert server.open == 1


@pytest.mark.slow
def test_what_is_kept_for_a_repetition_counts_and_is_given_up_where_there_is_no_room(
    app: FastAPI, url: str, runpod: ScriptedRunPod
) -> None:
    piece = "x" * (BODY_BYTES // 4)
    kept = [PLAIN | {"text": piece, "end": False}, {"seq": 1, "text": piece, "end": True}]
    larger = [PLAIN | {"text": piece, "end": False}]
    larger += [{"seq": n, "text": piece, "end": n == 14} for n in range(1, 15)]
    with httpx.Client(base_url=url, headers=HEADERS, timeout=60) as client:
        runpod.script = [Page("IN_PROGRESS", [frame]) for frame in kept]
        for _ in range(2):
            answer = client.post(CHAT, json=chat(), headers={"idempotency-key": "k"})
            assert answer.text == piece * 2
        assert len(runpod.jobs) == 1
        assert 2 * len(piece) < used_bytes(app) < 3 * len(piece)
        runpod.reset()
        for jobs in (1, 2):
            runpod.scripts["ep"] = [Page("IN_PROGRESS", [frame]) for frame in larger]
            answer = client.post(CHAT, json=chat(), headers={"idempotency-key": "l"})
            assert answer.text == piece * 15
            assert len(runpod.jobs) == jobs
        wait_until(lambda: used_bytes(app) < 3 * len(piece))


def test_a_refused_body_holds_nothing(app: FastAPI, url: str, runpod: ScriptedRunPod) -> None:
    with httpx.Client(base_url=url, headers=HEADERS | AS_JSON, timeout=60) as client:
        for body in (b"{" * 100_000, b'{"model": "other", "messages": [{"role": "user"}]}', b"["):
            assert client.post(CHAT, content=body).status_code in (400, 404)
    assert used_bytes(app) == 0


@pytest.mark.slow
def test_chats_that_wait_for_a_worker_do_not_hold_their_bodies(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Twenty of them: the process grows by less than half of what they sent."""
    runpod.script = [Page("IN_QUEUE")]
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path_factory.mktemp("state"))
    try:
        process = psutil.Process(proxy.process.pid)
        with call_to_leave(proxy.url + CHAT, key=KEY, body=large_chat() | {"stream": True}):
            wait_until(lambda: runpod.stream_calls > 0)
        before = process.memory_info().rss
        with ExitStack() as stack:
            for number in range(20):
                call = call_to_leave(proxy.url + CHAT, key=KEY, body=large_chat())
                stack.enter_context(call)
                wait_until(lambda: len(runpod.jobs) == number + 2)  # noqa: B023  # used at once
                runpod.raw_jobs.clear()
                runpod.jobs[-1] = {}
            wait_until(lambda: len(proxy.journal()) == 20)
            assert process.memory_info().rss - before < 20 * BODY_BYTES / 2
    finally:
        proxy.close()
