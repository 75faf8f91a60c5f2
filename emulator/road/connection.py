"""Connection: a caller of a public port, the worker behind it, and the bytes between them.

Sockets call the two ends, and the ends call the lanes: no task carries anything.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, cast

from emulator.road.conditions import Conditions, Direction

MAX_LATE_BYTES: Final = 1024 * 1024
"""While more than this is on its way in a lane, no more is read."""
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER for no time: what a close sends is a reset."""


class Mark(Enum):
    """What travels in a lane beside bytes."""

    END = "end"
    """Nothing more comes from this side."""
    RESET = "reset"


class End(asyncio.Protocol):
    """One end of a connection: the caller's socket, or the worker's."""

    outward: "Lane"
    """Takes what is received here to the other end."""
    inward: "Lane"

    def __init__(self, when_lost: Callable[[], None]) -> None:
        self.is_open = False
        self.is_full = False
        """True while the other side of this socket reads too slowly."""
        self._when_lost = when_lost
        self._transport: asyncio.Transport
        self._is_held = False
        self._has_heard_end = False
        self._has_said_end = False

    # What the socket tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what came for this end meanwhile."""
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True
        self.inward.deliver()

    def data_received(self, data: bytes) -> None:
        """Pass bytes on."""
        self.outward.carry(data)

    def eof_received(self) -> bool:
        """Pass on that nothing more comes; the other direction stays open."""
        self._has_heard_end = True
        self.outward.carry(Mark.END)
        self._close_when_over()
        return True

    def pause_writing(self) -> None:
        """Have the other end wait."""
        self.is_full = True
        self.inward.regulate()

    def resume_writing(self) -> None:
        """Let the other end go on."""
        self.is_full = False
        self.inward.regulate()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass a reset on."""
        self.is_open = False
        if exc is not None:
            self.outward.carry(Mark.RESET)
        self._when_lost()

    # What the lanes ask for

    def send(self, piece: bytes | Mark) -> None:
        """Write bytes or their end, or reset the socket; nothing if it has gone."""
        if not self.is_open or self._transport.is_closing():
            return
        if isinstance(piece, bytes):
            self._transport.write(piece)
        elif piece is Mark.RESET:
            self.reset()
        else:
            self._has_said_end = True
            self._transport.write_eof()
            self._close_when_over()

    def hold(self, is_held: bool) -> None:
        """Read no more for now, or read on."""
        if is_held == self._is_held or not self.is_open or self._transport.is_closing():
            return
        self._is_held = is_held
        if is_held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def reset(self) -> None:
        """Close with a reset, without what is still to be written."""
        if self.is_open:
            own_socket = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it may be gone already
                own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._transport.abort()

    def _close_when_over(self) -> None:
        if self._has_heard_end and self._has_said_end:
            self._transport.close()


class Lane:
    """The way from one end to the other. Bytes keep their order, however late they are."""

    def __init__(
        self,
        conditions: Conditions,
        direction: Direction,
        source: End,
        sink: End,
        note_bytes: Callable[[int], None],
    ) -> None:
        self._conditions = conditions
        self._direction = direction
        self._note_bytes = note_bytes
        self._is_dead = False
        """True once anything was lost: TCP would not deliver what follows either."""
        self._source = source
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._late: deque[tuple[float, bytes | Mark]] = deque()
        """What is on its way, and from when on it may arrive, by the loop's clock."""
        self._late_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        source.outward = sink.inward = self

    def carry(self, piece: bytes | Mark) -> None:
        """Hand this over when its time has come, unless it gets lost."""
        self._is_dead = self._is_dead or self._conditions.drops(self._direction)
        if not self._is_dead:
            self._note_bytes(_size(piece))
        if self._is_dead:
            return
        now = self._loop.time()
        due = now + self._conditions.one_way_seconds()
        if not self._late and due <= now and self._sink.is_open:
            self._sink.send(piece)
            return
        self._late.append((due, piece))
        self._late_bytes += _size(piece)
        self.regulate()
        if self._timer is None:
            self._timer = self._loop.call_at(self._late[0][0], self.deliver)

    def deliver(self) -> None:
        """Hand over what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._late and self._sink.is_open and self._late[0][0] <= self._loop.time():
            _, piece = self._late.popleft()
            self._late_bytes -= _size(piece)
            self._sink.send(piece)
        if self._late and self._sink.is_open:
            self._timer = self._loop.call_at(self._late[0][0], self.deliver)
        self.regulate()

    def regulate(self) -> None:
        """Have the source wait while its bytes cannot leave."""
        self._source.hold(self._sink.is_full or self._late_bytes > MAX_LATE_BYTES)

    def clear(self) -> None:
        """Lose what is on its way, and all that follows."""
        self._is_dead = True
        if self._timer is not None:
            self._timer.cancel()
        self._late.clear()


class Connection:
    """Both ends and both lanes, from the caller's dial to the last of the two sockets."""

    def __init__(self, conditions: Conditions, when_over: Callable[["Connection"], None]) -> None:
        self._when_over = when_over
        self._caller = End(self._look)
        self._worker = End(self._look)
        self._lanes = (
            Lane(conditions, "to_worker", self._caller, self._worker, self._note_bytes),
            Lane(conditions, "from_worker", self._worker, self._caller, self._note_bytes),
        )
        self._conditions = conditions
        self._bytes = 0
        self._opening: asyncio.Task[None] | None = None
        self._is_opening = True
        self._is_cut = False
        self._cut_timer: asyncio.TimerHandle | None = None

    def open(self, caller: socket.socket, host: str, port: int) -> None:
        """Reach the worker for the caller, who is reset if there is nothing to be reached."""
        self._opening = asyncio.create_task(self._open(caller, host, port))
        self.heed()

    def heed(self) -> None:
        """Live for as long as the conditions say."""
        self._stop_timer()
        if (seconds := self._conditions.seconds_to_cut()) is not None:
            self._cut_timer = asyncio.get_running_loop().call_later(seconds, self.cut)

    def cut(self) -> None:
        """Reset both sockets now, or as soon as they are there."""
        self._is_cut = True
        self._clear()
        self._caller.reset()
        self._worker.reset()

    async def _open(self, caller: socket.socket, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self._worker, host, port)
            await loop.connect_accepted_socket(lambda: self._caller, caller)
        except OSError:
            self._is_cut = True
            with contextlib.suppress(OSError):  # it may be gone already
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            caller.close()
        self._is_opening = False
        if self._is_cut:
            self.cut()
        self._look()

    def _look(self) -> None:
        """Report the end once neither socket is left."""
        if not (self._is_opening or self._caller.is_open or self._worker.is_open):
            self._clear()
            self._when_over(self)

    def _note_bytes(self, count: int) -> None:
        self._bytes += count
        if 0 < self._conditions.now.cut_after_bytes < self._bytes:
            self.cut()

    def _clear(self) -> None:
        self._stop_timer()
        for lane in self._lanes:
            lane.clear()

    def _stop_timer(self) -> None:
        if self._cut_timer is not None:
            self._cut_timer.cancel()
            self._cut_timer = None


def _size(piece: bytes | Mark) -> int:
    return len(piece) if isinstance(piece, bytes) else 0
