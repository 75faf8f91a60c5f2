"""What every kind of backend is to those who ask it: RunPod's queue, or a server asked by HTTP."""

from dataclasses import dataclass
from typing import Protocol

from proxy.api.answer import Answer
from proxy.api.call import Call
from proxy.backends.deadlines import Terms
from proxy.backends.health_monitor import HealthMonitor


@dataclass(frozen=True, slots=True)
class InFlight:
    """How many calls are under way."""

    waiting: int
    """Those that no worker has."""
    running: int
    in_line: int = 0
    """Of those that wait, the ones whose turn to be sent on has not come."""


class Backend(Protocol):
    """Something that answers calls."""

    served: dict[str, int | None]
    """The models its workers have told of, and how long a context each takes, where known."""

    @property
    def monitor(self) -> HealthMonitor | None:
        """What state it is in, where that can be told."""
        ...

    def ask(self, call: Call, served_as: str | None, terms: Terms) -> Answer:
        """The answer to this call, with the model named as the server knows it.

        Nothing happens until the answer is opened.
        """
        ...

    def in_flight(self) -> InFlight:
        """The calls that are under way."""
        ...

    async def close(self, seconds: float) -> None:
        """Look no more how it is, and wait at most this long for calls that are being submitted."""
        ...
