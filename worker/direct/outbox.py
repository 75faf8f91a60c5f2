"""The frames of one job between vLLM and the two roads they can take: pure, with a clock given.

A frame comes in by `add`, and leaves it by one of two ways: acknowledged by the proxy, or handed to
the queue, whichever comes first. The queue keeps what it was handed (the SDK puts it into the job's
aggregate even where the post fails), so a frame is safe in either place, and never handed to the
queue once the proxy has it.

While *attached* to a channel frames are sent as long as the bytes under way are below the window,
and are due for the queue only when they were not acknowledged in time. Otherwise all are due at
once. Frames stay here until they are acknowledged, since the proxy may ask for them again.
"""

import json
from collections import deque
from itertools import accumulate
from typing import Any, Final

Frame = dict[str, Any]

WINDOW_BYTES: Final = 512 * 1024
"""How much of a job may be under way to a client before vLLM has to wait."""
POST_AFTER_SECONDS: Final = 1.0
"""How long a frame waits for its acknowledgement before the queue gets it as well."""
OUTPUT_BYTES: Final = 720_000
"""The most bytes of frames in one output: RunPod splits one above 1 MB."""


class Outbox:
    """What has become of each frame of one job. Frames are numbered from 0 without holes."""

    def __init__(
        self, *, window_bytes: int = WINDOW_BYTES, post_after_seconds: float = POST_AFTER_SECONDS
    ) -> None:
        self.posted = 0
        """How many frames the queue was handed."""
        self.ended = False
        """Whether the last frame has come in."""
        self.attached = False
        """Whether somebody listens at a channel."""
        self._window_bytes = window_bytes
        self._post_after_seconds = post_after_seconds
        self._waiting: deque[_Waiting] = deque()
        self._acknowledged = 0
        self._next = 0
        self._next_to_post = 0
        self._next_to_send = 0
        self._once_sent = 0
        self._under_way: deque[tuple[int, int]] = deque()
        self._bytes_under_way = 0

    # vLLM's side

    @property
    def frames(self) -> int:
        """How many frames have come in."""
        return self._next

    def add(self, frame: Frame, now: float) -> None:
        """Take the next frame."""
        self._waiting.append(_Waiting(frame, now))
        self._next += 1
        self.ended = bool(frame.get("end"))

    @property
    def has_room(self) -> bool:
        """Whether vLLM may go on, as far as the channel is concerned."""
        return self.all_sent and self._window_is_open

    # The channel's side

    @property
    def all_sent(self) -> bool:
        """Whether the channel has had every frame so far."""
        return self._next_to_send == self._next

    def attach(self, first: int) -> None:
        """Send everything from this number on; what went before does not count in the window."""
        self.attached = True
        self._next_to_send = min(max(first, self._acknowledged), self._next)
        self._under_way.clear()
        self._bytes_under_way = 0

    def detach(self) -> None:
        """Nobody listens any more: what is neither acknowledged nor posted is due at once."""
        self.attached = False

    def to_send(self) -> list[str]:
        """The frames that may be sent now, as JSON; they count as sent."""
        sent = []
        while self.attached and self._next_to_send < self._next and self._window_is_open:
            text = self._at(self._next_to_send).json()
            self._under_way.append((self._next_to_send, len(text)))
            self._bytes_under_way += len(text)
            self._next_to_send += 1
            sent.append(text)
        self._once_sent = max(self._once_sent, self._next_to_send)
        return sent

    def acknowledge(self, received: int, consumed: int) -> None:
        """What is below `received` is safe with the proxy, below `consumed` with its client.

        Frames that have left on neither road cannot have been received.
        """
        received = min(received, max(self._once_sent, self._next_to_post))
        while self._acknowledged < received:
            self._waiting.popleft()
            self._acknowledged += 1
        self._next_to_send = max(self._next_to_send, self._acknowledged)
        while self._under_way and self._under_way[0][0] < consumed:
            self._bytes_under_way -= self._under_way.popleft()[1]

    # The queue's side

    @property
    def due_at(self) -> float | None:
        """When the next frame is due for the queue; None if none is waiting for that."""
        first = self._first_unposted
        return self._due_at(first) if first < self._next else None

    def take_due(self, now: float) -> list[Frame]:
        """The frames that the queue has to get now, as many as fit into one output."""
        first = last = self._first_unposted
        while last < self._next and self._due_at(last) <= now:
            last += 1
        due = self._fitting(first, last)
        self._next_to_post = first + len(due)
        self.posted += len(due)
        return due

    @property
    def is_settled(self) -> bool:
        """Whether the answer is complete, and each frame acknowledged or posted."""
        return self.ended and self._first_unposted >= self._next

    @property
    def _window_is_open(self) -> bool:
        return self._bytes_under_way < self._window_bytes

    @property
    def _first_unposted(self) -> int:
        return max(self._next_to_post, self._acknowledged)

    def _at(self, number: int) -> "_Waiting":
        return self._waiting[number - self._acknowledged]

    def _due_at(self, number: int) -> float:
        return self._at(number).since + (self._post_after_seconds if self.attached else 0)

    def _fitting(self, first: int, last: int) -> list[Frame]:
        """The frames from first to before last, as long as they fit; one always does."""
        if last - first > 1:
            sizes = accumulate(len(self._at(number).json()) for number in range(first, last))
            last = first + max(1, sum(size <= OUTPUT_BYTES for size in sizes))
        return [self._at(number).frame for number in range(first, last)]


class _Waiting:
    """A frame that the proxy has not acknowledged."""

    __slots__ = ("_json", "frame", "since")

    def __init__(self, frame: Frame, since: float) -> None:
        self.frame = frame
        self.since = since
        self._json: str | None = None

    def json(self) -> str:
        if self._json is None:
            self._json = json.dumps(self.frame, separators=(",", ":"))
        return self._json
