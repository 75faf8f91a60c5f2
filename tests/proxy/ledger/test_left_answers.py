"""What is in the ledger of an answer that was left: as much as is known to have been made."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.proxy.conftest import chat
from tests.proxy.ledger.conftest import ANSWER, ENDED, USAGE, Start, keep, rows, the_row
from tests.proxy.ledger.test_usage import row
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
STREAM = {"seq": 0, "status": 200, "content_type": "text/event-stream"}
BALANCED = """
[endpoints.lb]
kind = "load-balancing"
url = "{}"
[models.m]
endpoint = "lb"
"""


def chunk(**delta: str) -> str:
    """One of a chat, as vLLM writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]}, separators=(',', ':'))}\n\n"


ROLE = chunk(role="assistant", content="")
TOKEN = chunk(content='a "delta":{"')
LEFT = {"outcome": "client_left", "tokens_in": None, "are_tokens_told": False}


@pytest.fixture
def server() -> Iterator[tuple[ScriptedServer, str]]:
    server = ScriptedServer()
    with serve(server.app) as url:
        yield server, url


def read_events(client: httpx.Client, number: int, **headers: str) -> None:
    """Read so many events of a stream, then leave."""
    body = chat(stream=True)
    with client.stream("POST", CHAT, json=body, headers=headers) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(number):
            next(lines)


def test_a_stream_that_was_left_has_the_tokens_that_came(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    frames: list[Any] = [STREAM | {"text": ROLE + TOKEN}, {"seq": 1, "text": TOKEN + TOKEN}]
    runpod.script = [Page("IN_PROGRESS", frames), Page("IN_PROGRESS")]
    with start() as client:
        read_events(client, 4)
        the_row(url, **LEFT, tokens_out=3)


def test_a_stream_that_was_left_before_a_token_came_has_none(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script = [Page("IN_PROGRESS", [STREAM | {"text": ROLE}]), Page("IN_PROGRESS")]
    with start() as client:
        read_events(client, 1)
        the_row(url, **LEFT | {"are_tokens_told": None}, tokens_out=None)


def test_a_stream_that_breaks_off_has_the_tokens_that_came(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script = [Page("IN_PROGRESS", [STREAM | {"text": ROLE + TOKEN}]), Page("FAILED")]
    runpod.final = {**ENDED, "status": "FAILED", "error": "no"}
    with start() as client:
        assert "error" in client.post(CHAT, json=chat(stream=True)).text
        row = the_row(url, tokens_out=1, are_tokens_told=False)
    assert row["outcome"] != "completed"


def test_what_an_answer_tells_of_its_usage_counts_and_not_what_came(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    told = f'data: {{"choices": [], {USAGE}}}\n\ndata: [DONE]\n\n'
    text = ROLE + TOKEN * 9 + told
    runpod.script = [Page("COMPLETED", [STREAM | {"text": text, "end": True}])]
    runpod.final = ENDED
    with start() as client:
        client.post(CHAT, json=chat(stream=True))
        the_row(url, tokens_in=7, tokens_out=5, are_tokens_told=True)


def test_a_stream_of_a_server_that_tells_no_usage_has_the_tokens_that_came(
    server: tuple[ScriptedServer, str], start: Start, url: str
) -> None:
    pieces = [ROLE.encode(), TOKEN.encode() * 2, b"data: [DONE]\n\n"]
    server[0].replies = [Reply(pieces=pieces, content_type="text/event-stream")]
    with start(BALANCED.format(server[1])) as client:
        client.post(CHAT, json=chat(stream=True))
        the_row(url, outcome="completed", tokens_in=None, tokens_out=2, are_tokens_told=False)


def test_a_stream_of_a_load_balancer_that_was_left_has_the_tokens_that_came(
    server: tuple[ScriptedServer, str], start: Start, url: str
) -> None:
    pieces = [ROLE.encode(), TOKEN.encode() * 2, TOKEN.encode()]
    held = Reply(pieces=pieces, content_type="text/event-stream", hold=threading.Event())
    server[0].replies = [held]
    with start(BALANCED.format(server[1])) as client:
        read_events(client, 3)
        the_row(url, **LEFT, tokens_out=2)


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_told_of_an_answer_stays_whatever_was_seen_of_it(
    start: Start, url: str, order: int
) -> None:
    told = {"tokens_in": 7, "tokens_out": 50, "are_tokens_told": True}
    seen = {"tokens_in": None, "tokens_out": 9, "are_tokens_told": False}
    less = seen | {"tokens_out": 3}
    with start():  # which makes the tables
        for facts in (less, seen, told)[::order]:
            keep(url, row(1, **facts))
    the_row(url, **told)


def test_a_request_that_joins_what_was_left_gives_a_load_balancers_row_its_tokens(
    server: tuple[ScriptedServer, str], start: Start, url: str
) -> None:
    gate, name = threading.Event(), {"idempotency-key": "k"}
    server[0].replies = [Reply(pieces=[ANSWER.encode()], hold=gate)]
    with start(BALANCED.format(server[1])) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=chat(), headers=name, timeout=httpx.Timeout(30, read=0.5))
        the_row(url, outcome="client_left", tokens_out=None)
        gate.set()
        assert client.post(CHAT, json=chat(), headers=name).status_code == 200
        row = the_row(url, outcome="completed", tokens_in=7, tokens_out=5, are_tokens_told=True)
        wait_until(lambda: rows(url)[0]["execution_seconds"] is not None)
    assert len(server[0].requests) == 1
    assert row["id"].startswith("lb/")
    assert len(row["id"]) > len("lb/")
