"""One answer, read by several requests: what came of it is kept for whoever joins.

It is pulled on by its readers. After the last one it is held where a repetition is to be expected,
and closed if none comes.
"""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator
from typing import Protocol

from proxy.api.answer import Answer, WrappedAnswer
from proxy.api.retries import RETRY_MARGIN_SECONDS, Sender
from proxy.errors import MemoryLimitReached, Stopping
from proxy.memory import Memory

HOLD_SECONDS = 10.0
"""How long an answer that was left waits for its `Idempotency-Key` to come again."""
KEPT_SECONDS = 60.0
"""How long a finished answer is kept for its `Idempotency-Key`."""
MAX_KEPT_BYTES = 16 * 2**20
"""What is kept of one answer. One that is larger can be joined no more."""
MAX_TOTAL_BYTES = 256 * 2**20
TIMER_SLACK_SECONDS = 0.02
"""How much later than asked for a timer is to come, which must not come too early."""

Place = tuple[str, str | bytes]
"""The API key's name, and an Idempotency-Key, or the fingerprint of a request without one."""


class Claim(Protocol):
    """What lets other copies of the proxy have an answer of this one."""

    def release(self) -> None:
        """No request can join it any more."""


class Keeper(Protocol):
    """Where answers that may be joined are found."""

    memory: Memory
    kept_bytes: int
    """What is kept of all of them."""

    def forget(self, shared: "SharedAnswer") -> None:
        """This one can be joined no more."""

    def note_left(self, shared: "SharedAnswer") -> None:
        """The clients of this one have left or timed out; a retry may come for it."""


class SharedAnswer:
    """One answer, and what came of it so far, for all who read it.

    It is pulled on by its readers and has no life of its own. A piece is pulled in a task, since
    the one who asked for it may leave, and a poll must not be abandoned half-way.
    """

    def __init__(
        self, keeper: Keeper, place: Place, answer: Answer, fingerprint: bytes, *, is_kept: bool
    ) -> None:
        self.place = place
        self.fingerprint = fingerprint
        self.readers: set[SharedReader] = set()
        self.first: bytes | None = None
        """What `open` gave; None before."""
        self.has_ended = False
        self.claim: Claim | None = None
        """How other copies may get it."""
        self.error: Exception | None = None
        self._keeper = keeper
        self.answer = answer
        self.is_kept = is_kept
        """For an `Idempotency-Key`."""
        self.is_joinable = True
        self._source: AsyncIterator[bytes] | None = None
        self._pieces: list[bytes] = []
        self._dropped = 0
        """How many pieces from before `_pieces` are not kept any more."""
        self._kept_bytes = 0
        self._reservation = keeper.memory.reserve()
        self._times_left = 0
        self._room = asyncio.Event()
        self._pulling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_left(self) -> bool:
        """All clients that read it have passed their timeout, or there is none."""
        return all(reader.sender.is_overdue for reader in self.readers)

    def reader(self, sender: Sender) -> "SharedReader":
        """A reader from the beginning, for this sender."""
        if self._timer is not None and not self.has_ended:
            self._timer.cancel()
            self._timer = None
        reader = SharedReader(self, sender)
        self.readers.add(reader)
        return reader

    def leave(self, reader: "SharedReader") -> None:
        """This reader wants no more. After the last one the answer is held, or closed."""
        self.readers.discard(reader)
        self.trim()  # without this reader, which may have been the slowest
        if self.readers or self._timer is not None:
            return
        holds = self.is_kept or (reader.sender.may_come_back and not reader.is_done)
        if holds and self.is_joinable:
            seconds = reader.sender.pause_seconds(self._times_left) + RETRY_MARGIN_SECONDS
            self._close_after(HOLD_SECONDS if self.is_kept else seconds)
            self._keeper.note_left(self)
        else:
            self.close()
        self._times_left += 1  # after its use: it counts the times before this one

    def note_overdue(self) -> None:
        """A client's timeout has passed."""
        if self.is_left and self.is_joinable:
            self._keeper.note_left(self)

    def withdraw(self) -> None:
        """Let no other copy join it from now on."""
        if self.claim is not None:
            self.claim.release()
            self.claim = None

    def piece(self, position: int) -> bytes | None:
        """The piece at this position, if it has come."""
        index = position - self._dropped
        return self._pieces[index] if index < len(self._pieces) else None

    def trim(self) -> None:
        """Drop what all readers have read, where no request can join any more."""
        if self.is_joinable:
            return
        positions = [reader.position for reader in self.readers]
        count = min(positions, default=self._dropped + len(self._pieces)) - self._dropped
        if count > 0:
            self._count(-sum(map(sys.getsizeof, self._pieces[:count])))
            del self._pieces[:count]
            self._dropped += count
            self._room.set()

    async def more(self) -> None:
        """Wait for one pull: a piece, nothing for a while, the end, or an error."""
        # Pieces that are not kept for the sake of joining are kept for a slower reader.
        if not self.is_joinable and self._pieces and self._kept_bytes > MAX_KEPT_BYTES:
            await self._slowest_reader()
            return
        if self._pulling is None or self._pulling.done():
            self._pulling = asyncio.create_task(self._pull())
        await asyncio.wait({self._pulling})

    def close(self) -> None:
        """Stop what still works on the answer: no client will read on."""
        self._forget()
        if self._timer is not None:
            self._timer.cancel()
        if self._pulling is not None and self._pulling is not asyncio.current_task():
            self._pulling.cancel()
        if not self.has_ended and self.error is None:
            self.error = Stopping("The proxy is shutting down. Please send the request again.")
        self.answer.close()

    def give_up(self) -> None:
        """Let no more requests join; for those that read it the answer goes on."""
        self._forget()
        if not self.readers:
            self.close()

    async def settled(self) -> None:
        """Wait until nothing works on it any more, once it is closed."""
        if self._pulling is not None:
            await asyncio.wait({self._pulling})

    async def _pull(self) -> None:
        try:
            if self._source is None:
                self.first = piece = await self.answer.open()
                self._source = self.answer.pieces()
                self._count(sys.getsizeof(piece))
                self._check_size()
                return
            following = await anext(self._source, None)
        except Exception as exc:  # noqa: BLE001 - each reader raises it
            self.error = exc
            self.close()
            return
        if following:
            self._pieces.append(following)
            self._count(sys.getsizeof(following))
            self._check_size()
        elif following is None:
            self._end()

    def _end(self) -> None:
        self.has_ended = True
        assert self.answer.head is not None
        if self.answer.head.status >= 400:
            self._forget()  # asking again may well help
        elif self.is_kept and self.is_joinable:
            self._close_after(KEPT_SECONDS)

    def _close_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.close)

    def _check_size(self) -> None:
        is_large = self._kept_bytes > MAX_KEPT_BYTES
        if is_large or self._keeper.kept_bytes > MAX_TOTAL_BYTES:
            self.give_up()

    async def _slowest_reader(self) -> None:
        """Wait until the one that is furthest behind has read on; not for so long."""
        self._room.clear()
        try:
            await asyncio.wait_for(self._room.wait(), 1)
        except TimeoutError:
            return

    def _forget(self) -> None:
        if self.is_joinable:
            self.is_joinable = False
            self._keeper.kept_bytes -= self._kept_bytes
            self._keeper.forget(self)
            self.trim()

    def _count(self, size: int) -> None:
        self._kept_bytes += size
        if self.is_joinable:
            self._keeper.kept_bytes += size
        if size <= 0:
            self._reservation.shrink(min(-size, self._reservation.size))
            return
        try:
            self._reservation.grow(size)
        except MemoryLimitReached:  # it is here already, for those who read it
            self.give_up()


class SharedReader(WrappedAnswer):
    """A shared answer, as one request reads it."""

    def __init__(self, shared: SharedAnswer, sender: Sender) -> None:
        self.position = 0
        self.sender = sender
        self.is_done = False
        """It has read all of it."""
        self.inner = shared.answer
        self._shared = shared
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def tell_when_overdue(self) -> None:
        """Let it count as left when the client's own timeout has passed, if that is known.

        Not so for LangChain.js, whose retries look like other clients' requests.
        """
        seconds = self.sender.timeout_at - time.monotonic()
        if seconds < math.inf and not self.sender.is_langchain:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds + TIMER_SLACK_SECONDS, self._shared.note_overdue)

    async def open(self) -> bytes:
        """Wait until the shared answer is opened."""
        while self._shared.first is None:
            if self._shared.error is not None:
                raise self._shared.error
            await self._shared.more()
        return self._shared.first

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its pieces, those that came before this reader as well."""
        shared = self._shared
        while True:
            if (piece := shared.piece(self.position)) is not None:
                self.position += 1
                shared.trim()
                yield piece
            elif shared.error is not None:
                raise shared.error
            elif shared.has_ended:
                self.is_done = True
                self.close()
                return
            else:
                await shared.more()
                if shared.piece(self.position) is None and not shared.has_ended:
                    yield b""

    def close(self) -> None:
        """Leave it: it goes on for its other readers, or is held for a repetition."""
        if not self._is_closed:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._shared.leave(self)
