"""vLLM as a process: started, awaited, stopped, and never left behind. The engine stands for it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest

from tests.servers import free_port
from tests.waiting import wait_until
from worker.errors import EngineDead, VLLMExited, VLLMStartTimeout
from worker.server import VLLMServer, temporary_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENGINE = [sys.executable, str(ROOT / "scripts" / "scripted_engine.py")]

Start = Callable[..., VLLMServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts engines, and stops them after the test."""
    servers = []

    def start(*flags: str) -> VLLMServer:
        port = free_port()
        command = [*ENGINE, "--port", str(port), "--model", "m", *flags]
        servers.append(VLLMServer(command, os.environ, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop(5)


def tree(server: VLLMServer) -> list[psutil.Process]:
    """The processes of a healthy engine and its child."""
    facts = httpx.get(f"{server.base_url}/_engine/argv", timeout=30).json()
    return [psutil.Process(facts["pid"]), psutil.Process(facts["child_pid"])]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


def test_a_healthy_server_tells_its_model(start: Start) -> None:
    server = start()
    server.wait_until_healthy(60)
    assert server.models() == [{"id": "m", "max_model_len": 8192}]


def test_a_server_that_dies_at_the_start_is_not_waited_for(start: Start) -> None:
    server = start("--die-at-start")
    with pytest.raises(VLLMExited) as caught:
        server.wait_until_healthy(3600)
    assert str(caught.value) == (
        "vLLM exited with code 1. It said: RuntimeError: scripted death at start"
    )


def test_an_engine_that_failed_is_not_waited_for_although_its_server_lives(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.server.EXIT_SECONDS", 0.5)
    words = tmp_path / "words"
    words.write_text(
        "(EngineCore pid=7) ERROR 11-28 17:23:19 [core.py:1510] EngineCore failed to start.\n"
        "(EngineCore pid=7) ERROR 11-28 17:23:19 [core.py:1510] ValueError: for a reason\n"
    )
    server = start("--say", str(words), "--start-seconds", "3600")
    with pytest.raises(VLLMExited) as caught:
        server.wait_until_healthy(3600)
    assert str(caught.value) == "vLLM has lost its engine. It said: ValueError: for a reason"


def test_an_engine_that_is_dead_behind_a_living_server_is_found_by_its_health(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.server.WATCH_SECONDS", 0.05)
    server = start()
    server.wait_until_healthy(60)
    server.watch()
    httpx.post(f"{server.base_url}/_engine/health/500")
    with pytest.raises(TimeoutError):  # an error of the server is not the engine's death
        server.failed.result(1)
    httpx.post(f"{server.base_url}/_engine/health/503")
    assert isinstance(server.failed.result(60), EngineDead)
    assert not server.exited.done()


def test_a_server_that_starts_too_slowly_is_given_up(start: Start) -> None:
    server = start("--start-seconds", "3600")
    with pytest.raises(VLLMStartTimeout):
        server.wait_until_healthy(0.5)


def test_a_command_that_is_not_there_is_told() -> None:
    server = VLLMServer(["/nowhere/vllm"], os.environ, port=1)
    with pytest.raises(VLLMExited, match="cannot start vLLM"):
        server.wait_until_healthy(60)
    server.stop(1)


def test_what_vllm_prints_is_passed_on(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    start().wait_until_healthy(60)
    said = ""

    def is_passed_on() -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return "scripted engine is ready\n" in said

    wait_until(is_passed_on)


def test_stopping_ends_the_whole_tree(start: Start) -> None:
    server = start("--spawn-child")
    server.wait_until_healthy(60)
    processes = tree(server)
    server.stop(60)
    assert are_gone(processes)
    assert server.exited.result() == -signal.SIGTERM  # uvicorn ends by it after a clean stop


def test_a_server_that_ignores_sigterm_is_killed_with_its_tree(start: Start) -> None:
    server = start("--spawn-child")
    server.wait_until_healthy(60)
    processes = tree(server)
    processes[0].suspend()  # a stopped process does not see SIGTERM
    server.stop(0.5)
    assert are_gone(processes)


def test_a_death_by_signal_is_told_as_that(start: Start) -> None:
    server = start("--spawn-child")
    server.wait_until_healthy(60)
    processes = tree(server)
    processes[0].kill()
    assert server.exited.result(60) == -signal.SIGKILL
    assert are_gone(processes)


def temporary_files(base_url: str) -> Path:
    """The engine's own folder for temporary files, with one in it."""
    facts = httpx.get(f"{base_url}/_engine/argv", timeout=30).json()
    folder = Path(facts["environment"]["TMPDIR"])
    (folder / "socket").touch()
    return folder


def test_vllms_temporary_files_are_gone_when_it_is_stopped(start: Start) -> None:
    server = start()
    server.wait_until_healthy(60)
    folder = temporary_files(server.base_url)
    server.stop(60)
    assert not folder.exists()


def test_vllms_temporary_files_are_gone_when_it_is_killed(start: Start) -> None:
    server = start()
    server.wait_until_healthy(60)
    folder = temporary_files(server.base_url)
    os.kill(httpx.get(f"{server.base_url}/_engine/argv").json()["pid"], signal.SIGKILL)
    server.exited.result(60)
    assert not folder.exists()


def test_temporary_files_go_where_the_environment_wants_them_unless_a_socket_would_not_fit(
    tmp_path: Path,
) -> None:
    near = Path(tempfile.mkdtemp(prefix="near-", dir="/tmp"))
    deep = tmp_path / ("deep" * 15)
    deep.mkdir()
    places = {str(near): near, str(deep): Path("/tmp"), "/nowhere": Path("/tmp"), "": Path("/tmp")}
    for wanted, parent in places.items():
        folder = Path(temporary_folder({"TMPDIR": wanted}))
        assert folder.parent == parent
        assert len(f"{folder}/{uuid4()}") <= 107
        folder.rmdir()
    near.rmdir()


def test_a_launcher_that_is_killed_leaves_nothing_behind(start: Start) -> None:
    server = start("--spawn-child")
    server.wait_until_healthy(60)
    processes = tree(server)
    folder = temporary_files(server.base_url)
    processes[0].parent().kill()  # type: ignore[union-attr] # it has one
    assert server.exited.result(60) == -signal.SIGKILL
    server.stop(1)
    assert not folder.exists()
    wait_until(lambda: are_gone(processes))


@contextmanager
def parent_of_a_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has started a server and does nothing else."""
    program = f"""
import os, time
from worker.server import VLLMServer
command = {[*ENGINE, "--port", str(port), "--spawn-child"]!r}
VLLMServer(command, os.environ, port={port}).wait_until_healthy(60)
print("healthy", flush=True)
os.fork()  # as the SDK does for its pings: a copy of every open file lives on
time.sleep(3600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_worker_that_is_killed_leaves_no_vllm_behind() -> None:
    port = free_port()
    with parent_of_a_server(port) as process:
        assert process.stdout is not None
        while process.stdout.readline() != b"healthy\n":
            assert process.poll() is None
        processes = tree_at(port)
        folder = temporary_files(f"http://127.0.0.1:{port}")
        process.kill()
        wait_until(lambda: are_gone(processes))
        assert not folder.exists()


def tree_at(port: int) -> list[psutil.Process]:
    """The processes of the engine at this port, up to its launcher."""
    facts = httpx.get(f"http://127.0.0.1:{port}/_engine/argv", timeout=30).json()
    engine = psutil.Process(facts["pid"])
    launcher = engine.parent()
    assert launcher is not None
    return [launcher, engine, psutil.Process(facts["child_pid"])]


def test_vllm_does_not_inherit_blocked_or_ignored_signals(start: Start) -> None:
    server = start("--spawn-child")
    server.wait_until_healthy(60)
    status = Path(f"/proc/{tree(server)[0].pid}/status").read_text()
    masks = dict(re.findall(r"(Sig\w+):\s+([0-9a-f]{16})", status))
    stoppers = (1 << signal.SIGTERM - 1) | (1 << signal.SIGINT - 1) | (1 << signal.SIGCHLD - 1)
    assert int(masks["SigBlk"], 16) & stoppers == 0
    assert int(masks["SigIgn"], 16) & stoppers == 0
