"""The scripted worker's channel: a real proxy takes it, and the queue has what it loses."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from proxy.backends.runpod.direct.doors import DialledConnection, WorkerDoors
from proxy.backends.runpod.direct.identity import new_identity
from proxy.backends.runpod.direct.offer import offered
from scripts.processes import free_port
from tests.bench.ground import bare_ground
from tests.bench.http_server import Connection
from tests.bench.load import Load
from tests.bench.scripted_channel import ScriptedChannel
from tests.bench.scripted_queue import ScriptedQueue
from tests.bench.stacks import queue

pytestmark = pytest.mark.slow
NONCE = "00" * 16


async def items(connection: Any) -> list[list[Any]]:
    """The items of the next message."""
    decoded: list[list[Any]] = msgspec.json.decode(await connection.receive())
    return decoded


async def test_the_queue_has_what_a_channel_that_is_lost_had_not_delivered() -> None:
    identity = new_identity()
    channel = ScriptedChannel(free_port(), 0)
    runpod = ScriptedQueue(network_seconds=0, worker_seconds=0, has_limits=True, channel=channel)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(runpod), "127.0.0.1", 0)
    tasks = [runpod.metronome.start(), channel.start()]
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2/ep"
    asked = {"nonce": NONCE, "certificate": identity.certificate}
    body = {"model": "m", "stream": True, "max_tokens": 6}
    given = {"openai_input": body, "proxy": {"protocol": 1, "channel": asked}}
    async with server, httpx.AsyncClient(base_url=url) as client:
        job = (await client.post("/run", json={"input": given})).json()["id"]
        page = (await client.get(f"/stream/{job}?wait=5000")).json()
        head = page["stream"][0]["output"]
        connection = await WorkerDoors(identity.context).connect(offered(head["channel"]))
        assert isinstance(connection, DialledConnection)
        assert await items(connection) == [["have", NONCE]]
        await connection.send(msgspec.json.encode([["take", NONCE, 1]]))
        [kind, nonce, frame] = (await items(connection))[0]
        assert (kind, nonce, frame["seq"]) == ("frame", NONCE, 1)
        await connection.send(msgspec.json.encode([["got", NONCE, 2, 2], ["ping", 7]]))
        while ["pong", 7] not in await items(connection):
            pass
        await connection.close()
        outputs: list[Any] = []
        while page["status"] != "COMPLETED":
            page = (await client.get(f"/stream/{job}?wait=5000")).json()
            outputs += [item["output"]["seq"] for item in page["stream"]]
    assert outputs == [2, 3, 4, 5]
    for task in tasks:
        task.cancel()


def test_a_proxy_takes_tokens_by_it_and_polls_no_more() -> None:
    with bare_ground() as ground, queue(has_channel=True)(ground) as opened:
        load = Load(
            url=opened.url,
            key=opened.key,
            model=opened.model,
            kind="streams",
            streams=3,
            starts=1,
            window_seconds=1.0,
        )
        seen = ground.see(load)
        polls = opened.calls()["stream"]["admitted"]
    assert (seen.lost, seen.repeated, seen.failed) == (0, 0, {})
    assert seen.tokens >= 60
    assert polls < seen.tokens / 4
