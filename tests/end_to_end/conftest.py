"""The whole road with everything on it real but the model: client, proxy, emulator, RunPod's SDK,
worker, and a scripted engine in vLLM's place."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.app import create_app
from proxy.telemetry.traces import Traces
from scripts.local_stack import LocalStack, local_stack
from scripts.set_up import VLLM_FLAGS
from tests.emulator.running import API_KEY, Client, emulator
from tests.long_models import long_models
from tests.proxy.conftest import KEY, settings_for
from tests.servers import free_port, serve
from tests.waiting import wait_until

ENGINE = Path(__file__).parents[2] / "scripts" / "scripted_engine.py"


@dataclass
class Road:
    """One stack, and ways to look at each part of it."""

    url: str
    """The proxy's base URL, for OpenAI's clients."""
    runpod: Client
    engine_port: int

    def sdk(self) -> openai.OpenAI:
        """An OpenAI client that does not repeat requests."""
        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0)

    def engine(self, path: str = "/_engine/requests") -> dict[str, Any]:
        """What the engine tells of itself."""
        url = f"http://127.0.0.1:{self.engine_port}{path}"
        answer: dict[str, Any] = httpx.get(url, timeout=60).json()
        return answer

    def post(self, **fields: Any) -> httpx.Response:
        """A plain chat through the proxy."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}/chat/completions", json=body, headers=headers, timeout=60)

    def workers(self) -> int:
        """How many workers there are, in whatever state."""
        counts = self.runpod.health()["workers"]
        return int(counts["ready"]) + int(counts["initializing"])

    def wait_for_no_jobs(self) -> None:
        """Until nothing is queued or running."""

        def is_empty() -> bool:
            jobs = self.runpod.health()["jobs"]
            return int(jobs["inQueue"]) + int(jobs["inProgress"]) == 0

        wait_until(is_empty)


def endpoint_settings() -> dict[str, Any]:
    """An endpoint whose worker is the real one, with a scripted engine in vLLM's place."""
    env = {
        "MODEL_NAME": "m",
        "HF_HUB_OFFLINE": "1",  # or each worker would ask the hub for it
        "WORKER_VLLM_COMMAND": f"{sys.executable} {ENGINE}",
        "WORKER_VLLM_FLAGS": str(VLLM_FLAGS),
        "WORKER_VLLM_PORT": str(free_port()),
    }
    return {
        "worker": f"{sys.executable} -m worker",
        "env": env,
        "scaler_value": 100,
        "idle_timeout_seconds": 60,
        "take_hold_seconds": 2,
        "stop_hold_seconds": 2,
    }


@contextmanager
def road(
    *,
    settings: dict[str, Any] | None = None,
    worker_env: dict[str, str] | None = None,
    proxy_port: int = 0,
    traces: Traces | None = None,
    **endpoint: Any,
) -> Iterator[Road]:
    """A stack of its own; `settings` are the proxy's, the others the emulated endpoint's."""
    values = endpoint_settings() | endpoint
    values["env"] |= worker_env or {}
    engine_port = int(values["env"]["WORKER_VLLM_PORT"])
    with ExitStack() as stack:
        client = stack.enter_context(emulator(ep=values))("ep")
        changes = {"runpod_api_key": API_KEY, "queue_timeout_seconds": 60} | (settings or {})
        settings_here = settings_for(client.url.removesuffix("/v2/ep"), **changes)
        app = create_app(settings_here, traces=traces)
        url = stack.enter_context(serve(app, port=proxy_port))
        yield Road(f"{url}/v1", client, engine_port)


@pytest.fixture(scope="module")
def warm_road() -> Iterator[Road]:
    """A stack that tests share, with one worker up; what fails early has its own status."""
    with road(min_workers=1, settings={"first_byte_hold_seconds": 60}) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        yield stack


@pytest.fixture(scope="session")
def vllm_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """What `make run` starts, warmed up: vLLM on the CPU with each of the built-in models.

    It takes longer texts, so that there is time to leave them, and an error that comes before the
    first byte has its own status, however long it takes to come.
    """
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        patch.setenv("PROXY_FIRST_BYTE_HOLD_SECONDS", "60")
        stack = running.enter_context(local_stack(long_models(), tmp_path_factory.mktemp("logs")))
        patch.undo()
        chat, embed = (endpoint.model.name for endpoint in stack.endpoints)
        with (
            openai.OpenAI(base_url=stack.base_url, api_key=stack.api_key, timeout=500) as sdk,
            # At once: most of its start vLLM is busy on one core.
            ThreadPoolExecutor(1) as pool,
        ):
            embedded = pool.submit(sdk.embeddings.create, model=embed, input="Hello!")
            asked: dict[str, Any] = {
                "model": chat,
                "messages": [{"role": "user", "content": "Hello!"}],
                "max_tokens": 1,
            }
            chunks = sdk.chat.completions.create(**asked, stream=True)
            assert list(chunks)
            assert embedded.result().data
        yield stack
