"""Limits: how often clients may call, by endpoint and operation, and the quotas of the REST API.

The figures of the former are RunPod's (`RUNPOD_LIMITS` in `emulator/settings.py`); the 429 they end
in is a guess. Quotas have the form of RunPod's OpenAPI document (2.0.0, November 2026).
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from emulator.clock import Clock
from emulator.errors import TooManyRequests
from emulator.settings import Limit, QuotaWindow

WINDOW_SECONDS: Final = 10.0
QUOTA_SECONDS: Final[dict[QuotaWindow, int]] = {"minute": 60, "hour": 3600, "day": 86400}


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


class Quotas:
    """What one caller of RunPod's REST API may do in each window; a window begins with a call."""

    def __init__(self, quotas: Mapping[QuotaWindow, int], clock: Clock) -> None:
        self._quotas = {name: quotas[name] for name in QUOTA_SECONDS if name in quotas}
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """As if there had been no call."""
        self._remaining = dict(self._quotas)
        self._ends: dict[QuotaWindow, float] = dict.fromkeys(self._quotas, -math.inf)

    def count(self) -> None:
        """Count a call; TooManyRequests when a window has no room for it."""
        self._begin_windows()
        for name, remaining in self._remaining.items():
            if remaining == 0:
                seconds = self._ends[name] - self._clock.now()
                raise TooManyRequests(f"rate limit exceeded for the {name} window", seconds)
        self._remaining = {name: left - 1 for name, left in self._remaining.items()}

    def headers(self) -> dict[str, str]:
        """`RateLimit` and `RateLimit-Policy`; none without quotas, as for exempt callers."""
        if not self._quotas:
            return {}
        now = self._clock.now()
        left = [
            f'"{name}";r={remaining};t={max(0, math.ceil(self._ends[name] - now))}'
            for name, remaining in self._remaining.items()
        ]
        policy = [
            f'"{name}";q={quota};w={QUOTA_SECONDS[name]}' for name, quota in self._quotas.items()
        ]
        return {"RateLimit": ", ".join(left), "RateLimit-Policy": ", ".join(policy)}

    def _begin_windows(self) -> None:
        now = self._clock.now()
        for name, quota in self._quotas.items():
            if self._ends[name] <= now:
                self._ends[name] = now + QUOTA_SECONDS[name]
                self._remaining[name] = quota
