"""What is held of answers until it can go out counts in the memory for all, and is let go of."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from proxy.app import create_app
from proxy.services import Services
from tests.proxy.backends.test_relay import CONFIG
from tests.proxy.conftest import KEY, asked, chat, settings_for
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
SSE = "text/event-stream"
MAX_BYTES = 400_000
TEXT = "x" * 60_000
COUNT = 10
"""So many such texts fit into no memory."""


@pytest.fixture
def app(scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod) -> FastAPI:
    """A proxy that may hold little."""
    return create_app(settings_for(scripted_runpod[1], max_buffered_bytes=MAX_BYTES))


@pytest.fixture
def client(app: FastAPI) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(app) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        assert client.get("/health").status_code == 200
        yield client


def used_bytes(app: FastAPI) -> int:
    services: Services = app.state.services
    return services.memory.used_bytes


def frames(content_type: str, *texts: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"seq": n, "text": text} for n, text in enumerate(texts)]
    made[0] |= {"status": 200, "content_type": content_type}
    made[-1] |= {"end": True}
    return made


EVENT = frames(SSE, 'data: "', *[TEXT] * COUNT, '"\n\n')
PLAIN = frames("application/json", '"', *[TEXT] * COUNT, '"')
PIECES = ['data: "', *[TEXT] * COUNT, '"\n\ndata: [DONE]\n\n']


@pytest.mark.parametrize(
    ("outputs", "stream", "status"),
    [
        (EVENT[1:], True, 503),
        (PLAIN[1:], False, 503),
        (EVENT, True, 200),
        (PIECES, True, 200),
        (PLAIN, False, 503),
    ],
    ids=["frames behind a hole", "plain frames behind a hole", "event", "pieces", "plain answer"],
)
def test_what_is_held_of_an_answer_counts_against_the_memory_for_all(
    app: FastAPI,
    client: httpx.Client,
    runpod: ScriptedRunPod,
    outputs: list[Any],
    stream: bool,
    status: int,
) -> None:
    runpod.script = [Page("IN_PROGRESS", [output]) for output in outputs]
    response = client.post(CHAT, json=chat(stream=stream))
    assert response.status_code == status
    error = json.loads(response.text.rpartition("data: ")[2])["error"]
    assert error["code"] == "memory_limit_reached"
    wait_until(lambda: runpod.cancelled == [runpod.job_id])
    wait_until(lambda: used_bytes(app) == 0)
    runpod.script, runpod.stream_calls = [Page("COMPLETED", frames(SSE, "data: 1\n\n"))], 0
    assert client.post(CHAT, json=chat(stream=True)).text.endswith("data: 1\n\n")


@pytest.mark.slow
def test_a_plain_answer_that_comes_after_a_keep_alive_counts_too(
    app: FastAPI, client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")] * 4 + [Page("IN_PROGRESS", [frame]) for frame in PLAIN]
    response = client.post(CHAT, json=chat(stream=True))
    assert response.text.startswith(":")
    assert '"code":"memory_limit_reached"' in response.text
    wait_until(lambda: used_bytes(app) == 0)


@pytest.mark.slow
def test_the_beginning_of_an_event_counts_where_a_server_streams(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    server = ScriptedServer()
    pieces = [piece.encode() for piece in PIECES]
    end = threading.Event()
    server.replies = [Reply(200, pieces, content_type=SSE, hold=end)]
    with serve(server.app) as url:
        path = tmp_path / "proxy.toml"
        path.write_text(CONFIG.format(url=url, queue=60, idle=60))
        settings = settings_for(scripted_runpod[1], config=path, max_buffered_bytes=MAX_BYTES)
        app = create_app(settings)
        with serve(app) as address:
            headers = {"authorization": f"Bearer {KEY}"}
            response = httpx.post(address + CHAT, json=chat(stream=True), headers=headers)
            end.set()
            assert '"code":"memory_limit_reached"' in response.text
            wait_until(lambda: used_bytes(app) == 0)


@pytest.mark.parametrize("outputs", [EVENT[1:4], EVENT[:4], PLAIN[:4]])
def test_it_is_let_go_of_when_the_client_leaves(
    app: FastAPI, client: httpx.Client, runpod: ScriptedRunPod, outputs: list[Any]
) -> None:
    runpod.script = [*(Page("IN_PROGRESS", [output]) for output in outputs), Page("IN_PROGRESS")]
    with asked(client, stream=outputs[0] in EVENT):
        wait_until(lambda: used_bytes(app) > 3 * len(TEXT))
        assert runpod.cancelled == []
    wait_until(lambda: used_bytes(app) < 1000)  # the answer of a poll


@pytest.mark.parametrize("is_event", [True, False])
def test_it_is_let_go_of_when_it_has_gone_out(
    app: FastAPI, client: httpx.Client, runpod: ScriptedRunPod, is_event: bool
) -> None:
    outputs = (
        frames(SSE, "data: ", TEXT, TEXT, "\n\n", "data: 2\n\n")
        if is_event
        else frames("application/json", '"', TEXT, TEXT, '"')
    )
    last = [Page("IN_PROGRESS", [output]) for output in (outputs[4:] if is_event else [])]
    runpod.script = [Page("IN_PROGRESS", [output]) for output in outputs[:4]] + last
    response = client.post(CHAT, json=chat(stream=is_event))
    assert response.text.count(TEXT) == 2
    wait_until(lambda: used_bytes(app) == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_bodies_that_fill_the_memory_end_no_answer_of_usual_size(
    app: FastAPI, client: httpx.Client, runpod: ScriptedRunPod, stream: bool
) -> None:
    services: Services = app.state.services
    texts = ["data: 1\n\n", "data: ", "2\n\n"] if stream else ["[", "1", "]"]
    outputs = frames(SSE if stream else "application/json", *texts)
    runpod.script = [Page("IN_QUEUE"), *(Page("IN_PROGRESS", [output]) for output in outputs)]
    with asked(client, stream=stream):
        wait_until(lambda: runpod.stream_calls > 0)
        filled = services.memory.reserve(MAX_BYTES - services.memory.used_bytes)
        wait_until(lambda: runpod.stream_calls >= 4)
        assert client.post(CHAT, json=chat()).status_code == 503
        filled.release()
    assert runpod.cancelled == []
