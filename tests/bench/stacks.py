"""What there is to measure: one opener for each kind of stack, one line for each in `targets`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import tomlkit

from scripts.bench import set_up_for_bench
from scripts.processes import ROOT, free_port
from scripts.set_up import VLLM_FLAGS, next_worker_environment
from tests.bench.ground import THIS, Build, Ground, answers
from tests.bench.load import Kind
from tests.bench.processes import programs_below

KEY = "sk-bench"
PROFILED: dict[str, tuple[Kind, ...]] = {
    "channel": ("streams",),
    "queue-free": ("streams", "plain"),
    "team": ("plain",),
    "queue": ("streams",),
    "relay": ("streams",),
}
OFFICIAL_WORKER = ROOT / "tests" / "end_to_end" / "official_worker.py"
BEFORE = "before-"
"""What the names of the targets of the build before begin with."""
FEW = (1, 10)
"""The streams that an emulator and a worker on one core can serve."""
COSTS = (20, 100)
"""The streams at which CPU time is compared."""
MODEL = "m"
MANY = "1000000"
NO_LIMITS = {
    f"PROXY_{name}_LIMIT": f"{MANY}/{MANY}" for name in ("RUN", "STREAM", "STATUS", "CANCEL")
}

TEAM = {
    "PROXY_LEDGER": "true",
    "PROXY_LOG_FORMAT": "json",
    "PROXY_METRICS_KEY": "sk-metrics",
    "PROXY_PRICE_PER_SECOND": "0.0003",
}
"""What a proxy for many has switched on, beside limits of keys."""
LIMITS = {
    "requests-per-minute": MANY,
    "tokens-per-minute": MANY,
    "max-requests": MANY,
    "daily-budget": MANY,
    "daily-gpu-seconds": MANY,
}
"""Of a key: all that is counted of it."""
DIRECT = {"PROXY_DIRECT": "true", "PROXY_DIRECT_PRIVATE_ADDRESSES": "true"}
CHANNEL_PORT = "8899/tcp"
POSTS = "job-stream"
"""The operation by which workers post outputs to RunPod's queue."""
CALM = (20,)
"""A second: few enough plain requests for what cannot serve many."""
ONE_WORKER = {
    "min_workers": 1,
    "scaler_value": 10_000,
    "idle_timeout_seconds": 3600,
    "rate_limits": True,
}
"""An endpoint's settings: one worker, up all the time, and RunPod's limits."""


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
    engine_url: str = ""
    """The engine behind it; a scripted queue has none."""


Opener = Callable[[Ground], AbstractContextManager[Opened]]


@dataclass(frozen=True)
class Target:
    """One row of the tables."""

    name: str
    title: str
    open: Opener
    at: tuple[int, ...] = (1, 10, 100, 400)
    """The numbers of streams it is measured at; where others are asked for, those between."""
    is_extra: bool = False
    """Only with FULL=1."""
    plain_at: tuple[int, ...] = (20, 100)
    """How many plain requests a second it is measured with as well."""
    has_capacity: bool = False
    """Whether it is asked, with FULL=1, how many streams it can hold."""

    @property
    def profiled(self) -> tuple[Kind, ...]:
        """Under which loads PROFILE=1 looks where its time goes: of ours, now and before."""
        return PROFILED.get(self.name.removeprefix(BEFORE), ())


@contextmanager
def direct(ground: Ground) -> Iterator[Opened]:
    """The engine itself: what everything is held against."""
    yield Opened(f"{ground.engine_url}/v1", engine_url=ground.engine_url)


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


def queue(
    *,
    build: Build = THIS,
    network_ms: float = 0,
    has_limits: bool = True,
    has_channel: bool = False,
    is_for_team: bool = False,
) -> Opener:
    """The proxy in front of a scripted queue, at that distance; by the direct channel or not.

    For a team it holds a key of a database to limits, and keeps account of what that has used.
    """

    @contextmanager
    def opened(ground: Ground) -> Iterator[Opened]:
        port = free_port()
        options = ["--port", str(port), "--network-ms", str(network_ms)]
        if not has_limits:
            options.append("--no-limits")
        if has_channel:
            options += ["--channel-port", str(free_port())]
        command = THIS.command("tests.bench.scripted_queue", *options)
        url = f"http://127.0.0.1:{port}"

        def calls() -> dict[str, dict[str, int]]:
            told: dict[str, dict[str, int]] = httpx.get(f"{url}/bench/counts", timeout=5).json()
            return told

        settings = ({} if has_limits else NO_LIMITS) | (DIRECT if has_channel else {})
        key = KEY
        if is_for_team:
            state = tempfile.mkdtemp(prefix="team-", dir=ground.folder)
            settings |= TEAM | {"PROXY_STATE_DIR": state}
            key = _made_key(ground, build, settings)
        with (
            ground.running("queue", command, lambda: answers(f"{url}/bench/counts")),
            proxy(ground, build, url, settings) as behind,
        ):
            yield replace(behind, calls=calls, key=key)

    return opened


def _made_key(ground: Ground, build: Build, settings: Mapping[str, str]) -> str:
    """A key with every limit, made in the database of a proxy with these settings."""
    limits = [word for name, limit in LIMITS.items() for word in (f"--{name}", limit)]
    command = build.command("proxy", "keys", "create", "bench", *limits)
    environment = ground.environment(settings)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def relay(*, build: Build = THIS) -> Opener:
    """The proxy in front of a load-balancing endpoint, which is the engine itself."""

    @contextmanager
    def opened(ground: Ground) -> Iterator[Opened]:
        endpoint = {"kind": "load-balancing", "url": ground.engine_url}
        config = {"endpoints": {"ep": endpoint}, "models": {MODEL: {"endpoint": "ep"}}}
        path = ground.folder / f"relay-{free_port()}.toml"
        path.write_text(tomlkit.dumps(config))
        with proxy(ground, build, ground.engine_url, {"PROXY_CONFIG": str(path)}) as behind:
            yield replace(behind, engine_url=ground.engine_url)

    return opened


def plain_relay(ground: Ground) -> AbstractContextManager[Opened]:
    """A relay as most people write it."""
    command = ("tests.bench.plain_relay", "--port", "{port}", "--to", ground.engine_url)
    return other(ground, "plain-relay", THIS.command(*command), {})


def litellm(ground: Ground) -> AbstractContextManager[Opened]:
    """LiteLLM's proxy as its documents say for production, with one worker for the one core.

    https://docs.litellm.ai/docs/proxy/prod: that mode, one Uvicorn worker, no debugging; without a
    database, and without asking the internet for prices.
    """
    environment = set_up_for_bench("litellm")
    parameters = {
        "model": f"openai/{MODEL}",
        "api_base": f"{ground.engine_url}/v1",
        "api_key": KEY,
    }
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": True},
    }
    path = ground.folder / "litellm.yaml"
    path.write_text(json.dumps(config))  # which is YAML as well
    command = [
        *(str(environment.folder / "bin" / "litellm"), "--config", str(path)),
        *("--host", "127.0.0.1", "--port", "{port}", "--num_workers", "1"),
    ]
    variables = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    return other(ground, "litellm", command, variables, ready="/health/liveliness")


@contextmanager
def other(
    ground: Ground,
    name: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    ready: str = "/health",
) -> Iterator[Opened]:
    """Another program in front of the engine; `{port}` in its command is where it listens."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = [word.replace("{port}", str(port)) for word in command]
    with ground.running(
        name, words, lambda: answers(url + ready), variables, is_target=True
    ) as process:
        yield Opened(f"{url}/v1", programs_below(process.pid), engine_url=ground.engine_url)


def official_variables(ground: Ground) -> dict[str, str]:
    """What the stand-in for RunPod's own worker needs: to read whatever has come at once."""
    return {"ENGINE_URL": ground.engine_url, "PIECE_BYTES": "65536"}


def official() -> Opener:
    """The proxy in front of a worker that streams as RunPod's own image does."""

    @contextmanager
    def opened(ground: Ground) -> Iterator[Opened]:
        endpoint = {
            "id": "ep",
            "worker": f"{sys.executable} {OFFICIAL_WORKER}",
            "env": official_variables(ground),
        }
        with (
            emulator(ground, THIS, free_port(), endpoint | ONE_WORKER) as url,
            proxy(ground, THIS, url, {}) as behind,
        ):
            _count_posts(url)
            calls, engine_url = partial(emulator_calls, url), ground.engine_url
            yield replace(behind, calls=calls, engine_url=engine_url)

    return opened


def chain(
    *,
    build: Build = THIS,
    worker_python: Callable[[], Path] | None = None,
    has_channel: bool = False,
) -> Opener:
    """The whole chain: proxy, emulator, RunPod's SDK, our worker, and the engine behind it."""

    @contextmanager
    def opened(ground: Ground) -> Iterator[Opened]:
        port, engine_port = free_port(), free_port()
        python = worker_python() if worker_python is not None else Path(sys.executable)
        endpoint: dict[str, Any] = {
            "id": "ep",
            "worker": f"{python} -P -m worker",
            "env": worker_variables(build, engine_port),
        }
        if has_channel:
            endpoint["ports"] = [CHANNEL_PORT]
        with (
            emulator(ground, build, port, endpoint | ONE_WORKER) as url,
            proxy(ground, build, url, DIRECT if has_channel else {}) as behind,
        ):
            _count_posts(url)
            calls, engine_url = partial(emulator_calls, url), f"http://127.0.0.1:{engine_port}"
            yield replace(behind, calls=calls, engine_url=engine_url)

    return opened


def worker_variables(build: Build, engine_port: int) -> dict[str, str]:
    """What a worker of that build needs to start an engine of ours."""
    return {
        "PYTHONPATH": str(build.folder),
        "MODEL_NAME": MODEL,
        "HF_HUB_OFFLINE": "1",
        "MAX_CONCURRENCY": "200",
        "WORKER_VLLM_COMMAND": " ".join(THIS.command("tests.bench.engine")),
        "WORKER_VLLM_FLAGS": str(VLLM_FLAGS),
        "WORKER_VLLM_PORT": str(engine_port),
    }


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
    """The emulator's own counts: clients' calls, and the posts of workers if it counts them."""
    told = _control("GET", url, "").json()
    calls: dict[str, dict[str, int]] = told["endpoints"]["ep"]["calls"]
    posts = [fault["hits"] for fault in told["faults"] if fault["operation"] == POSTS]
    return calls | ({POSTS: {"admitted": sum(posts), "refused": 0}} if posts else {})


def _count_posts(url: str) -> None:
    """Have the emulator count the outputs that workers post, by a fault that does nothing."""
    _control("POST", url, "/faults", {"operation": POSTS, "times": 0})


def _control(method: str, url: str, path: str, body: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    where = f"{url}/_emulator{path}"
    done = httpx.request(method, where, json=body, headers=headers, timeout=5, trust_env=False)
    return done.raise_for_status()


def next_worker_python() -> Path:
    """The Python that has RunPod's next SDK."""
    return next_worker_environment().python


def twins(build: Build) -> list[Target]:
    """What is measured of this build and of the one before alike."""
    return [
        Target("chain", "queue, whole chain", chain(build=build), at=FEW, plain_at=CALM),
        Target("queue", "queue, 20 ms of network", queue(build=build, network_ms=20)),
        Target(
            "queue-free",
            "queue without RunPod's limits",
            queue(build=build, has_limits=False),
            at=COSTS,
            is_extra=True,
            has_capacity=True,
        ),
        Target(
            "relay",
            "load-balancing relay",
            relay(build=build),
            at=(1, 10, 20, 100, 400),
            has_capacity=True,
        ),
    ]


def channels() -> list[Target]:
    """The direct channel, which the build before need not have."""
    by_channel = queue(network_ms=20, has_channel=True)
    return [
        Target(
            "chain-channel",
            "direct channel, whole chain",
            chain(has_channel=True),
            at=(1, 10, 100),
            plain_at=CALM,
        ),
        Target(
            "channel",
            "direct channel, 20 ms of network",
            by_channel,
            at=(1, 10, 20, 100, 400),
            has_capacity=True,
        ),
    ]


def extras() -> list[Target]:
    """What is measured with FULL=1 besides."""
    next_sdk = chain(worker_python=next_worker_python)
    for_team = queue(has_limits=False, is_for_team=True)
    return [
        Target("team", "queue without RunPod's limits, for a team", for_team, at=COSTS),
        Target("queue-0", "queue, no network", queue(), plain_at=()),
        Target("queue-60", "queue, 60 ms of network", queue(network_ms=60), plain_at=()),
        Target(
            "chain-next", "queue, whole chain, runpod 2.0.0rc2", next_sdk, at=FEW, plain_at=CALM
        ),
        Target(
            "official", "queue, whole chain, RunPod's own worker", official(), at=FEW, plain_at=CALM
        ),
        Target(
            "plain-relay",
            "FastAPI, httpx and sse-starlette",
            plain_relay,
            at=(1, 10, 20, 100, 400),
            has_capacity=True,
        ),
        Target(
            "litellm", "LiteLLM's proxy", litellm, at=(1, 10, 20), plain_at=CALM, has_capacity=True
        ),
    ]


def targets(baseline: Build | None = None) -> list[Target]:
    """Everything there is to measure, in the order of the tables; the direct run comes first."""
    first = Target("direct", "the engine itself", direct, at=(1, 10, 20, 100, 400))
    others = [replace(one, is_extra=True) for one in extras()]
    before = [
        replace(one, name=f"{BEFORE}{one.name}", title=f"before: {one.title}")
        for one in (twins(baseline) if baseline is not None else [])
    ]
    return [first, *channels(), *twins(THIS), *others, *before]
