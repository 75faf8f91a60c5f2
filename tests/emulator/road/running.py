"""A worker's port on a road of its own, and callers that dial its public port."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from emulator.road.road import Road
from emulator.settings import EndpointSettings, RoadSettings

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
DEADLINE_SECONDS = 60


class OnePort:
    """A road with one worker, `w1`, that exposes port 8899."""

    def __init__(self, road: Road, worker: asyncio.Server) -> None:
        self.road = road
        self._worker = worker
        self._callers: list[asyncio.StreamWriter] = []

    @property
    def number(self) -> int:
        """The public port."""
        return int(self.road.view()["workers"]["w1"]["8899/tcp"]["public_port"])

    async def dial(self, *, limit: int = 2**16) -> Streams:
        """Connect as a caller does."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number, limit=limit)
        self._callers.append(writer)
        return reader, writer

    async def stop_worker(self) -> None:
        """Have the worker listen no more."""
        self._worker.close()

    def change(self, **road: Any) -> None:
        """Have the road be like this from now on."""
        self.road.follow(RoadSettings.model_validate(road))

    def connections(self) -> int:
        """How many connections there are."""
        return int(self.road.view()["workers"]["w1"]["8899/tcp"]["connections"])

    async def close(self) -> None:
        """Hang up."""
        for writer in self._callers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def one_port(serve: Serve, **road: Any) -> AsyncIterator[OnePort]:
    """A worker that serves its connections like this, behind a road with these settings."""
    endpoint = EndpointSettings.model_validate({"id": "ep", "ports": ["8899/tcp"], "road": road})
    way = Road(endpoint)
    environment = way.open("w1")
    worker = await asyncio.start_server(serve, environment["WORKER_DIRECT_LISTEN_HOST"], 8899)
    port = OnePort(way, worker)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield port
    finally:
        await port.close()
        way.close("w1")
        way.cut()
        worker.close()
        await until(lambda: not way.connections)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, until nothing more comes."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def until(claim: Callable[[], bool]) -> None:
    """Return once the claim is true."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not claim():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.005)
