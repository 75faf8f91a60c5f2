"""One job's frames as they come by a channel, until the job's answer takes them."""

from typing import Any, Final, Protocol

from proxy.backends.auto_reset_event import AutoResetEvent
from proxy.backends.runpod.wire import frame_bytes
from proxy.errors import MemoryLimitReached
from proxy.memory import Reservation

WINDOW_BYTES: Final = 512 * 2**10
"""So much of a job's frames a worker sends before it hears that some were handed on."""
MAX_WAITING_BYTES: Final = WINDOW_BYTES + 4 * 2**20
"""A worker that sends more without hearing it ignores the window: one frame always may go."""
MIN_JSON_BYTES: Final = 20
"""The least that a frame takes on the wire beside its text: the window is in bytes of JSON."""


class WindowIgnored(Exception):
    """A worker sends on and on, though nothing of it is handed on."""


class Carrier(Protocol):
    """What brings a job's frames: a channel."""

    is_silent: bool

    def acknowledge(self, inbox: "Inbox", *, at_once: bool) -> None:
        """Tell the worker soon, or at once, what has been received and consumed."""
        ...

    def drop(self, inbox: "Inbox") -> None:
        """Another brings its frames."""
        ...


class Inbox:
    """The frames of one job that came by a channel.

    Two numbers are told to the worker. All frames below `received` are safe here, by whichever
    road they came: the worker forgets them. All below `consumed` have been handed on to the
    client, which makes room in the window.
    """

    __slots__ = (
        "_frames",
        "_has_flowed",
        "_highest",
        "_reservation",
        "_run",
        "_taken",
        "_taken_bytes",
        "_uncredited_bytes",
        "_waiting_bytes",
        "carrier",
        "changed",
        "consumed",
        "direct_frames",
        "nonce",
        "received",
        "was_lost",
    )

    def __init__(self, nonce: str, reservation: Reservation) -> None:
        self.nonce = nonce
        self.changed = AutoResetEvent()
        """Rings when frames have come, and when the channel stops or starts to bring them."""
        self.carrier: Carrier | None = None
        self.received = 0
        self.consumed = 0
        self.direct_frames = 0
        self.was_lost = False
        """Whether a channel that brought frames has broken or fallen silent."""
        self._reservation = reservation
        self._run: object = None
        self._has_flowed = False
        """Whether the present carrier has brought a frame."""
        self._highest = 0
        """One above the highest number that came by a channel."""
        self._frames: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._taken = 0
        self._taken_bytes = 0
        self._uncredited_bytes = 0

    @property
    def is_carried(self) -> bool:
        """Whether the job's frames come by a channel now, and none is missing before them."""
        return (
            self._has_flowed
            and self.carrier is not None
            and not self.carrier.is_silent
            and self.received >= self._highest
        )

    def attach(self, carrier: Carrier) -> None:
        """This channel brings the job's frames from now on."""
        if self.carrier is not carrier:
            if self.carrier is not None:
                self.carrier.drop(self)
            self.carrier = carrier
            self._has_flowed = False

    def detach(self) -> None:
        """The channel is gone."""
        self.note_silent()
        self.carrier = None
        self._has_flowed = False

    def note_silent(self) -> None:
        """The channel brings nothing, for now or for good."""
        self.was_lost |= self._has_flowed
        self.changed.set()

    def put(self, seq: int, frame: dict[str, Any]) -> None:
        """Take a frame that came by the channel.

        One for which the memory has no room is not taken: the worker, who does not hear that it
        was received, gives it to the queue.

        Raises:
            WindowIgnored: the worker sends more than it may.
        """
        run = frame.get("run")
        if run != self._run:
            self._begin_run(run)
        self._has_flowed = True
        if seq < self.received:
            return
        if seq >= self._highest:
            self._highest = seq + 1
        waiting_bytes = self._waiting_bytes + MIN_JSON_BYTES + _text_size(frame)
        if waiting_bytes + self._taken_bytes > MAX_WAITING_BYTES:
            raise WindowIgnored
        try:
            self._reservation.grow(frame_bytes(frame))
        except MemoryLimitReached:
            return
        self._waiting_bytes = waiting_bytes
        self._frames.append(frame)
        self.direct_frames += 1
        if seq == self.received:
            self.received = seq + 1
        self.changed.set()

    def take(self) -> list[dict[str, Any]]:
        """All frames that have come, for the job's answer to read."""
        frames, self._frames = self._frames, []
        self._taken = max(self._taken, self._highest)
        self._taken_bytes += self._waiting_bytes
        self._waiting_bytes = 0
        self._reservation.release()
        return frames

    def note_read(self, number: int) -> None:
        """The answer has read all frames below this number, whichever road they came by."""
        if number > self.received:
            self.received = number
            self._acknowledge()

    def note_consumed(self) -> None:
        """What was taken has been handed on to the client."""
        consumed = max(self._taken, self.received if not self._frames else 0)
        if consumed > self.consumed:
            self.consumed = consumed
            self._uncredited_bytes += self._taken_bytes
            self._taken_bytes = 0
            self._acknowledge(at_once=self._uncredited_bytes > WINDOW_BYTES / 4)

    def note_told(self) -> None:
        """The worker is told both numbers now."""
        self._uncredited_bytes = 0

    def clear(self) -> None:
        """Nobody takes frames any more."""
        self._frames.clear()
        self._reservation.release()

    def _acknowledge(self, *, at_once: bool = False) -> None:
        if self.carrier is not None:
            self.carrier.acknowledge(self, at_once=at_once)

    def _begin_run(self, run: object) -> None:
        """Another worker's numbers begin anew; what the answer makes of that is its own affair."""
        if self._run is not None:
            self.received = self.consumed = self._highest = self._taken = 0
        self._run = run


def _text_size(frame: dict[str, Any]) -> int:
    text = frame.get("text")
    if type(text) is str:
        return len(text)
    return sum(len(value) for value in frame.values() if type(value) is str)
