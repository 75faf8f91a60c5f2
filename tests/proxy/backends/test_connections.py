"""Calls to RunPod over several pools: the fewest connections that do, and none of them crowded."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.backends.connections import MAX_CONNECTIONS, POOLS, pooled_client
from tests.servers import serve

clients: Counter[int] = Counter()
"""How many calls came over each connection, by the port of its other end."""


async def _call(request: Request) -> Response:
    assert request.client is not None
    clients[request.client.port] += 1
    await asyncio.sleep(float(request.query_params.get("hold", 0)))
    return Response("ok")


@pytest.fixture
def url() -> Iterator[str]:
    clients.clear()
    with serve(Starlette(routes=[Route("/", _call)])) as url:
        yield url


def connections() -> httpx.AsyncClient:
    return pooled_client(httpx.Timeout(30))


async def test_calls_one_after_another_share_a_connection(url: str) -> None:
    async with connections() as shared:
        for _ in range(2 * POOLS):
            assert (await shared.get(url)).text == "ok"
    assert list(clients.values()) == [2 * POOLS]


@pytest.mark.slow
async def test_calls_at_once_have_a_connection_each_and_leave_it_to_the_next(url: str) -> None:
    async with connections() as shared:
        for _ in range(3):
            calls = (shared.get(f"{url}?hold=0.5") for _ in range(4 * POOLS))
            await asyncio.gather(*calls)
    assert len(clients) == 4 * POOLS
    assert clients.total() == 12 * POOLS


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Where a call is taken and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_call_that_fails_or_is_cancelled_counts_no_longer(
    url: str, silent_url: str
) -> None:
    async with connections() as shared:
        await shared.get(url)
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                await shared.get("http://127.0.0.1:1")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await shared.get(silent_url)
        await shared.get(url)  # over the same connection, since its pool has no more calls
    assert list(clients.values()) == [2]


@pytest.mark.slow
async def test_answers_that_are_not_read_do_not_fill_one_pool(url: str) -> None:
    async with connections() as shared, AsyncExitStack() as answers:
        for _ in range(2 * MAX_CONNECTIONS // POOLS):
            await answers.enter_async_context(shared.stream("GET", url))
        assert (await shared.get(url)).text == "ok"
