"""A whole worker for tests: `python -m worker` in front of the scripted engine.

Its RunPod is an emulator that starts no workers itself, so that the test owns the process: its
signals, its exit code, its log.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from emulator.fleet.worker_process import worker_environment
from emulator.settings import EndpointSettings
from scripts.set_up import VLLM_FLAGS
from tests.emulator.running import API_KEY, Client
from tests.servers import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "scripts" / "scripted_engine.py"
SECONDS = 60.0


class WorkerProcess:
    """A running worker, the engine behind it, and what it writes."""

    def __init__(
        self, environment: dict[str, str], directory: Path, python: str | Path = sys.executable
    ) -> None:
        self.log = directory / "worker.log"
        self.engine_port = free_port()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-m", "worker"],
                env=environment | {"WORKER_VLLM_PORT": str(self.engine_port)},
                cwd=directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when it takes jobs."""
        wait_until(lambda: "vLLM was ready" in self.log.read_text(), seconds=SECONDS)

    def engine(self, path: str) -> Any:
        """What the engine says at `/_engine/...`."""
        url = f"http://127.0.0.1:{self.engine_port}/_engine/{path}"
        return httpx.get(url, timeout=30).json()

    def kill_engine(self) -> None:
        """SIGKILL for the engine's process."""
        os.kill(self.engine("argv")["pid"], signal.SIGKILL)

    def exit_code(self) -> int:
        """Wait for the end of the process; its exit code."""
        return self.process.wait(SECONDS)

    def last_line(self) -> str:
        """The last line of the log."""
        return self.log.read_text().rstrip().splitlines()[-1]

    def tree(self) -> list[psutil.Process]:
        """The worker, the engine, and everything else below the worker."""
        worker = psutil.Process(self.process.pid)
        return [worker, *worker.children(recursive=True)]

    def end(self) -> None:
        """Kill what is left; the SDK's pinging child outlives a worker that was killed."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def start_worker(
    client: Client,
    directory: Path,
    *,
    engine_flags: str = "",
    python: str | Path = sys.executable,
    **environment: str,
) -> Iterator[WorkerProcess]:
    """Start a worker of this client's endpoint, with these variables on top of what it needs.

    `python` is one whose environment has the worker's packages.
    """
    base_url = client.url.rpartition("/v2/")[0]
    settings = EndpointSettings(
        id=client.url.rpartition("/")[2],
        env={
            "MODEL_NAME": "tiny-chat",
            "WORKER_VLLM_COMMAND": f"{sys.executable} {ENGINE} {engine_flags}",
            "WORKER_VLLM_FLAGS": str(VLLM_FLAGS),
            "PYTHONPATH": str(ROOT),
            "HOME": str(directory),
            "RUNPOD_PING_INTERVAL": "1000",
            **environment,
        },
    )
    worker_id = f"worker-{free_port()}"
    variables = worker_environment(settings, worker_id, base_url, API_KEY)
    worker = WorkerProcess(variables, directory, python)
    try:
        yield worker
    finally:
        worker.end()


def chat(**body: Any) -> dict[str, Any]:
    """A job's input as the proxy sends it."""
    return {
        "openai_route": "/v1/chat/completions",
        "openai_input": {"messages": [{"role": "user", "content": "hi"}], **body},
        "proxy": {"protocol": 1, "request_id": "req_1"},
    }


def events(frames: list[dict[str, Any]]) -> list[Any]:
    """The events that frames carry, parsed; checks that the frames are complete."""
    assert [frame["seq"] for frame in frames] == list(range(len(frames)))
    assert frames[-1]["end"]
    text = "".join(frame.get("text", "") for frame in frames)
    assert text.endswith("\n\n")
    payloads = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
    return [json.loads(payload) if payload != "[DONE]" else payload for payload in payloads]
