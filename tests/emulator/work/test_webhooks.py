"""What a client's own server is told when its job has ended."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from tests.emulator.running import Client, eventually, one_endpoint


class Receiver:
    """A client's own server: notes what it is sent, and answers each call as it is told."""

    def __init__(self, *statuses: int) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.is_endless = False
        """Whether answers go on and on until the emulator leaves."""
        self._statuses = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._receive(self)

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?of=mine"

    def _receive(self, call: BaseHTTPRequestHandler) -> None:
        body = call.rfile.read(int(call.headers["content-length"]))
        headers = {name.lower(): value for name, value in call.headers.items()}
        self.calls.append((headers | {":path": call.path}, body))
        call.send_response(self._statuses.pop(0) if self._statuses else 200)
        if not self.is_endless:
            call.send_header("content-length", "0")
        call.end_headers()
        while self.is_endless:
            call.wfile.write(b"x")
            time.sleep(0.01)


@contextmanager
def receiver(*statuses: int) -> Iterator[Receiver]:
    """A receiver that answers with these statuses, then 200."""
    found = Receiver(*statuses)
    thread = threading.Thread(target=found.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        thread.join()
        found.server.server_close()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """An endpoint that tries its webhooks in quick succession."""
    with one_endpoint(webhook_pauses_seconds=[0.05, 0.1]) as client:
        yield client


def finish(client: Client, webhook: object, result: object = None) -> str:
    """A job with this webhook, run to its end by the test."""
    job_id = client.run({"b": 1, "a": 2}, webhook=webhook)
    worker_id, _ = client.take()
    client.done(worker_id, job_id, result or {"output": [1]})
    return job_id


def test_a_webhook_gets_the_whole_job(client: Client) -> None:
    with receiver() as server:
        job_id = finish(client, server.url)
        eventually(lambda: server.calls)
        [(headers, body)] = server.calls
    assert headers[":path"] == "/hook?of=mine"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == "Go-http-client/2.0"
    assert headers["traceparent"].startswith("00-")
    told = msgspec.json.decode(body)
    view = client.status(job_id)
    assert told == {**view, "input": {"b": 1, "a": 2}, "webhook": server.url}
    assert list(told) == sorted(told)
    assert list(told["input"]) == ["b", "a"], "the input is as it came"
    assert (told["status"], told["output"]) == ("COMPLETED", [1])


def test_a_failed_and_a_cancelled_job_are_told_too(client: Client) -> None:
    with receiver() as server:
        finish(client, server.url, {"error": "boom"})
        client.post(f"/cancel/{client.run({'a': 1}, webhook=server.url)}")
        eventually(lambda: len(server.calls) == 2)
        told = [msgspec.json.decode(body) for _, body in server.calls]
    assert sorted(one["status"] for one in told) == ["CANCELLED", "FAILED"]


def test_a_job_without_a_webhook_sends_none(client: Client) -> None:
    with receiver() as server:
        job_id = client.run({"a": 1})
        worker_id, _ = client.take()
        client.done(worker_id, job_id, {"output": server.url})
        finish(client, server.url)
        eventually(lambda: server.calls)
    assert len(server.calls) == 1


def test_a_webhook_is_tried_again_until_it_is_taken(client: Client) -> None:
    with receiver(500, 302) as server:
        finish(client, server.url)
        eventually(lambda: len(server.calls) == 3)
    assert len({body for _, body in server.calls}) == 1


def test_a_webhook_is_tried_three_times_and_the_job_stays_completed(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver(500, 500, 500, 500, 500) as server:
        job_id = finish(client, server.url)
        eventually(lambda: f"the webhook of {job_id} was not acknowledged" in caplog.text)
    assert len(server.calls) == 3
    assert client.status(job_id)["status"] == "COMPLETED"


def test_an_answer_that_never_ends_does_not_hold_up_the_next_try(client: Client) -> None:
    with receiver(500, 500) as server:
        server.is_endless = True
        finish(client, server.url)
        eventually(lambda: len(server.calls) == 3)
        server.is_endless = False


@pytest.mark.parametrize("webhook", ["http://127.0.0.1:9/", "nonsense", "http://[", 7, {"a": 1}])
def test_a_webhook_that_leads_nowhere_harms_no_job(
    client: Client, webhook: object, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = finish(client, webhook)
    eventually(lambda: f"the webhook of {job_id} was not acknowledged" in caplog.text)
    assert client.status(job_id)["status"] == "COMPLETED"


def test_webhooks_do_not_outlive_the_emulator() -> None:
    with receiver(500) as server:
        with one_endpoint(webhook_pauses_seconds=[3600]) as client:
            finish(client, server.url)
            eventually(lambda: server.calls)
        assert len(server.calls) == 1, "and the emulator has stopped at once"


@pytest.mark.slow
def test_a_reset_sends_no_more_webhooks() -> None:
    many = 1000
    pauses = [0.2] * many
    with receiver(*[500] * many) as server, one_endpoint(webhook_pauses_seconds=pauses) as client:
        finish(client, server.url)
        eventually(lambda: server.calls)
        client.control("POST", "/reset")

        def is_quiet() -> bool:
            before = len(server.calls)
            time.sleep(1)
            return len(server.calls) == before

        eventually(is_quiet)  # one call may still have been under way
