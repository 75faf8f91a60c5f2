"""What there is to measure: one opener for each kind of stack, one line for each in `targets`."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tomlkit

from scripts.processes import ROOT, free_port
from scripts.set_up import next_worker_environment
from tests.bench.ground import THIS, Build, Ground, answers
from tests.bench.processes import programs_below

KEY = "sk-bench"
MODEL = "m"
MANY = "1000000"
NO_LIMITS = {
    f"PROXY_{name}_LIMIT": f"{MANY}/{MANY}" for name in ("RUN", "STREAM", "STATUS", "CANCEL")
}


@dataclass(frozen=True)
class Opened:
    """A stack that is up."""

    url: str
    """The base URL as OpenAI's clients take it."""
    watched: tuple[int, ...] = ()
    """The processes of what is measured."""
    key: str = KEY
    model: str = MODEL
    calls: Callable[[], dict[str, dict[str, int]]] = dict
    """How many calls RunPod has had of each operation so far, admitted and refused."""


Opener = Callable[[Ground], AbstractContextManager[Opened]]


@dataclass(frozen=True)
class Target:
    """One row of the tables."""

    name: str
    title: str
    open: Opener
    fewest: int = 1
    """Streams it is asked to hold at least."""
    most: int = 400
    """And at most."""
    is_extra: bool = False
    """Only with FULL=1."""
    has_plain: bool = True
    """Whether plain requests are measured as well."""


@contextmanager
def direct(ground: Ground) -> Iterator[Opened]:
    """The engine itself: what everything is held against."""
    yield Opened(f"{ground.engine_url}/v1")


@contextmanager
def proxy(
    ground: Ground, build: Build, runpod_url: str, settings: dict[str, str]
) -> Iterator[Opened]:
    """A proxy of that build in front of that RunPod."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PROXY_API_KEYS": KEY,
        "PROXY_PORT": str(port),
        "PROXY_STATE_DIR": str(ground.folder / f"state-{port}"),
        "PROXY_MAX_REQUESTS": "10000",
        "PROXY_MAX_WAITING": "10000",
        "RUNPOD_API_KEY": KEY,
        "RUNPOD_ENDPOINT_BASE_URL": f"{runpod_url}/v2",
    } | settings
    if "PROXY_CONFIG" not in settings:
        environment |= {"RUNPOD_ENDPOINT_ID": "ep", "PROXY_MODELS": MODEL}
    command = build.command("proxy", "--env-file", os.devnull)
    with ground.running(
        "proxy", command, lambda: answers(f"{url}/ready"), environment, is_target=True
    ) as process:
        yield Opened(f"{url}/v1", programs_below(process.pid))


def queue(*, build: Build = THIS, network_ms: float = 0, has_limits: bool = True) -> Opener:
    """The proxy in front of a scripted queue, at that distance."""

    @contextmanager
    def opened(ground: Ground) -> Iterator[Opened]:
        port = free_port()
        options = ["--port", str(port), "--network-ms", str(network_ms)]
        command = THIS.command(
            "tests.bench.scripted_queue", *options, *([] if has_limits else ["--no-limits"])
        )
        url = f"http://127.0.0.1:{port}"

        def calls() -> dict[str, dict[str, int]]:
            told: dict[str, dict[str, int]] = httpx.get(f"{url}/bench/counts", timeout=5).json()
            return told

        settings = {} if has_limits else NO_LIMITS
        with (
            ground.running("queue", command, lambda: answers(f"{url}/bench/counts")),
            proxy(ground, build, url, settings) as behind,
        ):
            yield Opened(behind.url, behind.watched, calls=calls)

    return opened


def relay(*, build: Build = THIS) -> Opener:
    """The proxy in front of a load-balancing endpoint, which is the engine itself."""

    @contextmanager
    def opened(ground: Ground) -> Iterator[Opened]:
        endpoint = {"kind": "load-balancing", "url": ground.engine_url}
        config = {"endpoints": {"ep": endpoint}, "models": {MODEL: {"endpoint": "ep"}}}
        path = ground.folder / f"relay-{free_port()}.toml"
        path.write_text(tomlkit.dumps(config))
        with proxy(ground, build, ground.engine_url, {"PROXY_CONFIG": str(path)}) as behind:
            yield behind

    return opened


def chain(*, build: Build = THIS, worker_python: Callable[[], Path] | None = None) -> Opener:
    """The whole chain: proxy, emulator, RunPod's SDK, our worker, and the engine behind it."""

    @contextmanager
    def opened(ground: Ground) -> Iterator[Opened]:
        port, engine_port = free_port(), free_port()
        python = worker_python() if worker_python is not None else Path(sys.executable)
        engine = " ".join(THIS.command("tests.bench.engine"))
        endpoint = {
            "id": "ep",
            "worker": f"{python} -P -m worker",
            "min_workers": 1,
            "scaler_value": 10_000,
            "idle_timeout_seconds": 3600,
            "env": {
                "PYTHONPATH": str(build.folder),
                "MODEL_NAME": MODEL,
                "HF_HUB_OFFLINE": "1",
                "MAX_CONCURRENCY": "200",
                "WORKER_VLLM_COMMAND": engine,
                "WORKER_VLLM_FLAGS": str(ROOT / "tests" / "worker" / "vllm_flags.json"),
                "WORKER_VLLM_PORT": str(engine_port),
            },
        }
        with ExitStack() as stack:
            url = stack.enter_context(emulator(ground, build, port, endpoint))
            behind = stack.enter_context(proxy(ground, build, url, {}))
            yield Opened(behind.url, behind.watched, calls=lambda: emulator_calls(url))

    return opened


@contextmanager
def emulator(ground: Ground, build: Build, port: int, endpoint: dict[str, Any]) -> Iterator[str]:
    """An emulator with that endpoint, and a worker of it that is up; its base URL."""
    config = ground.folder / f"emulator-{port}.toml"
    settings = {"port": port, "api_key": KEY, "log_dir": str(ground.folder)}
    config.write_text(tomlkit.dumps(settings | {"endpoints": [endpoint]}))
    url = f"http://127.0.0.1:{port}"
    command = build.command("emulator", "--config", str(config))

    def is_up() -> bool:
        try:
            headers = {"authorization": f"Bearer {KEY}"}
            told = httpx.get(f"{url}/v2/ep/health", headers=headers, timeout=5, trust_env=False)
            return bool(told.json()["workers"]["idle"])
        except (httpx.HTTPError, json.JSONDecodeError):
            return False

    with ground.running("emulator", command, is_up):
        yield url


def emulator_calls(url: str) -> dict[str, dict[str, int]]:
    """The emulator's own counts."""
    headers = {"authorization": f"Bearer {KEY}"}
    told = httpx.get(f"{url}/_emulator", headers=headers, timeout=5, trust_env=False).json()
    calls: dict[str, dict[str, int]] = told["endpoints"]["ep"]["calls"]
    return calls


def next_worker_python() -> Path:
    """The Python that has RunPod's next SDK."""
    return next_worker_environment().python


def targets(baseline: Build | None = None) -> list[Target]:
    """Everything there is to measure, in the order of the tables; the direct run comes first."""
    found = [
        Target("direct", "the engine itself", direct),
        Target("chain", "queue, whole chain (runpod 1.12)", chain(), most=10),
        Target(
            "chain-next",
            "queue, whole chain (runpod 2.0.0rc2)",
            chain(worker_python=next_worker_python),
            most=1,
            is_extra=True,
        ),
        Target("queue-0", "queue, no network", queue(), is_extra=True, has_plain=False),
        Target("queue", "queue, 20 ms of network", queue(network_ms=20)),
        Target(
            "queue-60",
            "queue, 60 ms of network",
            queue(network_ms=60),
            is_extra=True,
            has_plain=False,
        ),
        Target(
            "queue-free",
            "queue, no network, no limits",
            queue(has_limits=False),
            fewest=20,
            most=100,
        ),
        Target("relay", "load-balancing relay", relay()),
    ]
    if baseline is not None:
        found += [
            Target("before-chain", "before: queue, whole chain", chain(build=baseline), most=10),
            Target(
                "before-queue",
                "before: queue, 20 ms of network",
                queue(build=baseline, network_ms=20),
            ),
            Target(
                "before-queue-free",
                "before: queue, no network, no limits",
                queue(build=baseline, has_limits=False),
                fewest=20,
                most=100,
            ),
            Target("before-relay", "before: load-balancing relay", relay(build=baseline)),
        ]
    return found
