"""What a killed proxy leaves behind, the next one cancels."""

import fcntl
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import psutil
import pytest

from proxy.app import create_app
from proxy.backends.runpod.journal import Journal, Orphan
from tests.proxy.conftest import asked, chat, settings_for
from tests.proxy.http.test_streaming import BODY, CHAT, FRAMES, stream
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

ROOT = Path(__file__).parents[4]
DIES = """
# A proxy that is killed with one job in flight and one that has ended.
import os, pathlib, signal, sys
from proxy.backends.runpod.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]))
journal.add("http://runpod/v2/ep", "job-1")
journal.add("http://runpod/v2/ep", "job-2")
journal.remove("job-2")
os.kill(os.getpid(), signal.SIGKILL)
"""
NOT_OURS = """
# A proxy whose folder belongs to another user, with a journal in it that it may read.
import os, pathlib, sys
from proxy.backends.runpod.journal import Journal
if os.getuid() == 0:
    os.setuid(65534)
journal = Journal(pathlib.Path(sys.argv[1]))
print([orphan.job_id for orphan in journal.orphans()])
journal.close()
"""
FULL_DISK = """
import pathlib, resource, sys
from proxy.backends.runpod.journal import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
journal = Journal(pathlib.Path(sys.argv[1]))
journal.add("http://runpod/v2/ep", "job-1")
journal.remove("job-1")
print(journal.orphans())
journal.close()
"""


def test_a_journal_tells_what_one_before_it_left(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, tmp_path], cwd=ROOT)
    assert died.returncode == -signal.SIGKILL
    left = [Orphan("http://runpod/v2/ep", "job-1")]
    with closing(Journal(tmp_path)) as journal:
        assert journal.orphans() == left
        assert journal.orphans() == []
    with closing(Journal(tmp_path)) as journal:
        assert journal.orphans() == left


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


def test_a_journal_that_is_not_ours_to_remove_is_warned_of_in_a_line() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        left = Journal(folder)
        left.add("http://runpod/v2/ep", "job-1")
        left.close()
        (folder / "jobs-folder.sqlite3").mkdir()
        for path in folder.glob("*.sqlite3"):
            path.chmod(0o777)
        folder.chmod(0o555)
        ran = subprocess.run(
            [sys.executable, "-c", NOT_OURS, name], cwd=ROOT, capture_output=True, text=True
        )
        folder.chmod(0o755)
    assert (ran.stdout, ran.returncode) == ("['job-1']\n", 0)
    assert "cannot be removed" in ran.stderr
    assert "is not taken over" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 3  # with the one about its own journal


def test_a_journal_is_locked_before_a_proxy_that_starts_meanwhile_can_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def start_another(descriptor: int, flags: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        other = Journal(tmp_path)
        assert other.orphans() == []
        other.close()
        lock(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", start_another)
    with closing(Journal(tmp_path)) as journal, closing(Journal(tmp_path)) as another:
        journal.add("http://runpod/v2/ep", "job-1")
        assert another.orphans() == []
        journal.remove("job-1")


def test_a_disk_that_is_full_from_the_start_leaves_it_in_memory(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert (ran.stdout, ran.returncode) == ("[]\n", 0)
    assert "will not survive" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_without_a_place_for_its_journal_still_serves(
    scripted_runpod: tuple[ScriptedRunPod, str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(scripted_runpod[1], state_dir="/proc/nowhere")
    with serve(create_app(settings)) as url:
        assert httpx.get(f"{url}/ready", timeout=30).status_code == 200
    assert "will not survive" in caplog.text


@pytest.mark.slow
def test_a_proxy_that_was_killed_cancels_its_jobs_when_it_comes_back(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    first = Proxy(scripted_runpod[1], state_dir=tmp_path)
    try:
        with first.client.stream("POST", CHAT, json=chat(stream=True)) as response:
            pieces = response.iter_raw()
            while b"data: " not in next(pieces):
                pass  # its job may not have been submitted yet
            first.process.kill()
    finally:
        first.close()
    assert runpod.cancelled == []
    second = Proxy(scripted_runpod[1], state_dir=tmp_path)
    try:
        wait_until(lambda: runpod.cancelled == [runpod.job_id])
    finally:
        second.close()


@pytest.mark.slow
def test_two_proxies_on_one_state_folder_leave_each_others_jobs_alone(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    runpod.script = [Page("IN_PROGRESS")]
    with ExitStack() as stack:
        first, second = (Proxy(scripted_runpod[1], state_dir=tmp_path) for _ in range(2))
        stack.callback(first.close)
        stack.callback(second.close)
        stack.enter_context(asked(second.client))
        wait_until(lambda: len(first.journal()) == 1)  # it reads all journals in the folder
        (kept,) = first.journal()
        with asked(first.client):
            wait_until(lambda: len(first.journal()) == 2)
            (left,) = set(first.journal()) - {kept}
            first.process.kill()
            first.process.wait()
        third = Proxy(scripted_runpod[1], state_dir=tmp_path)
        stack.callback(third.close)
        wait_until(lambda: first.journal() == [kept])
        assert set(runpod.cancelled) == {left}


@pytest.mark.slow
def test_a_full_disk_costs_no_answer(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path)
    try:
        # From now on no file of its own may be written beyond its first page.
        psutil.Process(proxy.process.pid).rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
        assert stream(proxy.client) == (200, BODY)
        proxy.client.close()
        proxy.process.terminate()
        assert proxy.process.wait(timeout=30) == 0
    finally:
        proxy.close()


def test_each_write_is_in_the_file_at_once_and_leaves_it_free_to_read(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        (path,) = tmp_path.glob("*.sqlite3")
        for number in range(3):
            journal.add("http://runpod/v2/ep", f"job-{number}")
            with closing(sqlite3.connect(path, timeout=0)) as reader:
                assert reader.execute("SELECT count(*) FROM jobs").fetchone() == (number + 1,)
        for number in range(3):
            journal.remove(f"job-{number}")
