"""A Redis for copies of the proxy, and the loops of tests that depend on a transport of one."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import pytest
import uvloop

from tests.redis_server import RedisServer, redis_server

LoopFactories = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(item: pytest.Item) -> LoopFactories:
    """Both, for connections: Python's, and the one that the proxy runs on."""
    if item.path.name in ("test_transport.py", "test_socks.py"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(lasting_redis: RedisServer) -> RedisServer:
    """A Redis that is up and holds nothing."""
    lasting_redis.stop()
    lasting_redis.start()
    return lasting_redis
