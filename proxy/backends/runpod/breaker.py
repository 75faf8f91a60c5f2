"""A circuit breaker: while an endpoint is dead, requests fail at once instead of one by one."""

import time

from proxy.errors import ProxyError

FAILURES = 5
"""So many submissions in a row must fail before the next ones are refused."""
FIRST_PAUSE_SECONDS = 2.0
MAX_PAUSE_SECONDS = 30.0


class Breaker:
    """Counts failures in a row; after some it refuses for a pause, then lets one request try.

    If that one succeeds, all may go on; if it fails, the next pause is twice as long.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause = FIRST_PAUSE_SECONDS
        self._closed_until = 0.0
        self._reason: ProxyError | None = None

    def check(self) -> None:
        """Raise the error that the endpoint last failed with, while it is not to be tried."""
        if self._reason is None:
            return
        now = time.monotonic()
        if (left := self._closed_until - now) > 0:
            raise type(self._reason)(self._reason.message, retry_after_seconds=left)
        self._closed_until = now + self._pause  # one may try; the others wait for what comes of it

    def succeeded(self) -> None:
        """The endpoint took a job."""
        self._failures, self._pause, self._reason = 0, FIRST_PAUSE_SECONDS, None

    def failed(self, error: ProxyError) -> None:
        """The endpoint could not take a job, or would not take any of ours."""
        self._failures += 1
        if self._failures < FAILURES:
            return
        if self._reason is not None:
            self._pause = min(self._pause * 2, MAX_PAUSE_SECONDS)
        self._reason = error
        self._closed_until = time.monotonic() + self._pause
