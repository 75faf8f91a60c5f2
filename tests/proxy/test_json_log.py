"""The log as JSON, one object a line; and what a line tells of a request."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.telemetry.ended_request import EndedRequest
from proxy.telemetry.logs import JSONLines, log_request
from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
NASTY = "a\nb\r\u2028\x1b[2J\"}{'\ud800"


@pytest.mark.slow
def test_every_line_is_an_object_and_a_requests_line_has_its_facts(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    port, log = free_port(), tmp_path / "log"
    variables = {
        "PROXY_LOG_FORMAT": "json",
        "PROXY_API_KEYS": KEY,
        "PROXY_MODELS": "m",
        "PROXY_PORT": str(port),
        "PROXY_STATE_DIR": str(tmp_path),
        "PROXY_UNKNOWN": "1",
        "RUNPOD_API_KEY": "rp",
        "RUNPOD_ENDPOINT_ID": "ep",
        "RUNPOD_ENDPOINT_BASE_URL": f"{scripted_runpod[1]}/v2",
    }
    with log.open("w") as output:
        proxy = subprocess.Popen(
            [sys.executable, "-m", "proxy", "--env-file", os.devnull],
            cwd=ROOT,
            env=os.environ | variables,
            stderr=output,
        )
    try:
        wait_until(lambda: "startup complete" in log.read_text(), seconds=60)
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
        url = f"http://127.0.0.1:{port}"
        httpx.post(f"{url}{CHAT}", json=chat(stream=True), headers=headers, timeout=30)
        httpx.get(f"{url}/v1/models/a%0A%22forged%E2%80%A8", headers=headers, timeout=30)
        proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(timeout=60) == 0
    finally:
        proxy.kill()
        proxy.wait()
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"uvicorn.error", "proxy", "proxy.access"} <= {line["logger"] for line in lines}
    chatted, forged = [line for line in lines if line["logger"] == "proxy.access"]
    told = {
        "request": "mine",
        "method": "POST",
        "path": CHAT,
        "route": f"POST {CHAT}",
        "status": 200,
        "outcome": "completed",
        "key": "key-1",
        "model": "m",
        "level": "info",
    }
    assert told == {name: chatted.get(name) for name in told}
    assert chatted["job"].startswith("job-")
    assert chatted["seconds"] >= chatted["first_byte_seconds"] >= 0
    assert chatted["start"] in ("cold", "warm")
    assert forged["path"] == '/v1/models/a\n"forged\u2028'


def test_no_text_breaks_a_json_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "proxy.access"):
        log_request(EndedRequest("id", "GET", "/", 200, "completed", 1.0, model=NASTY))
    [of_request] = caplog.records
    said = logging.LogRecord(NASTY, logging.INFO, "", 1, "%s", (NASTY,), None)
    lines = [JSONLines().format(record) for record in (of_request, said)]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert json.loads(lines[0])["model"] == json.loads(lines[1])["message"] == NASTY


def test_a_line_tells_the_key_the_model_and_how_long_the_job_waited(
    client: httpx.Client, runpod: ScriptedRunPod, caplog: pytest.LogCaptureFixture
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES[:1]), Page("COMPLETED")]
    runpod.final = {
        "status": "COMPLETED",
        "output": FRAMES,
        "delayTime": 4321,
        "executionTime": 9,
    }
    with caplog.at_level(logging.INFO, "proxy.access"):
        client.post(CHAT, json=chat(stream=True))
        wait_until(lambda: f"POST {CHAT} 200 completed" in caplog.text)
    assert " key=key-1 model=m first_byte_seconds=0." in caplog.text
    assert " queue_seconds=4.321 " in caplog.text


@pytest.mark.usefixtures("awake")
def test_a_request_that_met_a_worker_was_warm(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, caplog: pytest.LogCaptureFixture
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    with caplog.at_level(logging.INFO, "proxy"):
        fresh_client.post(CHAT, json=chat(stream=True))
        wait_until(lambda: " start=warm" in caplog.text)


@pytest.mark.slow
def test_all_who_waited_for_one_start_were_cold(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()
    held, whole = Page("IN_QUEUE", [], hold=begun), Page("COMPLETED", FRAMES)
    runpod.script = [held, held, whole, whole]  # each poll, whosever it is, gets the next
    with caplog.at_level(logging.INFO, "proxy"), ThreadPoolExecutor() as threads:
        asked = [threads.submit(fresh_client.post, CHAT, json=chat(stream=True)) for _ in range(2)]
        wait_until(lambda: "a worker has to be started" in caplog.text)
        wait_until(lambda: len(runpod.jobs) == 2)
        begun.set()
        assert [answer.result().status_code for answer in asked] == [200, 200]
        wait_until(lambda: caplog.text.count(" start=cold") == 2)
