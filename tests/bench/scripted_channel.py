"""A worker's end of the direct channel that costs next to nothing, for a scripted queue's jobs.

It follows the same rules as a worker's: a job that begins while the connection is there is sent by
it from its first frame on, one that was there before when the proxy takes it; what is ready
together leaves in one message. If the connection is lost, the queue has what is not acknowledged.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
from aiohttp import WSMsgType, web

from tests.proxy.scripted_worker import server_context

MAX_MESSAGE_BYTES: Final = 4 * 2**20


class ChannelJob(Protocol):
    """A job whose frames may be sent by a channel."""

    frames: list[dict[str, Any]]
    """All that it has made."""

    def acknowledge(self, received: int) -> None:
        """The proxy has all frames below this number."""
        ...

    def fall_back(self) -> None:
        """Its frames go to the queue again."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more."""
        ...


class ScriptedChannel:
    """The door and its one connection, `network_seconds` (a round trip) from the proxy."""

    def __init__(self, port: int, network_seconds: float) -> None:
        self._port = port
        self._one_way_seconds = network_seconds / 2
        self._context, certificate = server_context()
        self._digest = hashlib.sha256(certificate).hexdigest()
        self._jobs: dict[str, ChannelJob] = {}
        self._attached: set[str] = set()
        self._socket: web.WebSocketResponse | None = None
        self._outgoing: list[bytes] = []
        self._has_outgoing = asyncio.Event()

    @property
    def offer(self) -> dict[str, Any]:
        """What the head frame tells of the door."""
        return {
            "protocol": 1,
            "host": "127.0.0.1",
            "port": self._port,
            "certificate": self._digest,
        }

    def start(self) -> asyncio.Task[None]:
        """Open the door."""
        return asyncio.get_running_loop().create_task(self._listen())

    def begin(self, nonce: str, certificate: bytes, job: ChannelJob) -> None:
        """A job that names this proxy's certificate has been taken."""
        self._context.load_verify_locations(cadata=certificate)
        self._jobs[nonce] = job
        if self._socket is not None:
            self._attached.add(nonce)

    def end(self, nonce: str) -> None:
        """The job is over."""
        self._jobs.pop(nonce, None)
        self._attached.discard(nonce)

    def send(self, nonce: str, frame: dict[str, Any]) -> bool:
        """Send a frame; False if the job's frames go to the queue."""
        if nonce not in self._attached:
            return False
        self._put(["frame", nonce, frame])
        return True

    def _put(self, item: Sequence[Any]) -> None:
        self._outgoing.append(msgspec.json.encode(item))
        self._has_outgoing.set()

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_get("/channel", self._serve)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port, ssl_context=self._context).start()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE_BYTES)
        await socket.prepare(request)
        self._socket = socket
        self._outgoing.clear()
        sending = asyncio.create_task(self._send_all(socket))
        for nonce in self._jobs:
            self._put(["have", nonce])
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._after_network(msgspec.json.decode(message.data))
        finally:
            sending.cancel()
            if self._socket is socket:
                self._lose()
        return socket

    async def _send_all(self, socket: web.WebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_outgoing.wait()
            self._has_outgoing.clear()
            text = b"[" + b",".join(self._outgoing) + b"]"
            self._outgoing.clear()
            if self._one_way_seconds:
                loop.call_later(self._one_way_seconds, self._write, socket, text)
            else:
                await socket.send_frame(text, WSMsgType.TEXT)

    def _write(self, socket: web.WebSocketResponse, text: bytes) -> None:
        """Send a message that has been under way for its time."""
        writing = asyncio.ensure_future(socket.send_frame(text, WSMsgType.TEXT))
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _after_network(self, items: list[list[Any]]) -> None:
        asyncio.get_running_loop().call_later(self._one_way_seconds, self._take_all, items)

    def _take_all(self, items: list[list[Any]]) -> None:
        for item in items:
            self._take(item)

    def _take(self, item: list[Any]) -> None:
        match item:
            case ["ping", number]:
                self._put(["pong", number])
            case ["take", str(nonce), int(first)] if nonce in self._jobs:
                self._attached.add(nonce)
                for frame in self._jobs[nonce].frames[first:]:
                    self._put(["frame", nonce, frame])
            case ["got", str(nonce), int(received), _] if nonce in self._jobs:
                self._jobs[nonce].acknowledge(received)
            case ["cancel", str(nonce)] if nonce in self._jobs:
                self._jobs[nonce].cancel()
            case ["take" | "cancel", str(nonce), *_]:
                self._put(["gone", nonce])

    def _lose(self) -> None:
        self._socket = None
        attached, self._attached = self._attached, set()
        for nonce in attached:
            self._jobs[nonce].fall_back()
