"""What a request has used is in the ledger: once, in full, without a word of it, and not lost."""

import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from proxy.access.limits import Permit
from proxy.backends.runpod.job import Job
from proxy.config.settings import DATABASE_FILE
from proxy.http import context
from proxy.ledger import ledger
from proxy.ledger.ledger import Entry, Ledger
from proxy.ledger.rows import GIVEN_UP
from proxy.storage.database import Database
from proxy.telemetry.history import History
from proxy.telemetry.live_requests import LiveRequests
from proxy.telemetry.metrics import Metrics
from tests.postgres import PostgreSQL, postgresql
from tests.proxy.conftest import KEY, asked, chat
from tests.proxy.http.test_streaming import stream
from tests.proxy.ledger.conftest import CONFIG, ENDED, PLAIN, PRICE, Start, rows, the_row
from tests.proxy.ledger.test_usage import row
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.redis_server import redis_server
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
PROMPT = "tell me of Xanadu"
HEAD = {"seq": 0, "status": 200, "content_type": "text/event-stream"}
CHUNK = 'data: {"choices": [{"index": 0, "delta": {"content": "a secret"}}]}\n\n'
COUNT = 'data: {"choices": [], "usage": {"prompt_tokens": 70, "completion_tokens": 50}}\n\n'
EVENTS = [HEAD, {"seq": 1, "text": CHUNK + COUNT + "data: [DONE]\n\n", "end": True}]


def ask(client: httpx.Client, **headers: str) -> httpx.Response:
    body = chat(messages=[{"role": "user", "content": PROMPT}])
    return client.post(CHAT, json=body, headers=headers)


def several() -> dict[str, list[Page]]:
    """A script of a number of answers."""
    return {"ep": [Page("COMPLETED", [PLAIN]) for _ in range(9)]}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


def test_a_request_has_a_row_with_what_it_used(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script, runpod.final = [Page("COMPLETED", [PLAIN])], ENDED
    with start() as client:
        assert ask(client, **{"x-request-id": "mine"}).status_code == 200
        row = the_row(url, is_execution_told=True)
    assert row["seconds"] > 0
    assert row["ended"] > 1_700_000_000
    assert row["was_cold"] in (None, True, False)
    expected = {
        "id": f"ep/{runpod.job_id}",
        "request_id": "mine",
        "job_id": runpod.job_id,
        "key": "key-1",
        "model": "m",
        "endpoint": "ep",
        "route": f"POST {CHAT}",
        "status": 200,
        "outcome": "completed",
        "tokens_in": 7,
        "tokens_out": 5,
        "queue_seconds": 1.5,
        "execution_seconds": 4.0,
        "dollars": 4.0 * PRICE,
    }
    assert expected.items() <= row.items()


def test_a_stream_is_counted_though_its_client_did_not_ask_for_usage(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script, runpod.final = [Page("COMPLETED", EVENTS)], ENDED
    with start() as client:
        answer = stream(client)
        assert "usage" not in answer
        the_row(url, tokens_in=70, tokens_out=50, outcome="completed")


def test_no_word_of_prompts_and_answers_is_kept(
    runpod: ScriptedRunPod, start: Start, folder: Path, url: str
) -> None:
    runpod.script, runpod.final = [Page("COMPLETED", [PLAIN])], ENDED
    with start() as client:
        ask(client)
        the_row(url, is_execution_told=True)
        kept = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert b"key-1" in kept
    for word in (b"Xanadu", b"secret", KEY.encode()):
        assert word not in kept


def test_what_starts_no_work_has_no_row(runpod: ScriptedRunPod, start: Start, url: str) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    with start() as client:
        assert client.get("/v1/models").status_code == 200
        assert client.post(CHAT, json=chat(model="other")).status_code == 404
        assert client.post(CHAT, json=chat(), headers={"authorization": "no"}).status_code == 401
        ask(client)
        the_row(url, outcome="completed")


def test_a_client_that_left_has_a_row_with_the_time_it_took(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script = [Page("IN_PROGRESS", [HEAD | {"text": CHUNK}]), Page("IN_PROGRESS")]
    with start() as client:
        with asked(client, stream=True):
            wait_until(lambda: runpod.stream_calls > 1)
        row = the_row(url, outcome="client_left", tokens_in=None)
    assert row["execution_seconds"] > 0
    assert row["dollars"] == pytest.approx(row["execution_seconds"] * PRICE)


def test_a_client_that_left_while_its_job_was_submitted_has_a_row(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script, runpod.run_hold = [Page("IN_QUEUE")], threading.Event()
    with start() as client:
        with asked(client):
            wait_until(lambda: runpod.jobs != [])
        runpod.run_hold.set()
        row = the_row(url, outcome="client_left")
    assert row["job_id"] == runpod.job_id


def test_a_job_that_failed_has_a_row(runpod: ScriptedRunPod, start: Start, url: str) -> None:
    runpod.script = [Page("FAILED")]
    runpod.final = {**ENDED, "status": "FAILED", "error": "CUDA out of memory"}
    with start() as client:
        failed = ask(client)
        assert failed.status_code >= 500
        row = the_row(url, status=failed.status_code, is_execution_told=True)
    assert (row["queue_seconds"], row["execution_seconds"]) == (1.5, 4.0)
    assert row["outcome"] not in ("completed", "")


def test_requests_that_share_a_job_share_a_row(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script, runpod.final = [Page("COMPLETED", [PLAIN])], ENDED
    with start() as client:
        for _ in range(2):
            assert ask(client, **{"idempotency-key": "k"}).status_code == 200
        wait_until(lambda: runpod.jobs != [])
        row = the_row(url, is_execution_told=True)
    assert (row["tokens_in"], row["tokens_out"]) == (7, 5)


def test_a_request_that_joins_what_was_left_gives_the_row_its_tokens(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    gate = threading.Event()
    runpod.script, runpod.final = [Page("COMPLETED", [PLAIN], hold=gate)], ENDED
    name = {"idempotency-key": "k"}
    with start() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=chat(), headers=name, timeout=httpx.Timeout(30, read=0.5))
        the_row(url, outcome="client_left", tokens_out=None)
        gate.set()
        assert client.post(CHAT, json=chat(), headers=name).status_code == 200
        row = the_row(url, outcome="completed", is_execution_told=True, status=200)
    assert (row["tokens_in"], row["tokens_out"]) == (7, 5)
    assert len(runpod.jobs) == 1


@pytest.mark.slow
def test_copies_that_share_a_job_share_a_row(
    runpod: ScriptedRunPod, start: Start, url: str, tmp_path: Path
) -> None:
    gate = threading.Event()
    runpod.script, runpod.final = [Page("COMPLETED", [PLAIN], hold=gate)], ENDED
    name = {"idempotency-key": "k"}
    with redis_server() as redis:
        shared = {"redis_url": redis.url, "copies": 2, "database_url": url}
        with start(**shared) as one, start(**shared, state_dir=tmp_path / "other") as other:
            with pytest.raises(httpx.ReadTimeout):
                one.post(CHAT, json=chat(), headers=name, timeout=httpx.Timeout(30, read=0.5))
            the_row(url, outcome="client_left", tokens_out=None)
            gate.set()
            assert other.post(CHAT, json=chat(), headers=name).status_code == 200
            row = the_row(url, outcome="completed", is_execution_told=True)
    assert (row["tokens_in"], row["tokens_out"], row["endpoint"]) == (7, 5, "ep")
    assert len(runpod.jobs) == 1


def test_work_that_a_fallback_replaced_has_a_row_of_its_own(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    config = f"{CONFIG}fallback = 'n'\n[endpoints.spare]\n[models.n]\nendpoint = 'spare'\n"
    runpod.scripts = {"ep": [Page("FAILED")] * 9, "spare": [Page("COMPLETED", [PLAIN])]}
    runpod.states = [{**ENDED, "status": "FAILED", "error": "no"}]
    runpod.final = {**ENDED, "executionTime": 9000}
    with start(config) as client:
        assert ask(client).status_code == 200
        wait_until(lambda: [row["is_execution_told"] for row in rows(url)] == [True, True])
    first, second = rows(url)
    assert (first["endpoint"], first["outcome"]) == ("ep", GIVEN_UP)
    assert (first["tokens_out"], first["dollars"]) == (None, 4.0 * PRICE)
    assert (second["endpoint"], second["outcome"]) == ("spare", "completed")
    assert (second["tokens_out"], second["dollars"]) == (5, None)
    assert first["request_id"] == second["request_id"]


def test_runpod_is_asked_until_the_job_has_ended_and_not_for_ever(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    runpod.states = [{"status": "IN_PROGRESS"}] * 2
    runpod.status_faults = [Response(status_code=500)]
    runpod.final = ENDED
    with start() as client:
        ask(client)
        assert the_row(url, is_execution_told=True)["execution_seconds"] == 4.0


def test_what_runpod_does_not_tell_is_told_as_it_was_seen_from_here(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    runpod.final = {"status": "IN_PROGRESS"}
    with start() as client:
        ask(client)
        wait_until(lambda: runpod.status_calls >= 5)
        row = the_row(url, is_execution_told=False)
    assert row["dollars"] == pytest.approx(row["execution_seconds"] * PRICE)


def test_rows_that_wait_for_a_database_which_hangs_are_told_of(
    runpod: ScriptedRunPod, start: Start, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LATE_SECONDS", 0.1)
    runpod.script = [Page("COMPLETED", [PLAIN])]
    rows(url)  # its tables are made
    with start() as client, closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert ask(client).status_code == 200
        wait_until(lambda: client.get("/ready").json().get("ledger_rows_waiting") == 1)
        writer.rollback()
        wait_until(lambda: client.get("/ready").json() == {"status": "ready"})
        the_row(url, tokens_out=5)


@pytest.mark.slow
def test_rows_wait_for_a_database_that_is_away_and_are_written_once(
    runpod: ScriptedRunPod, start: Start, server: PostgreSQL
) -> None:
    url = server.new_database()
    runpod.scripts, runpod.final = several(), {"status": "IN_PROGRESS"}
    with start(database_url=url) as client:
        ask(client)
        the_row(url, tokens_out=5)
        assert client.get("/ready").json() == {"status": "ready"}
        server.stop(signal.SIGKILL)
        try:
            for _ in range(3):
                assert ask(client).status_code == 200
            wait_until(lambda: client.get("/ready").json().get("ledger_rows_waiting") == 3)
            assert client.get("/ready").status_code == 200
            assert value(client, "proxy_ledger_rows", state="waiting") == 3
        finally:
            server.start()
        wait_until(lambda: client.get("/ready").json() == {"status": "ready"})
        assert [row["tokens_out"] for row in rows(url)] == [5] * 4
        assert len({row["job_id"] for row in rows(url)}) == 4


@pytest.mark.slow
async def test_a_row_that_the_database_refuses_is_in_no_others_way(
    server: PostgreSQL, tmp_path: Path
) -> None:
    url = server.new_database()
    ledger = Ledger(Database(url), tmp_path, days=1, status_calls_per_second=1)
    for number, model in enumerate(("m", "no\0text", "n")):
        ledger.add(row(number, model=model))
    ledger.begin()
    await ledger.close()
    assert [found["model"] for found in rows(url)] == ["m", "n"]
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_rows_of_a_proxy_that_was_killed_are_written_by_the_next(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    server: PostgreSQL,
) -> None:
    runpod.scripts, runpod.final = several(), ENDED
    url = server.new_database()
    rows(url)  # its tables are made
    changes: dict[str, Any] = {"state_dir": tmp_path, "database_url": url}
    server.stop(signal.SIGKILL)
    try:
        proxy = Proxy(scripted_runpod[1], **changes)
        try:
            jobs = [ask(proxy.client).headers["x-runpod-job-id"] for _ in range(3)]
        finally:
            proxy.close()
    finally:
        server.start()
    following = Proxy(scripted_runpod[1], **changes)
    try:
        wait_until(lambda: len(rows(url)) == 3)
        assert sorted(row["job_id"] for row in rows(url)) == sorted(jobs)
        assert {row["tokens_out"] for row in rows(url)} == {5}
        assert list(tmp_path.glob("ledger-*")) == []
    finally:
        following.close()


@pytest.mark.parametrize("ledger", [None, False])
def test_a_proxy_that_keeps_no_ledger_asks_and_writes_nothing(
    runpod: ScriptedRunPod, start: Start, folder: Path, ledger: bool | None
) -> None:
    runpod.script = [Page("COMPLETED", EVENTS)]
    with start(ledger=ledger) as client:
        stream(client)
        assert "stream_options" not in runpod.jobs[0]["input"]["openai_input"]
    assert runpod.status_calls <= 1  # which worker it was
    names = {path.name for path in folder.iterdir()}
    assert not any(name.startswith(("ledger", DATABASE_FILE)) for name in names)


BROKEN = {
    "limits": (Permit, "end"),
    "gauges": (LiveRequests, "end"),
    "metrics": (Metrics, "note_ended"),
    "history": (History, "note"),
    "ledger": (Entry, "end"),
    "log": (context, "log_request"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_step_of_a_requests_end_that_fails_is_in_the_way_of_no_other(
    runpod: ScriptedRunPod,
    start: Start,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a defect")

    runpod.scripts = several()
    monkeypatch.setattr(*BROKEN[broken], fail)
    monkeypatch.setenv("LIMITED_KEY", "sk-limited")
    limited = f"{CONFIG}\n[keys.one]\nenv = 'LIMITED_KEY'\nmax_requests = 1\n"
    with caplog.at_level(logging.INFO, "proxy"), start(limited) as client:
        client.headers["authorization"] = "Bearer sk-limited"
        assert ask(client, **{"x-request-id": "mine"}).status_code == 200
        wait_until(lambda: "a part of the end of mine failed" in caplog.text)
        wait_until(lambda: (f"mine POST {CHAT} 200" in caplog.text) == (broken != "log"))
        wait_until(lambda: (rows(url) != []) == (broken != "ledger"))
        labels = {"model": "m", "status": "200", "outcome": "completed"}
        assert value(client, "proxy_requests_total", **labels) == (broken != "metrics")
        assert ask(client).status_code == (429 if broken == "limits" else 200)


def test_what_wakes_a_worker_by_the_clock_has_a_row_and_is_no_request(
    runpod: ScriptedRunPod, start: Start, url: str
) -> None:
    runpod.scripts, runpod.final = several(), ENDED
    config, admin = f"{CONFIG}warm_schedule = '* * * * * *'\n", "sk-of-an-admin-of-this-proxy"
    with start(config, admin_keys=admin) as client:
        wait_until(lambda: any(row["is_execution_told"] for row in rows(url)))
        client.headers["authorization"] = f"Bearer {admin}"
        sums = client.get("/v1/usage?keys=all").json()["today"]
    row = next(row for row in rows(url) if row["is_execution_told"])
    expected = {
        "key": "",
        "model": "m",
        "endpoint": "ep",
        "route": "warm_schedule",
        "outcome": "warm",
        "tokens_out": None,
        "execution_seconds": 4.0,
        "dollars": 4.0 * PRICE,
    }
    assert expected.items() <= row.items()
    assert row["id"] == f"ep/{row['job_id']}"
    assert sums["requests"] == 0
    assert sums["dollars"] >= 4.0 * PRICE


@pytest.mark.parametrize(("seen", "told", "status"), [(1.0, 4000, 429), (4.0, 1000, 200)])
def test_budgets_are_settled_by_the_time_that_runpod_tells(
    runpod: ScriptedRunPod,
    start: Start,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    seen: float,
    told: int,
    status: int,
) -> None:
    monkeypatch.setattr(Job, "worker_seconds", seen)
    monkeypatch.setenv("LIMITED_KEY", "sk-limited")
    runpod.scripts, runpod.final = several(), ENDED | {"executionTime": told}
    limited = f"{CONFIG}\n[keys.one]\nenv = 'LIMITED_KEY'\ndaily_gpu_seconds = 2\n"
    with start(limited) as client:
        client.headers["authorization"] = "Bearer sk-limited"
        assert ask(client).status_code == 200
        the_row(url, is_execution_told=True)
        assert ask(client).status_code == status
