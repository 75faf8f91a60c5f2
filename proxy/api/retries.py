"""What a request's headers tell of a retry that may follow it.

SDKs tell `x-stainless-retry-count`, 0 for a first attempt, and their timeout in seconds, as
`x-stainless-read-timeout` (Python) or `x-stainless-timeout` (JavaScript and Go, in whole seconds).
openai-node (6.49, 7.59) tells its timeout only where it was given with the call, so there any
request that is left may be repeated. LangChain.js (1.6) repeats by itself what the SDK calls a
first attempt each time.
"""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

FIRST_PAUSE_SECONDS = 0.5
"""How long SDKs pause before the first retry; twice as long before each further one."""
LANGCHAIN_FIRST_PAUSE_SECONDS = 2.0
"""The same of LangChain.js (p-retry: one second, or up to twice that at random)."""
MAX_PAUSE_SECONDS = 8.0
RETRY_MARGIN_SECONDS = 1.5
"""How long after that pause the retry may take to arrive."""
NODE_HEADERS_TIMEOUT_SECONDS = 300.0
"""Node's `fetch` gives up a request whose answer has not begun by then (undici, headersTimeout)."""
TIMEOUT_SHARE = 0.95
"""A client that leaves after this much of its timeout is taken to have timed out."""


@dataclass(frozen=True, slots=True)
class Sender:
    """What a request's headers tell of a retry that may follow it."""

    attempt: int | None
    """How often an SDK has sent this request before; None if no SDK says so."""
    timeout_at: float
    """When the SDK's own timeout has passed (monotonic clock); infinite if it tells none."""
    is_javascript: bool
    is_langchain: bool
    """LangChain.js, which leaves the SDK's retries aside for its own."""

    @classmethod
    def of(cls, headers: Mapping[str, str], began: float) -> Self:
        """From the headers of a request that came then (monotonic clock)."""
        count = headers.get("x-stainless-retry-count", "")
        seconds = _timeout_seconds(headers)
        if headers.get("x-stainless-runtime") == "node" and seconds < math.inf:
            seconds = min(seconds, NODE_HEADERS_TIMEOUT_SECONDS)
        return cls(
            attempt=int(count) if re.fullmatch(r"[0-9]{1,9}", count) else None,
            timeout_at=began + TIMEOUT_SHARE * seconds,
            is_javascript=headers.get("x-stainless-lang") == "js",
            is_langchain=headers.get("user-agent", "").startswith("langchainjs"),
        )

    @property
    def may_be_retry(self) -> bool:
        """Whether an SDK says so, or it is LangChain.js, which never does."""
        return bool(self.attempt) or self.is_langchain

    @property
    def is_overdue(self) -> bool:
        """Whether its own timeout has passed."""
        return time.monotonic() >= self.timeout_at

    @property
    def may_come_back(self) -> bool:
        """Whether a retry may follow if it leaves now."""
        is_timeout_unknown = self.is_javascript and self.timeout_at == math.inf
        return self.attempt is not None and (is_timeout_unknown or self.is_overdue)

    def pause_seconds(self, times_left: int) -> float:
        """How long it pauses at most, before the next attempt at an answer left so often before."""
        first, times = FIRST_PAUSE_SECONDS, self.attempt or 0
        if self.is_langchain:
            first, times = LANGCHAIN_FIRST_PAUSE_SECONDS, times_left
        return min(first * 2.0 ** min(times, 9), MAX_PAUSE_SECONDS)


def _timeout_seconds(headers: Mapping[str, str]) -> float:
    """An SDK's own timeout; infinite if it tells none."""
    value = headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout", "")
    try:
        seconds = float(value)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf
