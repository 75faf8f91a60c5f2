"""One connection to one worker: what both say on it, and how it is known to be alive.

Both send text messages, each a JSON array of items. The worker's: `["have", nonce]` for a job that
was running when the connection opened, `["frame", nonce, frame]`, `["gone", nonce]`, `["pong", n]`.
Ours: `["take", nonce, from]`, `["got", nonce, received, consumed]`, `["cancel", nonce]`,
`["ping", n]`. Items of other kinds are for a later protocol, and are passed over.
"""

import asyncio
import logging
from typing import Any, Final, Protocol

import msgspec

from proxy.backends.runpod.direct.inbox import Inbox, WindowIgnored
from proxy.backends.runpod.direct.inboxes import Inboxes

MAX_MESSAGE_BYTES: Final = 4 * 2**20
ACK_SECONDS: Final = 0.25
"""How long what came waits to be acknowledged, together with what comes meanwhile."""
BUSY_PING_SECONDS: Final = 1.0
IDLE_PING_SECONDS: Final = 15.0
SILENT_SECONDS: Final = 3.0
"""After so long without a message, with jobs under way, the queue is asked again."""
LOST_SECONDS: Final = 10.0
"""After so long the connection is given up. Without jobs it is as soon as it is silent."""
CLOSE_SECONDS: Final = 1.0
MAX_UNKNOWN: Final = 1_000
"""So many frames in a row for jobs that were never ours are an error of the worker's."""

log = logging.getLogger(__name__)


class Connection(Protocol):
    """A WebSocket to a worker, whoever has dialled."""

    async def receive(self) -> bytes | str | None:
        """The next text message; None if the connection has ended."""
        ...

    async def send(self, text: bytes) -> None:
        """Send a text message; raises OSError if the connection is broken."""
        ...

    async def close(self) -> None:
        """Close it, in order if that is possible."""
        ...


class BadMessage(Exception):
    """A worker has sent what is none of the channel's messages."""


class Channel:
    """A connection to a worker: `run` serves it until it ends."""

    def __init__(self, connection: Connection, inboxes: Inboxes, endpoint: str) -> None:
        self.endpoint = endpoint
        self.is_silent = False
        self._connection = connection
        self._all_inboxes = inboxes
        self._inboxes: dict[str, Inbox] = {}
        """The jobs whose frames come by this channel, by nonce."""
        self._outgoing: dict[tuple[str, str], list[Any]] = {}
        """What is to be sent, one item of a kind for each job."""
        self._has_outgoing = asyncio.Event()
        self._unacknowledged: set[Inbox] = set()
        self._ack_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        self._beat_due = 0.0
        self._heard = 0.0
        self._pinged = 0.0
        self._is_answered = True
        """Whether anything was heard since the last ping."""
        self._pings = 0
        self._unknown = 0
        self._ended: asyncio.Future[str] | None = None

    async def run(self) -> str:
        """Serve the connection until it ends, and say in a word why it did."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._heard = loop.time()
        self._beat_due = loop.time()
        self._beat()
        tasks = [asyncio.create_task(self._receive_all()), asyncio.create_task(self._send_all())]
        try:
            return await self._ended
        finally:
            for task in tasks:
                task.cancel()
            self._stop()
            await asyncio.wait(tasks)
            await self._close()

    def end(self, why: str) -> None:
        """Close the connection."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(why)

    def cancel(self, nonce: str) -> None:
        """Tell the worker to stop a job, if it has it."""
        self._send("cancel", nonce)

    def doubt(self) -> None:
        """A job runs of which nothing comes: find out soon whether this channel still works."""
        now = asyncio.get_running_loop().time()
        if self._inboxes or now - self._pinged < BUSY_PING_SECONDS:
            return
        if self._is_answered:
            self._heard = now  # nothing was asked since then, so that nothing is missing
        self._ping(now)
        self._ping_soon()

    def settle(self, inbox: Inbox) -> None:
        """Tell the worker at once that a job's answer is whole, and expect no more of it."""
        if self._inboxes.pop(inbox.nonce, None) is not None:
            self._unacknowledged.discard(inbox)
            self._send("got", inbox.nonce, inbox.received, inbox.received)

    def acknowledge(self, inbox: Inbox, *, at_once: bool) -> None:
        """Tell the worker soon, or at once, what has been received and consumed of a job."""
        self._unacknowledged.add(inbox)
        if at_once:
            self._send_acknowledgements()
        elif self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(ACK_SECONDS, self._send_acknowledgements)

    def drop(self, inbox: Inbox) -> None:
        """Another channel, or none, brings the frames of this job from now on."""
        self._inboxes.pop(inbox.nonce, None)
        self._unacknowledged.discard(inbox)

    # What comes.

    async def _receive_all(self) -> None:
        loop = asyncio.get_running_loop()
        why = "lost"
        try:
            while (message := await self._connection.receive()) is not None:
                self._heard = loop.time()
                self._is_answered = True
                self.is_silent = False
                self._read(message)
        except BadMessage:
            log.warning("a worker of endpoint %s sends what is no message", self.endpoint)
            why = "malformed"
        except WindowIgnored:
            log.warning("a worker of endpoint %s sends more than it may", self.endpoint)
            why = "malformed"
        except OSError:
            pass
        except Exception:  # one worker's messages must not end the others'
            log.exception("a channel broke")
        finally:
            self.end(why)

    def _read(self, message: bytes | str) -> None:
        try:
            items = msgspec.json.decode(message)
        except (ValueError, RecursionError):
            raise BadMessage from None
        if type(items) is not list:
            raise BadMessage
        for item in items:
            match item:
                case ["frame", str(nonce), dict(frame)]:
                    self._take(nonce, frame)
                case ["have", str(nonce)]:
                    self._answer_have(nonce)
                case ["gone", str(nonce)]:
                    self._let_go(nonce)
                case ["frame" | "have" | "gone", *_]:
                    raise BadMessage
                case [str(), *_]:  # a pong has been heard by now
                    pass
                case _:
                    raise BadMessage

    def _take(self, nonce: str, frame: dict[str, Any]) -> None:
        seq = frame.get("seq")
        if type(seq) is not int or seq < 0:
            raise BadMessage
        inbox = self._inboxes.get(nonce) or self._attached(nonce)
        if inbox is None:
            self._note_stray(nonce)
            return
        self._unknown = 0
        inbox.put(seq, frame)
        self.acknowledge(inbox, at_once="end" in frame)

    def _answer_have(self, nonce: str) -> None:
        inbox = self._attached(nonce)
        if inbox is not None:
            self._send("take", nonce, inbox.received)
        elif self._all_inboxes.was_left(nonce):
            self._send("cancel", nonce)

    def _let_go(self, nonce: str) -> None:
        """The worker has the job no more: how it ended is to be learnt by the queue."""
        if (inbox := self._inboxes.get(nonce)) is not None:
            self.drop(inbox)
            inbox.detach()

    def _attached(self, nonce: str) -> Inbox | None:
        inbox = self._all_inboxes.find(nonce)
        if inbox is not None:
            inbox.attach(self)
            self._inboxes[nonce] = inbox
            self._ping_soon()
        return inbox

    def _note_stray(self, nonce: str) -> None:
        """A frame of a job that is not followed."""
        if self._all_inboxes.was_left(nonce):
            self._send("cancel", nonce)
        if self._all_inboxes.is_past(nonce):
            return
        self._unknown += 1
        if self._unknown > MAX_UNKNOWN:
            raise BadMessage

    # What is sent.

    def _send_acknowledgements(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        for inbox in self._unacknowledged:
            inbox.note_told()
            self._send("got", inbox.nonce, inbox.received, inbox.consumed)
        self._unacknowledged.clear()

    def _send(self, kind: str, *values: Any) -> None:
        self._outgoing[kind, str(values[0])] = [kind, *values]
        self._has_outgoing.set()

    async def _send_all(self) -> None:
        """Whatever is ready in one turn of the loop leaves in one message."""
        try:
            while True:
                await self._has_outgoing.wait()
                self._has_outgoing.clear()
                items, self._outgoing = list(self._outgoing.values()), {}
                await self._connection.send(msgspec.json.encode(items))
        except OSError:
            self.end("lost")

    # Whether it is alive.

    def _beat(self) -> None:
        """Ping, and see whether anything was heard since; a clock that jumped proves nothing."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._beat_due > BUSY_PING_SECONDS:
            self._heard = now  # it was us who could not hear
            self._is_answered = True
        silence = now - self._heard
        is_answered = self._is_answered
        if not is_answered and silence >= (LOST_SECONDS if self._inboxes else SILENT_SECONDS):
            self.end("silent")
            return
        if silence >= SILENT_SECONDS and self._inboxes and not self.is_silent:
            self.is_silent = True
            for inbox in self._inboxes.values():
                inbox.note_silent()
        self._ping(now)
        # With the jobs gone it must not be left unknown for long: the next one would wait for it.
        is_busy = self._inboxes or not is_answered
        self._beat_due = now + (BUSY_PING_SECONDS if is_busy else IDLE_PING_SECONDS)
        self._beat_timer = loop.call_at(self._beat_due, self._beat)

    def _ping(self, now: float) -> None:
        self._pings += 1
        self._outgoing["ping", ""] = ["ping", self._pings]
        self._pinged = now
        self._is_answered = False
        self._has_outgoing.set()

    def _ping_soon(self) -> None:
        """Ping soon: there is a job now."""
        loop = asyncio.get_running_loop()
        soon = loop.time() + BUSY_PING_SECONDS
        if self._beat_timer is not None and self._beat_due > soon:
            self._beat_timer.cancel()
            self._beat_due = soon
            self._beat_timer = loop.call_at(soon, self._beat)

    # Its end.

    def _stop(self) -> None:
        for timer in (self._ack_timer, self._beat_timer):
            if timer is not None:
                timer.cancel()
        inboxes, self._inboxes = self._inboxes, {}
        for inbox in inboxes.values():
            inbox.detach()
        self._unacknowledged.clear()

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._connection.close()
        except (OSError, TimeoutError):
            pass
