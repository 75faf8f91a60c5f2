"""What a worker process finds around itself."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from emulator.fleet.worker_process import WorkerProcess, worker_command, worker_environment
from emulator.settings import EndpointSettings


def environment(**settings: Any) -> dict[str, str]:
    """The environment of the worker `w1` of the endpoint `ep`."""
    endpoint = EndpointSettings(id="ep", **settings)
    return worker_environment(endpoint, "w1", "http://127.0.0.1:8400", "rpa_x")


def test_the_urls_are_the_templates_the_sdk_fills_in() -> None:
    found = environment()
    base = "http://127.0.0.1:8400/v2/ep"
    assert found["RUNPOD_WEBHOOK_GET_JOB"].startswith(f"{base}/job-take/$ID?")
    assert found["RUNPOD_WEBHOOK_POST_OUTPUT"].startswith(f"{base}/job-done/$RUNPOD_POD_ID/$ID?")
    assert found["RUNPOD_WEBHOOK_POST_STREAM"].startswith(f"{base}/job-stream/$RUNPOD_POD_ID/$ID?")
    assert found["RUNPOD_WEBHOOK_PING"].startswith(f"{base}/ping/$RUNPOD_POD_ID?")


def test_the_worker_knows_its_names_and_its_key() -> None:
    found = environment(ping_interval_seconds=3)
    assert found["RUNPOD_POD_ID"] == "w1"
    assert found["RUNPOD_ENDPOINT_ID"] == "ep"
    assert found["RUNPOD_AI_API_KEY"] == "rpa_x"
    assert found["RUNPOD_PING_INTERVAL"] == "3000"
    assert found["RUNPOD_SKIP_AUTO_SYSTEM_CHECKS"] == found["RUNPOD_SKIP_GPU_CHECK"] == "true"


def test_our_own_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "tiny")
    monkeypatch.setenv("RUNPOD_REALTIME_PORT", "8000")
    found = environment()
    assert found["MODEL_NAME"] == "tiny"
    assert "RUNPOD_REALTIME_PORT" not in found, "it would switch off the production loop"


def test_the_endpoints_own_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "tiny")
    assert environment(env={"MODEL_NAME": "big"})["MODEL_NAME"] == "big"


def test_the_log_level_is_info_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_LOG_LEVEL", raising=False)
    assert environment()["RUNPOD_LOG_LEVEL"] == "INFO"
    monkeypatch.setenv("RUNPOD_LOG_LEVEL", "DEBUG")
    assert environment()["RUNPOD_LOG_LEVEL"] == "DEBUG"


def test_downloaded_models_are_looked_for_in_the_real_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment()["HF_HOME"] == str(tmp_path / ".cache" / "huggingface")
    monkeypatch.setenv("HF_HOME", "/models")
    assert environment()["HF_HOME"] == "/models"


def test_modules_of_our_own_directory_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert environment()["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/elsewhere"


def test_file_names_in_the_command_are_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The worker runs elsewhere; a directory named like a module is left alone."""
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "a b.py").touch()
    monkeypatch.chdir(tmp_path)
    endpoint = EndpointSettings(id="ep", worker="python 'worker/a b.py' -m worker --n 1")
    expected = ["python", str(tmp_path / "worker" / "a b.py"), "-m", "worker", "--n", "1"]
    assert worker_command(endpoint) == expected


@pytest.mark.slow
async def test_the_exit_code_of_a_killed_launcher_is_told_as_a_shell_does(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
    process = await WorkerProcess.start(
        sleep, dict(os.environ), tmp_path / "w1", tmp_path / "w1.log"
    )
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == 128 + signal.SIGKILL


@pytest.mark.slow
async def test_a_worker_has_a_fresh_directory_and_a_clean_home(tmp_path: Path) -> None:
    script = "import os; h = os.environ['HOME']; print(os.getcwd(), h, os.getsid(0), sep='\\n')"
    show = [sys.executable, "-c", f"{script}; print(os.listdir() + os.listdir(h))"]
    process = await WorkerProcess.start(
        show, dict(os.environ), tmp_path / "w1", tmp_path / "w1.log"
    )
    assert await process.wait() == 0
    cwd, home, session, contents = (tmp_path / "w1.log").read_text().split()
    assert Path(cwd).parent == Path(home).parent == tmp_path / "w1"
    assert cwd != home
    assert contents == "[]"
    assert session != str(os.getsid(0)), "a session of its own"
    assert not (tmp_path / "w1").exists(), "the directory goes with the worker"
