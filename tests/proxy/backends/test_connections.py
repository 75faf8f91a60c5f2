"""Calls to RunPod over connections that they share."""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.backends.connections import Client
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
    return Client(httpx.Timeout(30))


async def test_calls_one_after_another_share_a_connection(url: str) -> None:
    async with connections() as shared:
        for _ in range(50):
            assert (await shared.get(url)).text == "ok"
    assert list(clients.values()) == [50]


@pytest.mark.slow
async def test_calls_at_once_have_a_connection_each_and_leave_it_to_the_next(url: str) -> None:
    async with connections() as shared:
        for _ in range(3):
            await asyncio.gather(*(shared.get(f"{url}?hold=0.5") for _ in range(100)))
    assert len(clients) == 100
    assert clients.total() == 300


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Where a call is taken and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
