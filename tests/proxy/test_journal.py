"""What a killed proxy leaves behind, the next one cancels."""

import os
import signal
import sqlite3
import threading
from pathlib import Path

import pytest

from proxy.app import create_app
from proxy.journal import Journal, Orphan
from tests.proxy.conftest import chat, settings_for
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_streaming import CHAT, FRAMES
from tests.servers import serve
from tests.waiting import wait_until


def test_a_journal_tells_what_one_before_it_left(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # a proxy that dies with a job in flight and one that has ended
        journal = Journal(tmp_path)
        journal.add("http://runpod/v2/ep", "job-1")
        journal.add("http://runpod/v2/ep", "job-2")
        journal.remove("job-2")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    journal = Journal(tmp_path)
    assert journal.orphans() == [Orphan("http://runpod/v2/ep", "job-1")]
    assert journal.orphans() == []
    journal.close()
    assert Journal(tmp_path).orphans() == [Orphan("http://runpod/v2/ep", "job-1")]


def test_a_journal_leaves_those_of_living_proxies_alone(tmp_path: Path) -> None:
    living = Journal(tmp_path)
    living.add("http://runpod/v2/ep", "job-1")
    other = Journal(tmp_path)
    assert other.orphans() == []
    other.close()
    living.remove("job-1")
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_cannot_be_read_is_cleared_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "jobs-broken.sqlite3").write_bytes(b"not a database" * 100)
    sqlite3.connect(tmp_path / "jobs-empty.sqlite3").close()
    journal = Journal(tmp_path)
    assert journal.orphans() == []
    assert "cannot be read" in caplog.text
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_without_a_place_for_its_journal_still_serves(
    scripted_runpod: tuple[ScriptedRunPod, str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(scripted_runpod[1], state_dir="/proc/nowhere")
    with serve(create_app(settings)):
        pass
    assert "will not survive" in caplog.text


@pytest.mark.slow
def test_a_proxy_that_was_killed_cancels_its_jobs_when_it_comes_back(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    first = Proxy(scripted_runpod[1], state_dir=tmp_path)
    try:
        with first.client.stream("POST", CHAT, json=chat(stream=True)) as response:
            next(response.iter_raw())
            first.process.kill()
    finally:
        first.close()
    assert runpod.cancelled == []
    second = Proxy(scripted_runpod[1], state_dir=tmp_path)
    try:
        wait_until(lambda: runpod.cancelled == [runpod.job_id])
    finally:
        second.close()
