"""Messages of the channel, as `tests/wire/channel/` has them: what the worker makes of them."""

import asyncio
import json
from typing import Any

from aiohttp import WSMessage, WSMsgType

from tests.wire.record import FOLDER
from worker.direct.connection import Connection
from worker.direct.invitation import read_invitation

WIRE: dict[str, Any] = json.loads((FOLDER / "channel" / "messages.json").read_text())
NONCE = WIRE["input"]["nonce"]


class Socket:
    """A WebSocket in memory on which one message comes, and then nothing."""

    def __init__(self, text: str) -> None:
        self.sent: list[Any] = []
        self._incoming = [text]

    async def receive(self, timeout: float) -> WSMessage:  # noqa: ASYNC109 - aiohttp's
        if self._incoming:
            return WSMessage(WSMsgType.TEXT, self._incoming.pop(), None)
        await asyncio.sleep(timeout)
        raise TimeoutError

    async def send_str(self, text: str) -> None:
        self.sent += json.loads(text)


class Job:
    """A job that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def take(self, connection: Connection, first: int) -> None:
        self.asked.append(["take", NONCE, first])

    def got(self, received: int, consumed: int) -> None:
        self.asked.append(["got", NONCE, received, consumed])

    def cancel(self) -> None:
        self.asked.append(["cancel", NONCE])

    def lose(self, connection: Connection) -> None:
        pass


def test_an_invitation_is_read_as_it_was_recorded() -> None:
    invitation = read_invitation(WIRE["input"])
    assert invitation is not None
    assert (invitation.nonce, invitation.port) == (NONCE, 8899)
    assert str(invitation.url) == WIRE["input"]["url"]
    assert invitation.token == WIRE["input"]["token"]


async def test_what_a_proxy_says_is_done_as_it_was_recorded() -> None:
    job, socket = Job(), Socket(json.dumps(WIRE["proxy"]))
    connection = Connection(socket, {NONCE: job})  # type: ignore[arg-type]  # of what it uses
    running = asyncio.create_task(connection.run())
    for _ in range(20):
        await asyncio.sleep(0)
    frame = WIRE["worker"][1][2]
    connection.send_frame(NONCE, json.dumps(frame))
    for _ in range(20):
        await asyncio.sleep(0)
    connection.close()
    await running
    assert job.asked == WIRE["proxy"][:2]
    said = [WIRE["worker"][number] for number in (0, 1, 3, 4)]
    assert sorted(socket.sent, key=str) == sorted(said, key=str)
