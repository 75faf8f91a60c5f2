"""How much a key may use at a time: its limits, and what is counted against them in this process.

No 60 seconds, wherever they begin, have more requests than a key has a minute, and never more run
at once. Tokens are a bucket that holds a minute's worth and fills evenly: what a request may take
is taken out when it is let in, and what it did not take is put back when it ends. All of it is
decided without an `await` in between, so what one limit refuses uses up nothing of the others.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from proxy.access.keys import Key, KeyLimits
from proxy.access.spending import Spending, Spent, next_day, next_month
from proxy.api.call import OnSpent, Work, spends_unwatched
from proxy.api.token_estimate import Tokens
from proxy.errors import InsufficientQuota, PromptOverLimit, RateLimitExceeded, TokenLimitExceeded

WINDOW_SECONDS: Final = 60.0
"""What a minute is: the last 60 seconds, at any time."""
RETRY_AFTER_FULL_SECONDS: Final = 1
"""When one of a key's requests will end is not known."""


class Permit:
    """A request that was let in, and holds its place among those at once until it ends."""

    def __init__(self, headers: Mapping[str, str], reserved: int) -> None:
        self._headers = {name.encode(): value.encode() for name, value in headers.items()}
        self._reserved = reserved
        self._listeners: list[Callable[[int], None]] = []

    def on_end(self, listener: Callable[[int], None]) -> None:
        """Have this called in the end, with how many tokens more were used than reserved."""
        self._listeners.append(listener)

    def told(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """An answer's headers with what is left of the key's limits.

        They replace those of the same names: a model's server may tell of limits of its own.
        """
        own = self._headers
        return [(name, value) for name, value in headers if name not in own] + list(own.items())

    def end(self, *, used: int, is_known: bool) -> None:
        """The request is over, however it ended, and has used so many tokens.

        Unless that is known, as of one whose client left, it counts as all that was reserved.
        """
        if not is_known:
            used = max(used, self._reserved)
        for listener in self._listeners:
            listener(used - self._reserved if self._reserved else 0)


@dataclass(slots=True)
class _Use:
    """What of a key's limits is used now."""

    arrivals: deque[float] = field(default_factory=deque)
    """When the requests of the last minute were let in."""
    running: int = 0
    tokens: float = 0.0
    """How many are taken from the bucket; more than it holds where an answer took more."""
    tokens_at: float = 0.0
    """When that was so."""

    def pass_to(self, now: float, limits: KeyLimits) -> None:
        """Forget what is longer ago than a minute, and fill the bucket."""
        while self.arrivals and self.arrivals[0] <= now - WINDOW_SECONDS:
            self.arrivals.popleft()
        if (per_minute := limits.tokens_per_minute) is not None:
            filled = (now - self.tokens_at) * per_minute / WINDOW_SECONDS
            self.tokens = max(0.0, self.tokens - filled)
        self.tokens_at = now


class Limiter:
    """Lets requests in as far as their keys' limits allow, and counts them in memory.

    One of several copies lets in its share of them.
    """

    def __init__(
        self,
        spending: Spending,
        *,
        copies: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spending = spending
        self._copies = copies
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        """By the names of the keys, which a key keeps when the configuration is read again."""

    async def admit(self, key: Key, tokens: Tokens) -> Permit | None:
        """Let a request of this key in, which may take so many tokens; None without limits.

        Raises:
            RateLimitExceeded: it is too much.
            InsufficientQuota: the key has spent its budget.
        """
        if not key.limits.are_any:
            return None
        limits = key.limits.shared_by(self._copies)
        use, now = self._uses.setdefault(key.name, _Use()), self._clock()
        if limits.have_budget:
            check_budget(limits, *self._spending.of(key.name), self._spending.now())
        use.pass_to(now, limits)
        reserved = to_reserve(limits, tokens)
        self._check(use, limits, reserved, now)
        end = self._take(key, reserved)
        permit = Permit(headers_of(limits, len(use.arrivals), use.tokens), reserved)
        permit.on_end(end)
        return permit

    async def close(self) -> None:
        """Nothing is to be let go of."""

    def on_spent(self, key: Key) -> OnSpent:
        """What counts a job's cost among what this key spends."""

        def note(work: Work) -> None:
            self._spending.note(key.name, Spent(work.dollars, work.seconds))

        return note if key.limits.have_budget else spends_unwatched

    def _take(self, key: Key, reserved: int) -> Callable[[int], None]:
        """Count a request that is let in; what is returned is called when it ends."""
        use, now = self._uses.setdefault(key.name, _Use()), self._clock()
        use.pass_to(now, key.limits)
        if key.limits.requests_per_minute is not None:
            use.arrivals.append(now)
        use.running += 1
        use.tokens += reserved

        def end(correction: int) -> None:
            use.running -= 1
            use.tokens += correction

        return end

    def _check(self, use: _Use, limits: KeyLimits, reserved: int, now: float) -> None:
        if (allowed := limits.max_requests) is not None and use.running >= allowed:
            raise too_many_at_once(allowed)
        allowed = limits.requests_per_minute
        if allowed is not None and len(use.arrivals) >= allowed:
            # One place is free when so many are left; the limit may have been a higher one.
            last_in_the_way, newest = use.arrivals[-allowed], use.arrivals[-1]
            raise too_many_requests(
                allowed,
                retry_seconds=last_in_the_way + WINDOW_SECONDS - now,
                reset_seconds=newest + WINDOW_SECONDS - now,
            )
        allowed = limits.tokens_per_minute
        if allowed is not None and reserved > allowed - use.tokens:
            raise too_many_tokens(allowed, use.tokens, reserved)


def to_reserve(limits: KeyLimits, tokens: Tokens) -> int:
    """How many tokens to take for a request: at most what a minute has.

    Raises:
        PromptOverLimit: the prompt alone is more than that.
    """
    if (allowed := limits.tokens_per_minute) is None:
        return 0
    if tokens.prompt > allowed:
        raise PromptOverLimit(
            f"Request too large for this API key on tokens per min (TPM): Limit {allowed}, "
            f"Requested {tokens.prompt}. The input must be reduced in order to run successfully."
        )
    return min(tokens.prompt + tokens.output, allowed)


def check_budget(limits: KeyLimits, today: Spent, month: Spent, now: datetime) -> None:
    """Raise InsufficientQuota if a budget is spent; it may have been overshot by what ran then."""
    for spent, dollars, seconds, name, end_of in (
        (month, limits.monthly_budget, limits.monthly_gpu_seconds, "monthly", next_month),
        (today, limits.daily_budget, limits.daily_gpu_seconds, "daily", next_day),
    ):
        if dollars is not None and spent.dollars >= dollars:
            said = f"${dollars:g} (spent: ${spent.dollars:.4g})"
        elif seconds is not None and spent.seconds >= seconds:
            said = f"{seconds:g} GPU-seconds (spent: {spent.seconds:.4g})"
        else:
            continue
        ends = end_of(now)
        raise InsufficientQuota(
            f"You exceeded your current quota: this API key has spent its {name} budget of {said}. "
            f"It may be used again from {ends:%Y-%m-%d} 00:00 UTC on, or when the operator of this "
            "proxy raises its budget.",
            retry_after_seconds=(ends - now).total_seconds(),
        )


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


def too_many_tokens(allowed: int, used: float, reserved: int) -> RateLimitExceeded:
    """The error for a key whose bucket, with so many taken, has not as many as are wanted."""
    seconds = (used + reserved - allowed) * WINDOW_SECONDS / allowed
    return TokenLimitExceeded(
        f"Rate limit reached for this API key on tokens per min (TPM): Limit {allowed}, "
        f"Used {used:.0f}, Requested {reserved}. Please try again in {seconds:.3f}s.",
        retry_after_seconds=seconds,
        limits=token_headers(allowed, used),
    )


def headers_of(limits: KeyLimits, came: int, taken: float) -> dict[str, str]:
    """What is left to a key of whose minute so many requests and tokens are used."""
    headers: dict[str, str] = {}
    if (allowed := limits.requests_per_minute) is not None:
        headers |= request_headers(allowed, allowed - came, WINDOW_SECONDS)
    if (allowed := limits.tokens_per_minute) is not None:
        headers |= token_headers(allowed, taken)
    return headers


def request_headers(allowed: int, remaining: int, seconds: float) -> dict[str, str]:
    """OpenAI's headers for requests a minute, of which all are free again in so many seconds."""
    return {
        "x-ratelimit-limit-requests": str(allowed),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": duration(seconds),
    }


def token_headers(allowed: int, used: float) -> dict[str, str]:
    """The same for tokens, of which so many are taken from the bucket."""
    return {
        "x-ratelimit-limit-tokens": str(allowed),
        "x-ratelimit-remaining-tokens": str(max(0, int(allowed - used))),
        "x-ratelimit-reset-tokens": duration(used * WINDOW_SECONDS / allowed),
    }


def duration(seconds: float) -> str:
    """A time as OpenAI's headers have it: `6m0s`, `8.64s`, `120ms`."""
    seconds = max(0.0, round(seconds, 3))
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m" * (minutes > 0) + f"{round(rest, 3):g}s"
