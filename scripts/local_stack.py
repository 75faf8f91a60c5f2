"""The whole stack on this machine: emulator, a worker with a real vLLM for each model, proxy.

`local_stack()` is what `make run` and the tests of the whole road start. It needs what
`python -m scripts.set_up` makes.
"""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tomlkit

from scripts.models import Model
from scripts.processes import Process, ProcessDied, check_port, free_port, last_lines, stop
from scripts.progress import SetUpError
from scripts.set_up import vllm_command, vllm_flags

RUNPOD_API_KEY = "rpa_local"
API_KEY = "sk-local"
READY_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Endpoint:
    """An emulated endpoint: the model it serves, and the port of its worker's vLLM."""

    model: Model
    vllm_port: int

    @property
    def id(self) -> str:
        """RunPod's id of it."""
        return self.model.endpoint

    @property
    def vllm_url(self) -> str:
        """The worker's vLLM itself; it answers while there is a worker."""
        return f"http://127.0.0.1:{self.vllm_port}"


@dataclass(frozen=True)
class LocalStack:
    """A running stack: where its parts are, and whether they are well."""

    endpoints: tuple[Endpoint, ...]
    """The first is the one to chat with."""
    emulator_port: int
    proxy_port: int
    logs: Path
    processes: Sequence[Process]
    api_key: str = API_KEY
    admin_key: str = ""
    """Of the proxy's page; empty where nobody administers."""
    runpod_api_key: str = RUNPOD_API_KEY

    @property
    def chat(self) -> Endpoint:
        """The endpoint of the model to chat with."""
        return self.endpoints[0]

    @property
    def base_url(self) -> str:
        """The proxy, as OpenAI's clients want it."""
        return f"http://127.0.0.1:{self.proxy_port}/v1"

    @property
    def runpod_url(self) -> str:
        """The emulator, as RunPod's clients want it."""
        return f"http://127.0.0.1:{self.emulator_port}/v2"

    def check_processes(self) -> None:
        """Return if the emulator and the proxy run.

        Raises:
            ProcessDied: one of them has ended.
        """
        for process in self.processes:
            process.check()

    def check_workers(self) -> None:
        """Return if no worker has crashed; a crashed one is followed by another after a pause.

        Raises:
            ProcessDied: one has.
        """
        if any(self.health(endpoint)["workers"]["unhealthy"] for endpoint in self.endpoints):
            log = self.logs / "emulator.log"
            said = "\n".join(last_lines(log))
            raise ProcessDied(f"the worker has died, {log} ends:\n{said}")

    def health(self, endpoint: Endpoint) -> dict[str, Any]:
        """What RunPod's `/health` says of the endpoint."""
        answer = _get(f"{self.runpod_url}/{endpoint.id}/health", self.runpod_api_key)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def is_ready(self) -> bool:
        """Do the emulator and the proxy answer? A worker need not be up."""
        try:
            self.health(self.chat)
            return _get(f"{self.base_url}/models", self.api_key).is_success
        except httpx.HTTPError:
            return False


@contextmanager
def local_stack(
    models: Sequence[Model],
    logs: Path,
    *,
    emulator_port: int = 0,
    proxy_port: int = 0,
    idle_timeout_seconds: float = 600,
    admin_key: str = "",
    made_later: bool = False,
) -> Iterator[LocalStack]:
    """Start the stack, wait until it takes requests, and leave nothing running.

    The first request for a model starts its worker, which stays for `idle_timeout_seconds` after
    the last one; with RunPod's default of 5 every pause would end in a cold start. Port 0 is any
    that is free. Models that are `made_later` may be missing until then.

    Raises:
        SetUpError: a port is taken, or a model is not there.
        ProcessDied: the emulator or the proxy did not start.
    """
    if not made_later:
        check_models(models)
    processes: list[Process] = []
    stack = LocalStack(
        endpoints=tuple(Endpoint(model, free_port()) for model in models),
        emulator_port=_port(emulator_port, "EMULATOR_PORT"),
        proxy_port=_port(proxy_port, "PROXY_PORT"),
        logs=logs,
        processes=processes,
        admin_key=admin_key,
    )
    logs.mkdir(parents=True, exist_ok=True)
    for endpoint in stack.endpoints:
        for log in logs.glob(f"{endpoint.id}-*.log"):
            log.unlink()
    try:
        processes.append(_emulator(stack, idle_timeout_seconds))
        processes.append(_proxy(stack))
        _wait_until_ready(stack)
        yield stack
    finally:
        # The proxy first, so that the jobs of running requests end before their worker does.
        stop(reversed(processes), STOP_SECONDS)


def check_models(models: Sequence[Model]) -> None:
    """Return if all of them can be loaded.

    Raises:
        SetUpError: one is not there.
    """
    for model in models:
        if not is_there(model):
            raise SetUpError(f"there is no model in {model.path}: set MODEL to another")


def is_there(model: Model) -> bool:
    """Whether it is; what is not in a folder is on the hub."""
    return not model.path.startswith("/") or Path(model.path).is_dir()


def _emulator(stack: LocalStack, idle_timeout_seconds: float) -> Process:
    endpoints = [
        {
            "id": endpoint.id,
            "worker": shlex.join([sys.executable, "-m", "worker"]),
            "idle_timeout_seconds": idle_timeout_seconds,
            "env": _for_worker(endpoint),
        }
        for endpoint in stack.endpoints
    ]
    settings = {
        "port": stack.emulator_port,
        "api_key": RUNPOD_API_KEY,
        "log_dir": str(stack.logs),
        "endpoints": endpoints,
    }
    config = _written(stack.logs / "emulator.toml", settings)
    command = [sys.executable, "-m", "emulator", "--config", str(config)]
    return Process("the emulator", command, _inherited(), stack.logs / "emulator.log")


def _for_worker(endpoint: Endpoint) -> dict[str, str]:
    """The worker's environment, on top of the emulator's."""
    flags = {"WORKER_VLLM_FLAGS": str(file)} if (file := vllm_flags()) else {}
    return {
        "WORKER_VLLM_COMMAND": vllm_command(),
        **flags,
        **endpoint.model.settings,
        "MODEL_NAME": endpoint.model.path,
        "OPENAI_SERVED_MODEL_NAME_OVERRIDE": endpoint.model.name,
        "WORKER_VLLM_PORT": str(endpoint.vllm_port),
    }


def _proxy(stack: LocalStack) -> Process:
    models = {
        endpoint.model.name: {"endpoint": endpoint.id, "owned_by": endpoint.model.owner}
        for endpoint in stack.endpoints
    }
    endpoints: dict[str, Any] = {endpoint.id: {} for endpoint in stack.endpoints}
    config = _written(stack.logs / "proxy.toml", {"endpoints": endpoints, "models": models})
    environment = {
        "PROXY_DRAIN_SECONDS": "5",
        # A model from the hub is downloaded while the first request waits.
        "PROXY_QUEUE_TIMEOUT_SECONDS": "1800",
        "PROXY_TOTAL_TIMEOUT_SECONDS": "3600",
        **_inherited(),
        "PROXY_API_KEYS": API_KEY,
        "PROXY_ADMIN_KEYS": stack.admin_key,
        "PROXY_CONFIG": str(config),
        "PROXY_PORT": str(stack.proxy_port),
        "PROXY_STATE_DIR": str(stack.logs / "state"),
        "RUNPOD_API_KEY": RUNPOD_API_KEY,
        "RUNPOD_ENDPOINT_BASE_URL": stack.runpod_url,
    }
    command = [sys.executable, "-m", "proxy", "--env-file", os.devnull]
    return Process("the proxy", command, environment, stack.logs / "proxy.log")


def _written(file: Path, contents: Mapping[str, Any]) -> Path:
    """The file, with these contents."""
    file.write_text(tomlkit.dumps(contents))
    return file


def _inherited() -> dict[str, str]:
    """Our environment, without what is about a real account, and with loopback reached directly."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    entries = [kept.get("NO_PROXY"), kept.get("no_proxy"), "127.0.0.1,localhost"]
    direct = ",".join(filter(None, entries))
    # Both, since most programs look at the lower-case name first.
    return {**kept, "NO_PROXY": direct, "no_proxy": direct, "PYTHONUNBUFFERED": "1"}


def _port(wanted: int, setting: str) -> int:
    check_port(wanted, setting)
    return wanted or free_port()


def _wait_until_ready(stack: LocalStack) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not stack.is_ready():
        stack.check_processes()
        if time.monotonic() > deadline:
            raise ProcessDied(f"the proxy was not ready in {READY_SECONDS:.0f} s, see {stack.logs}")
        time.sleep(0.1)


def _get(url: str, api_key: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {api_key}"}
    return httpx.get(url, headers=headers, timeout=10, trust_env=False)
