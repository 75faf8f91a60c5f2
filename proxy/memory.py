"""What the bodies of requests and the buffers of answers may hold in memory, all of them together.

Whoever is about to keep bytes makes a reservation and lets it grow before it reads on. Beyond the
bound that is refused, with an error a client can act on, in place of a process that is killed.
"""

from collections.abc import Callable

from proxy.errors import MemoryLimitReached

RETRY_AFTER_MEMORY_SECONDS = 5
MAX_SMALL_BYTES = 64 * 1024
"""So much of an answer is counted and never refused: bodies that fill the memory end no stream."""


class Memory:
    """A number of bytes that all reservations share."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.on_shortage: Callable[[int], None] = lambda size: None
        """Called when so many bytes find no room: gives up what is kept only in case it helps."""

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be reserved now."""
        return size <= self.max_bytes - self.used_bytes

    def reserve(self, size: int = 0) -> "Reservation":
        """A reservation of so many bytes; raises MemoryLimitReached if there is no room."""
        reservation = Reservation(self)
        reservation.grow(size)
        return reservation

    def reserve_for_answer(self) -> "Reservation":
        """An empty reservation, which small answers may always let grow."""
        return Reservation(self, sure_bytes=MAX_SMALL_BYTES)


class Reservation:
    """The bytes that one body or buffer holds; given back by `release`, or when it is dropped."""

    def __init__(self, memory: Memory, *, sure_bytes: int = 0) -> None:
        self.size = 0
        self._memory = memory
        self._sure_bytes = sure_bytes

    def grow(self, size: int) -> None:
        """Reserve so many bytes more.

        Raises:
            MemoryLimitReached: there is no room; what was reserved before stays so.
        """
        is_sure = self.size + size <= self._sure_bytes
        if not is_sure and not self._memory.has_room(size):
            self._memory.on_shortage(size)
        if not is_sure and not self._memory.has_room(size):
            raise MemoryLimitReached(
                "The requests and answers under way hold as much memory as this service may use. "
                "Try again in a while.",
                retry_after_seconds=RETRY_AFTER_MEMORY_SECONDS,
            )
        self._add(size)

    def shrink(self, size: int) -> None:
        """Give so many bytes back."""
        self._add(-size)

    def resize(self, size: int) -> None:
        """Reserve so many bytes in all; raises MemoryLimitReached like `grow`."""
        if size > self.size:
            self.grow(size - self.size)
        else:
            self.shrink(self.size - size)

    def release(self) -> None:
        """Give all of it back. It may grow again."""
        self._add(-self.size)

    def __del__(self) -> None:
        self.release()

    def _add(self, size: int) -> None:
        self.size += size
        self._memory.used_bytes += size
