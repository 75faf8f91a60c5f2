"""The whole stack on this machine: emulator, worker with a real vLLM, proxy.

`local_stack()` is what `make run` and the tests of the whole road start. It needs what
`python -m scripts.set_up` makes.
"""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from scripts.processes import Process, ProcessDied, free_port, is_free, last_lines, stop
from scripts.progress import SetUpError
from scripts.set_up import TINY_CHAT, vllm_command, vllm_flags

ENDPOINT = "local"
RUNPOD_API_KEY = "rpa_local"
API_KEY = "sk-local"
READY_SECONDS = 60.0
STOP_SECONDS = 15.0

ANY_MODEL = {
    # Without compilation: that takes minutes on a CPU and needs a C++ compiler.
    "ENFORCE_EAGER": "true",
    "VLLM_NO_USAGE_STATS": "1",
}
OTHER_MODEL = {
    # As long as the cache has room for.
    "MAX_MODEL_LEN": "auto",
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
TINY_MODEL = {
    "MAX_MODEL_LEN": "2048",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "ENABLE_AUTO_TOOL_CHOICE": "true",
    "TOOL_CALL_PARSER": "hermes",
    # A model this small would follow one white space with another until its length is used up.
    "STRUCTURED_OUTPUTS_CONFIG": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    # One process and one thread for the model, not two and all: it starts in half the time.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
}
"""Defaults of the worker's settings; what the environment says wins."""


@dataclass(frozen=True)
class Model:
    """What vLLM loads, the name clients know it by, and settings that suit it."""

    path: str
    name: str
    defaults: Mapping[str, str]


@dataclass(frozen=True)
class Ports:
    """Where the parts of a stack listen, on loopback."""

    emulator: int
    proxy: int
    vllm: int


@dataclass(frozen=True)
class LocalStack:
    """A running stack: where its parts are, and whether they are well."""

    model: str
    ports: Ports
    logs: Path
    processes: tuple[Process, ...]
    api_key: str = API_KEY
    runpod_api_key: str = RUNPOD_API_KEY
    endpoint_id: str = ENDPOINT

    @property
    def base_url(self) -> str:
        """The proxy, as OpenAI's clients want it."""
        return f"http://127.0.0.1:{self.ports.proxy}/v1"

    @property
    def runpod_url(self) -> str:
        """The emulator, as RunPod's clients want it."""
        return f"http://127.0.0.1:{self.ports.emulator}/v2"

    @property
    def vllm_url(self) -> str:
        """The worker's vLLM itself; it answers while there is a worker."""
        return f"http://127.0.0.1:{self.ports.vllm}"

    def check_processes(self) -> None:
        """Return if the emulator and the proxy run.

        Raises:
            ProcessDied: one of them has ended.
        """
        for process in self.processes:
            process.check()

    def check_worker(self) -> None:
        """Return if no worker has crashed; a crashed one is followed by another after a pause.

        Raises:
            ProcessDied: one has.
        """
        if self.health()["workers"]["unhealthy"]:
            log = self.logs / "emulator.log"
            said = "\n".join(last_lines(log))
            raise ProcessDied(f"the worker has died, {log} ends:\n{said}")

    def health(self) -> dict[str, Any]:
        """What RunPod's `/health` says of the endpoint."""
        answer = _get(f"{self.runpod_url}/{self.endpoint_id}/health", self.runpod_api_key)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def is_ready(self) -> bool:
        """Do the emulator and the proxy answer? A worker need not be up."""
        try:
            self.health()
            return _get(f"{self.base_url}/models", self.api_key).is_success
        except httpx.HTTPError:
            return False


def find_model(wanted: str = "") -> Model:
    """The built-in model, or the one wanted: a name on the Hugging Face hub, or a folder.

    Raises:
        SetUpError: there is no such model here.
    """
    if not wanted:
        return Model(str(TINY_CHAT.folder), TINY_CHAT.name, TINY_MODEL)
    folder = Path(wanted).expanduser().absolute()
    if folder.is_dir():
        return Model(str(folder), folder.name, OTHER_MODEL)
    if wanted.startswith((".", "/", "~")):
        raise SetUpError(f"MODEL is {wanted}, but there is no such folder")
    return Model(wanted, wanted, OTHER_MODEL)


@contextmanager
def local_stack(
    model: Model,
    logs: Path,
    *,
    emulator_port: int = 0,
    proxy_port: int = 0,
    idle_timeout_seconds: float = 600,
) -> Iterator[LocalStack]:
    """Start the stack, wait until it takes requests, and leave nothing running.

    The first request starts the worker, which stays for `idle_timeout_seconds` after the last one;
    with RunPod's default of 5 every pause would end in a cold start. Port 0 is any that is free.

    Raises:
        SetUpError: a port is taken, or the model is not there.
        ProcessDied: the emulator or the proxy did not start.
    """
    if model.path.startswith("/") and not Path(model.path).is_dir():
        raise SetUpError(f"there is no model in {model.path}: run `make setup`, or set MODEL")
    ports = Ports(
        emulator=_port(emulator_port, "EMULATOR_PORT"),
        proxy=_port(proxy_port, "PROXY_PORT"),
        vllm=free_port(),
    )
    logs.mkdir(parents=True, exist_ok=True)
    for log in logs.glob("*.log"):
        log.unlink()
    processes: list[Process] = []
    try:
        processes.append(_emulator(ports, logs, idle_timeout_seconds, _for_worker(model, ports)))
        processes.append(_proxy(logs, _for_proxy(model, ports, logs)))
        stack = LocalStack(model.name, ports, logs, tuple(processes))
        _wait_until_ready(stack)
        yield stack
    finally:
        # The proxy first, so that the jobs of running requests end before their worker does.
        stop(reversed(processes), STOP_SECONDS)


def _emulator(
    ports: Ports, logs: Path, idle_timeout_seconds: float, environment: Mapping[str, str]
) -> Process:
    flags = {
        "--port": str(ports.emulator),
        "--api-key": RUNPOD_API_KEY,
        "--log-dir": str(logs),
        "--endpoint": ENDPOINT,
        "--worker": shlex.join([sys.executable, "-m", "worker"]),
        "--idle-timeout": str(idle_timeout_seconds),
    }
    command = [sys.executable, "-m", "emulator", *(word for flag in flags.items() for word in flag)]
    return Process("the emulator", command, environment, logs / "emulator.log")


def _proxy(logs: Path, environment: Mapping[str, str]) -> Process:
    return Process("the proxy", [sys.executable, "-m", "proxy"], environment, logs / "proxy.log")


def _for_worker(model: Model, ports: Ports) -> dict[str, str]:
    """The worker's environment, which it inherits from the emulator."""
    flags = {"WORKER_VLLM_FLAGS": str(file)} if (file := vllm_flags()) else {}
    return {
        **ANY_MODEL,
        **model.defaults,
        **flags,
        "OPENAI_SERVED_MODEL_NAME_OVERRIDE": model.name,
        **_inherited(),
        "MODEL_NAME": model.path,
        "WORKER_VLLM_COMMAND": vllm_command(),
        "WORKER_VLLM_PORT": str(ports.vllm),
    }


def _for_proxy(model: Model, ports: Ports, logs: Path) -> dict[str, str]:
    return {
        "PROXY_DRAIN_SECONDS": "5",
        # A model from the hub is downloaded while the first request waits.
        "PROXY_QUEUE_TIMEOUT_SECONDS": "1800",
        "PROXY_TOTAL_TIMEOUT_SECONDS": "3600",
        **_inherited(),
        "PROXY_API_KEYS": API_KEY,
        "PROXY_PORT": str(ports.proxy),
        "PROXY_MODELS": model.name,
        "PROXY_STATE_DIR": str(logs / "state"),
        "RUNPOD_API_KEY": RUNPOD_API_KEY,
        "RUNPOD_ENDPOINT_ID": ENDPOINT,
        "RUNPOD_ENDPOINT_BASE_URL": f"http://127.0.0.1:{ports.emulator}/v2",
    }


def _inherited() -> dict[str, str]:
    """Our environment, without what is about a real account, and with loopback reached directly."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    direct = ",".join(filter(None, [kept.get("NO_PROXY"), "127.0.0.1,localhost"]))
    return {**kept, "NO_PROXY": direct, "PYTHONUNBUFFERED": "1"}


def _port(wanted: int, setting: str) -> int:
    if wanted and not is_free(wanted):
        raise SetUpError(f"port {wanted} is taken: stop what listens there, or set {setting}")
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
