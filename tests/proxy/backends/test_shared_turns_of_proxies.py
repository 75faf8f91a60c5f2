"""Fair turns of two whole proxies with a real Redis, before a RunPod whose jobs end one by one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from proxy.backends.fair_turns import AHEAD
from tests.proxy.access.conftest import FRAME
from tests.proxy.conftest import KEY, chat
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.redis_server import RedisServer
from tests.servers import serve
from tests.waiting import until

pytestmark = pytest.mark.slow
OTHER_KEY = "sk-other"
CONCURRENCY = 4
WINDOW = CONCURRENCY + AHEAD
SHARE = 3
"""What each copy keeps to by itself."""
Asked = asyncio.Task[httpx.Response]


class OneByOne(ScriptedRunPod):
    """A RunPod with one worker, whose jobs end when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = {"idle": 1, "ready": 1}
        self.names: list[str] = []
        """The requests' ids of all jobs, in the order in which they came."""
        self.most = 0
        """How many jobs were live at a time."""
        self._name_of: dict[str, str] = {}
        self._ended: set[str] = set()

    def live(self, of: str = "") -> list[str]:
        """Those jobs, of requests whose ids begin so, that have not ended."""
        return [name for name in self.names if name not in self._ended and name.startswith(of)]

    def end_oldest(self, of: str = "") -> None:
        """The oldest of these jobs ends."""
        self._ended.add(self.live(of)[0])

    async def next_turn(self, of: str = "") -> str:
        """Whose turn comes when the oldest of these jobs ends."""
        before = len(self.names)
        self.end_oldest(of)
        await until(lambda: len(self.names) > before)
        return self.names[before]

    async def _run(self, request: Request) -> Response:
        name = json.loads(await request.body())["input"]["proxy"]["request_id"]
        self.names.append(name)
        self.most = max(self.most, len(self.live()))
        answer = await super()._run(request)
        self._name_of[self.job_id] = name  # nothing is awaited after it was made
        return answer

    async def _stream(self, request: Request) -> Response:
        name = self._name_of[request.path_params["job"]]
        for _ in range(int(request.query_params["wait"]) // 10):
            if name in self._ended:
                return JSONResponse({"status": "COMPLETED", "stream": [{"output": FRAME}]})
            await asyncio.sleep(0.01)
        return JSONResponse({"status": "IN_PROGRESS", "stream": []})

    async def _cancel(self, request: Request) -> Response:
        self._ended.add(self._name_of[request.path_params["job"]])
        return await super()._cancel(request)


class Clients:
    """Those of two copies of the proxy."""

    def __init__(self, runpod: OneByOne, one: Proxy, other: Proxy) -> None:
        self.runpod, self.one, self.other = runpod, one, other
        self._http = httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None))
        self._requests: list[Asked] = []

    def ask(self, copy: Proxy, key: str, name: str, times: int) -> list[Asked]:
        """So many requests."""
        requests = [
            asyncio.create_task(
                self._http.post(
                    f"{copy.url}/v1/chat/completions",
                    json=chat(),
                    headers={"authorization": f"Bearer {key}", "x-request-id": f"{name}{number}"},
                )
            )
            for number in range(times)
        ]
        self._requests += requests
        return requests

    async def wait_in_line(self, copy: Proxy, waiting: int) -> None:
        """So many requests of this copy do."""
        await until(lambda: value(copy.client, "proxy_turns_waiting", endpoint="ep") == waiting)

    async def close(self) -> None:
        """All leave."""
        await leave(self._requests)
        await self._http.aclose()


async def leave(requests: list[Asked]) -> None:
    """These clients do."""
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)


@asynccontextmanager
async def two_proxies(redis: RedisServer, folder: Path) -> AsyncIterator[Clients]:
    runpod = OneByOne()
    with ExitStack() as stack:
        url = stack.enter_context(serve(runpod.app))
        one, other = (
            stack.enter_context(
                closing(
                    Proxy(
                        url,
                        state_dir=folder / name,
                        redis_url=redis.url,
                        api_keys=f"{KEY},{OTHER_KEY}",
                        worker_concurrency=CONCURRENCY,
                        copies=2,
                        queue_timeout_seconds=600,
                    )
                )
            )
            for name in ("one", "other")
        )
        clients = Clients(runpod, one, other)
        try:
            yield clients
        finally:
            await clients.close()


async def test_a_flood_of_300_at_one_copy_does_not_double_what_another_key_waits_at_either(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Alone a request takes as long as a job, in which as many others end as the worker runs."""
    async with two_proxies(redis, tmp_path) as clients:
        runpod = clients.runpod
        clients.ask(clients.one, KEY, "flood", 300)
        await clients.wait_in_line(clients.one, 300 - WINDOW)
        for number, copy in enumerate((clients.other, clients.one, clients.other)):
            waiting = value(copy.client, "proxy_turns_waiting", endpoint="ep")
            (asked,) = clients.ask(copy, OTHER_KEY, f"other{number}-", 1)
            await clients.wait_in_line(copy, int(waiting) + 1)
            await until(lambda: sum(len(one["flows"]) for one in copies(redis)) == 2)
            ended = 0
            while not runpod.live("other"):
                await runpod.next_turn()
                ended += 1
            assert ended + AHEAD < CONCURRENCY
            while runpod.live("other"):
                await runpod.next_turn()
            assert (await asked).status_code == 200
        assert runpod.most == WINDOW


async def test_a_copy_that_is_killed_in_a_flood_gives_its_places_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with two_proxies(redis, tmp_path) as clients:
        clients.ask(clients.one, KEY, "flood", 50)
        await clients.wait_in_line(clients.one, 50 - WINDOW)
        clients.ask(clients.other, OTHER_KEY, "other", 20)
        await clients.wait_in_line(clients.other, 20)
        turns = [await clients.runpod.next_turn() for _ in range(4)]
        assert len([turn for turn in turns if turn.startswith("other")]) in (1, 2, 3)
        clients.one.process.kill()
        await until(lambda: len(clients.runpod.live("other")) == WINDOW)
        assert (await clients.runpod.next_turn(of="other")).startswith("other")
        assert len(clients.runpod.live("other")) == WINDOW


async def test_redis_is_killed_in_a_flood_and_comes_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with two_proxies(redis, tmp_path) as clients:
        runpod = clients.runpod
        clients.ask(clients.one, KEY, "one", 60)
        await clients.wait_in_line(clients.one, 60 - WINDOW)
        others = clients.ask(clients.other, OTHER_KEY, "other", 60)
        await clients.wait_in_line(clients.other, 60)
        redis.stop()
        await until(lambda: len(runpod.live("other")) == SHARE)
        for _ in range(WINDOW - SHARE):
            runpod.end_oldest("one")
        for _ in range(6):
            await runpod.next_turn()
        assert (len(runpod.live("one")), len(runpod.live("other"))) == (SHARE, SHARE)
        redis.start()
        await until(lambda: len(copies(redis)) == 2)
        while len(runpod.live()) > WINDOW:
            runpod.end_oldest()
        turns = [await runpod.next_turn() for _ in range(6)]
        assert {turn.rstrip("0123456789") for turn in turns} == {"one", "other"}
        assert len(runpod.live()) == WINDOW
        await leave(others)
        await until(lambda: len(runpod.live("one")) == WINDOW)
        assert runpod.most == WINDOW + SHARE


def copies(redis: RedisServer) -> list[dict[str, Any]]:
    """What Redis knows of copies that have places of the window, or want them."""
    with Redis.from_url(redis.url, decode_responses=True) as client:
        return [json.loads(one) for name in client.keys("*:turns:*}") for one in client.hvals(name)]
