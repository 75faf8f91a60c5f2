"""One WebSocket to one copy of the proxy, for all jobs that this copy sent.

A message is a JSON array of items, each an array that begins with its kind. What is ready in one
turn of the event loop leaves in one message. A kind that is not known is ignored, anything
malformed closes the connection: the queue takes over.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

import aiohttp
from aiohttp import web

from worker.direct.invitation import NONCE

log = logging.getLogger(__name__)

MESSAGE_BYTES: Final = 1024 * 1024
"""A message is closed when it is this long; what is ready beyond leaves in the next."""

READY_BYTES_A_JOB: Final = 4 * 1024 * 1024
"""So much may wait to be sent for each job, and once more: a proxy that reads has a window's worth
under way, and asks for it again now and then."""

LIVE_SILENCE_SECONDS: Final = 10.0
"""How long a proxy may say nothing while jobs of it run."""
IDLE_SILENCE_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 2.5

WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Malformed(Exception):
    """The proxy said something that is not of the wire."""


class Relayed(Protocol):
    """What a connection asks of a job."""

    def take(self, connection: "Connection", first: int) -> None:
        """Send this job's frames from number `first` on."""

    def got(self, received: int, consumed: int) -> None:
        """All frames below `received` are safe, those below `consumed` with the client."""

    def cancel(self) -> None:
        """End the job."""

    def lose(self, connection: "Connection") -> None:
        """The connection is lost."""


class Connection:
    """A channel that is open. `jobs` are the jobs of this proxy that run, by their nonces."""

    def __init__(self, socket: WebSocket, jobs: Mapping[str, Relayed]) -> None:
        self._socket = socket
        self._jobs = jobs
        self._ready: deque[str] = deque()
        self._ready_bytes = 0
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._heard_at = self._live_since = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Serve the channel until it is closed, lost, silent for too long, or malformed."""
        for nonce in self._jobs:
            self._send("have", nonce)
        ends = [
            asyncio.create_task(self._read()),
            asyncio.create_task(self._write()),
            asyncio.create_task(self._closing.wait()),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in [*self._jobs.values()]:
                job.lose(self)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    def close(self) -> None:
        """Make `run` end."""
        self._closing.set()

    def begin(self, job: Relayed) -> None:
        """A job begins, and is sent from the start."""
        self._live_since = asyncio.get_running_loop().time()
        job.take(self, 0)

    def send_frame(self, nonce: str, frame: str) -> None:
        """Send a frame that is JSON already."""
        self._put(f'["frame","{nonce}",{frame}]')

    def send_gone(self, nonce: str) -> None:
        """Say that the job of this nonce is not known, or not any more."""
        self._send("gone", nonce)

    def _send(self, kind: str, value: str | int) -> None:
        self._put(json.dumps([kind, value], separators=(",", ":")))

    def _put(self, item: str) -> None:
        self._ready.append(item)
        self._ready_bytes += len(item)
        self._wake.set()

    # Writing

    async def _write(self) -> None:
        with suppress(ConnectionError, aiohttp.ClientError):
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._ready:
                    await self._socket.send_str(self._next_message())

    def _next_message(self) -> str:
        items, size = [self._ready.popleft()], 0
        while self._ready and (size := size + len(items[-1])) < MESSAGE_BYTES:
            items.append(self._ready.popleft())
        self._ready_bytes -= sum(map(len, items))
        return f"[{','.join(items)}]"

    # Reading

    async def _read(self) -> None:
        while True:
            try:
                message = await self._socket.receive(timeout=CHECK_SECONDS)
            except TimeoutError:
                if self._is_silent:
                    log.warning("a direct channel has been silent for too long")
                    return
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            self._heard_at = asyncio.get_running_loop().time()
            try:
                self._take_in(message.data)
            except Malformed as fault:
                log.warning("a direct channel is closed: %s", fault)
                return

    @property
    def _is_silent(self) -> bool:
        now = asyncio.get_running_loop().time()
        if not self._jobs:
            return now - self._heard_at > IDLE_SILENCE_SECONDS
        return now - max(self._heard_at, self._live_since) > LIVE_SILENCE_SECONDS

    def _take_in(self, text: str) -> None:
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            raise Malformed("a message is no JSON") from None
        if not isinstance(items, list):
            raise Malformed("a message is no list")
        for item in items:
            self._take_in_item(item)
            if self._ready_bytes > READY_BYTES_A_JOB * (len(self._jobs) + 1):
                raise Malformed("more is asked for than is read")

    def _take_in_item(self, item: Any) -> None:
        if not isinstance(item, list) or not item or not isinstance(item[0], str):
            raise Malformed("an item has no kind")
        match item:
            case ["take", str(nonce), first] if _are_counts(first):
                if job := self._known(nonce):
                    job.take(self, first)
            case ["got", str(nonce), received, consumed] if _are_counts(received, consumed):
                if job := self._jobs.get(nonce):
                    job.got(received, consumed)
            case ["cancel", str(nonce)]:
                if job := self._known(nonce):
                    job.cancel()
            case ["ping", number] if _are_counts(number):
                self._send("pong", number)
            case ["take" | "got" | "cancel" | "ping", *_]:
                raise Malformed(f"an item of the kind {item[0]} makes no sense")

    def _known(self, nonce: str) -> Relayed | None:
        if not NONCE.fullmatch(nonce):
            raise Malformed("a nonce is none")
        if nonce not in self._jobs:
            self.send_gone(nonce)
        return self._jobs.get(nonce)


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
