"""Limits: how often clients may call, by endpoint and operation.

The figures are RunPod's (see `settings.RUNPOD_LIMITS`); the 429 they end in is a guess.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from emulator.clock import Clock
from emulator.errors import TooManyRequests
from emulator.settings import Limit

WINDOW_SECONDS: Final = 10.0


class Meter:
    """The calls of one operation: those under way, and those of the last ten seconds."""

    def __init__(self, limit: Limit, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self.admitted_calls = 0
        self.refused_calls = 0
        self._under_way = 0
        self._moments: deque[float] = deque()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A call, for as long as it lasts; TooManyRequests when it is one too many."""
        self._forget_old()
        try:
            self._refuse_surplus()
        except TooManyRequests:
            self.refused_calls += 1
            raise
        self.admitted_calls += 1
        self._moments.append(self._clock.now())
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _forget_old(self) -> None:
        since = self._clock.now() - WINDOW_SECONDS
        while self._moments and self._moments[0] <= since:
            self._moments.popleft()

    def _refuse_surplus(self) -> None:
        most = self._limit.concurrent
        if most is not None and self._under_way >= most:
            raise TooManyRequests(f"more than {most} calls at once", 1)
        if len(self._moments) >= self._limit.calls_per_10_seconds:
            seconds = self._moments[0] + WINDOW_SECONDS - self._clock.now()
            raise TooManyRequests("too many calls in 10 seconds", seconds)
