"""How much a key may use at a time: its limits, and what is counted against them in this process.

Both limits are exact. In no 60 seconds more requests are let in than a key has a minute, wherever
these begin; and never more run at once. What is let in is decided in one go, without an `await`
in between, so a request that one limit refuses uses up nothing of the other.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.access.keys import Key
from proxy.errors import RateLimitExceeded

WINDOW_SECONDS: Final = 60.0
"""What a minute is: the last 60 seconds, at any time."""
RETRY_AFTER_FULL_SECONDS: Final = 1
"""When one of a key's requests will end is not known."""


class Permit:
    """A request that was let in, and holds its place among those at once until it ends."""

    def __init__(self, headers: Mapping[str, str], on_end: Callable[[], None]) -> None:
        self._headers = {name.encode(): value.encode() for name, value in headers.items()}
        self._on_end = on_end

    def told(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """An answer's headers with what is left of the key's limits.

        They replace those of the same names: a model's server may tell of limits of its own.
        """
        own = self._headers
        return [(name, value) for name, value in headers if name not in own] + list(own.items())

    def end(self) -> None:
        """The request is over, however it ended."""
        self._on_end()


@dataclass(slots=True)
class _Use:
    """What of a key's limits is used now."""

    arrivals: deque[float] = field(default_factory=deque)
    """When the requests of the last minute were let in."""
    running: int = 0


class Limiter:
    """Lets requests in as far as their keys' limits allow, and counts them in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        """By the names of the keys, which a key keeps when the configuration is read again."""

    async def admit(self, key: Key) -> Permit | None:
        """Let a request of this key in; None if the key has no limits.

        Raises:
            RateLimitExceeded: it is one too many.
        """
        limits = key.limits
        if not limits.are_any:
            return None
        use = self._uses.setdefault(key.name, _Use())
        now = self._clock()
        while use.arrivals and use.arrivals[0] <= now - WINDOW_SECONDS:
            use.arrivals.popleft()
        if limits.max_requests is not None and use.running >= limits.max_requests:
            raise too_many_at_once(limits.max_requests)
        headers = {}
        if (allowed := limits.requests_per_minute) is not None:
            if len(use.arrivals) >= allowed:
                # One place is free when so many are left; the limit may have been a higher one.
                last_one_in_the_way, newest = use.arrivals[-allowed], use.arrivals[-1]
                raise too_many_requests(
                    allowed,
                    retry_seconds=last_one_in_the_way + WINDOW_SECONDS - now,
                    reset_seconds=newest + WINDOW_SECONDS - now,
                )
            use.arrivals.append(now)
            headers = request_headers(allowed, allowed - len(use.arrivals), WINDOW_SECONDS)
        use.running += 1

        def end() -> None:
            use.running -= 1

        return Permit(headers, end)


def too_many_requests(
    allowed: int, *, retry_seconds: float, reset_seconds: float
) -> RateLimitExceeded:
    """The error for a key whose requests of a minute are used up.

    One is free again in `retry_seconds`, all are in `reset_seconds`.
    """
    return RateLimitExceeded(
        f"Rate limit reached for this API key on requests per min (RPM): Limit {allowed}, "
        f"Used {allowed}, Requested 1. Please try again in {retry_seconds:.3f}s.",
        retry_after_seconds=retry_seconds,
        limits=request_headers(allowed, 0, reset_seconds),
    )


def too_many_at_once(allowed: int) -> RateLimitExceeded:
    """The error for a key that has as many requests under way as it may."""
    return RateLimitExceeded(
        f"Rate limit reached for this API key on requests at once: Limit {allowed}, "
        f"Used {allowed}, Requested 1. Please try again when one of them has ended.",
        retry_after_seconds=RETRY_AFTER_FULL_SECONDS,
    )


def request_headers(allowed: int, remaining: int, seconds: float) -> dict[str, str]:
    """OpenAI's headers for requests a minute, of which all are free again in so many seconds."""
    return {
        "x-ratelimit-limit-requests": str(allowed),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": duration(seconds),
    }


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: `6m0s`, `8.64s`, `120ms`."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{minutes:.0f}m" * (minutes > 0) + f"{round(rest, 3):g}s"
