"""A worker's handler with its direct road, in front of the scripted engine, and its queue."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from scripts.scripted_engine import Engine, create_engine
from tests.servers import free_port, serve
from tests.worker.direct.scripted_proxy import SECONDS, ScriptedProxy
from worker.answer import VLLMClient
from worker.direct.road import DirectRoad
from worker.handler import Handler, create_handler

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="session")
def app() -> Starlette:
    return create_engine()


@pytest.fixture(scope="session")
def url(app: Starlette) -> Iterator[str]:
    with serve(app) as base:
        yield base


class Posted:
    """What the queue was handed of one job, each output after the post of the one before."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.ended = False

    @property
    def frames(self) -> list[dict[str, Any]]:
        """Its frames, out of the lists too."""
        flat = [one for out in self.outputs for one in (out if isinstance(out, list) else [out])]
        return [one for one in flat if "seq" in one]

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary, if the job ended with one."""
        last = self.outputs[-1] if self.outputs else {}
        return last.get("summary") if isinstance(last, dict) else None


class Worker:
    """One worker: jobs are run as the SDK runs them, in a task each."""

    def __init__(self, engine: Engine, url: str, road: DirectRoad, port: int) -> None:
        self.engine = engine
        self.port = port
        self.client = VLLMClient(url, request_timeout_seconds=60)
        self.road = road
        self.handler: Handler = create_handler(self.client, [{"id": "tiny-chat"}], road)
        self.post_seconds = 0.0
        self.tasks: list[asyncio.Task[None]] = []

    def run(self, channel: Any, **body: Any) -> Posted:
        """Begin a chat with this channel; `script` and others are of its body."""
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, **body}
        proxy = {"protocol": 1, "request_id": "req_1", "channel": channel}
        job_input = {"openai_route": CHAT, "openai_input": body, "proxy": proxy}
        posted = Posted()
        self.tasks.append(asyncio.create_task(self._sdk(posted, {"id": "j", "input": job_input})))
        return posted

    async def end_of(self, posted: Posted) -> Posted:
        """Wait for the end of a job."""
        await eventually(lambda: posted.ended)
        return posted

    async def _sdk(self, posted: Posted, job: dict[str, Any]) -> None:
        async for output in self.handler(job):
            posted.outputs.append(json.loads(json.dumps(output)))
            await asyncio.sleep(self.post_seconds)
        posted.ended = True

    async def close(self) -> None:
        """End all jobs and channels."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.road.close()
        await self.client.close()


async def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 -- the engine runs in another thread
            await asyncio.sleep(0.01)


@pytest.fixture
async def worker(app: Starlette, url: str) -> AsyncIterator[Worker]:
    """A worker that RunPod gave a public port, which is mapped to itself."""
    port = free_port()
    environment = {"RUNPOD_PUBLIC_IP": "127.0.0.1", f"RUNPOD_TCP_PORT_{port}": str(port)}
    road = DirectRoad(environment, listen_host="127.0.0.1")
    worker = Worker(app.state.engine, url, road, port)
    yield worker
    await worker.close()


@pytest.fixture
def proxy(tmp_path: Path) -> ScriptedProxy:
    return ScriptedProxy(tmp_path)
