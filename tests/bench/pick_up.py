"""What a worker costs: from a job's being handed out to its first output, and its posts."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec

from emulator.fleet.worker_process import worker_environment
from emulator.settings import EndpointSettings
from scripts.processes import free_port
from tests.bench.ground import THIS, Build, Ground, answers
from tests.bench.load import Spread
from tests.bench.stacks import (
    KEY,
    OFFICIAL_WORKER,
    next_worker_python,
    official_variables,
    worker_variables,
)
from tests.waiting import wait_until

JOBS_SECONDS: Final = 120.0


class PickUp(msgspec.Struct, kw_only=True):
    """What was seen of one worker."""

    worker: str
    first_output: Spread | None = None
    """Seconds from handing a job out to its first output's coming back."""
    posts_per_1000_tokens: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Worker:
    """One worker to be measured."""

    title: str
    command: Sequence[str]
    variables: dict[str, str]


def workers(ground: Ground, baseline: Build | None, *, is_full: bool) -> list[Worker]:
    """Ours with each SDK, and with FULL=1 RunPod's own way of streaming."""
    ours = ["-P", "-m", "worker"]
    found = [
        Worker("ours, runpod 1.12", [sys.executable, *ours], worker_variables(THIS, free_port())),
        Worker(
            "ours, runpod 2.0.0rc2",
            [str(next_worker_python()), *ours],
            worker_variables(THIS, free_port()),
        ),
    ]
    if is_full:
        command = [sys.executable, str(OFFICIAL_WORKER)]
        variables = official_variables(ground)
        found.append(Worker("RunPod's own way, runpod 1.12", command, variables))
    if baseline is not None:
        variables = worker_variables(baseline, free_port())
        found.append(Worker("before: ours, runpod 1.12", [sys.executable, *ours], variables))
    return found


def pick_up(ground: Ground, worker: Worker) -> PickUp:
    """Give this worker jobs, one after the other."""
    found = PickUp(worker=worker.title)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = THIS.command("tests.bench.scripted_jobs", "--port", str(port))
    endpoint = EndpointSettings(id="ep", env=worker.variables)
    environment = worker_environment(endpoint, "bench", url, KEY)
    environment |= {"HOME": str(ground.folder), "RUNPOD_LOG_LEVEL": "WARN"}

    def times() -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"{url}/bench/times", timeout=5, trust_env=False).json()
        return told

    try:
        with (
            ground.running("jobs", command, lambda: answers(f"{url}/bench/times")),
            ground.running("worker", worker.command, lambda: True, environment, is_target=True),
        ):
            wait_until(lambda: times()["left"] == 0, seconds=JOBS_SECONDS)
            told = times()
    except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
        found.error = str(error) or repr(error)
        return found
    found.first_output = Spread.of(told["first_outputs"][1:])  # the first one waits for the start
    found.posts_per_1000_tokens = 1000 * told["posts"] / told["tokens"]
    return found
