"""How many calls of one endpoint may be under way: beyond that a new one is refused at once."""

from dataclasses import dataclass
from typing import Final

from proxy.errors import EndpointOverloaded

RETRY_AFTER_OVERLOAD_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Admission:
    """The bounds of one endpoint, in this proxy."""

    max_live: int
    """How many calls may be under way."""
    max_waiting: int
    """Of them, how many may wait for a worker."""

    def check(self, *, live: int, waiting: int) -> None:
        """Raise EndpointOverloaded unless there is room for one more."""
        if live >= self.max_live or waiting >= self.max_waiting:
            raise EndpointOverloaded(
                "Too many requests are under way or waiting for a worker. Try again in a while.",
                retry_after_seconds=RETRY_AFTER_OVERLOAD_SECONDS,
            )
