"""The deadlines of one call, the same for a job and for a relayed call.

`total` runs from the call's beginning to its end. Under it the call passes through phases, each
with a limit of its own: it waits for a worker that is up (queue), then for that worker's first
output (first token), then for each further one (idle). The end of the grace time after SIGTERM is
a deadline as well.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from proxy.api.keep_alive import Mode
from proxy.backends.fair_turns import Flow
from proxy.errors import (
    ColdStartTimeout,
    FirstTokenTimeout,
    IdleTimeout,
    ProxyError,
    Stopping,
    TotalTimeout,
)

T = TypeVar("T")

RETRY_AFTER_COLD_START_SECONDS = 30
MAX_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for one call, by the names of the settings."""

    connect_timeout_seconds: float
    queue_timeout_seconds: float
    first_token_timeout_seconds: float
    idle_timeout_seconds: float
    total_timeout_seconds: float
    keep_alive_seconds: float
    """How often the caller is back at work at least, so that it can send a keep-alive."""
    first_byte_hold_seconds: float
    """How long the first byte of a stream waits for the answer, so that an error has its status."""
    keep_alive_mode: Mode
    low_priority: bool = False
    """The job is not to start another worker."""
    queue_setting: str = "queue_timeout_seconds"
    """Where that limit comes from, for the error's text."""
    flow: Flow | None = None
    """With whose calls it shares its turns before a full endpoint; None to wait for none."""


class Shutdown:
    """When calls still running are given up: never, until the proxy is told to stop."""

    def __init__(self) -> None:
        self.at = math.inf
        """On the monotonic clock."""

    def begin(self, grace_seconds: float) -> None:
        """Let calls go on for this long; those that have not ended then raise Stopping."""
        self.at = time.monotonic() + grace_seconds


class _Phase(Enum):
    QUEUE = auto()
    FIRST_TOKEN = auto()
    IDLE = auto()
    ENDED = auto()


class Deadlines:
    """The deadlines of one call, which begins now.

    `cold_start_reason` says why no worker has the call, for the error of the queue deadline.
    """

    def __init__(self, terms: Terms, shutdown: Shutdown, cold_start_reason: Callable[[], str]):
        self.terms = terms
        self.cold_start_reason = cold_start_reason
        self._shutdown = shutdown
        self._began = self._phase_began = time.monotonic()
        self._phase = _Phase.QUEUE

    def note_started(self) -> None:
        """A worker that is known to be up has the call: the first-token clock starts, once.

        A worker that takes jobs while it still loads its model has not started in this sense.
        """
        if self._phase is _Phase.QUEUE:
            self._enter(_Phase.FIRST_TOKEN)

    def note_requeued(self) -> None:
        """The call waits for a worker again, after the one that had it was lost."""
        if self._phase is _Phase.FIRST_TOKEN:
            self._enter(_Phase.QUEUE)

    def note_output(self) -> None:
        """A worker has put something out: the idle clock starts anew."""
        self._enter(_Phase.IDLE)

    def note_ended(self) -> None:
        """The worker is done: what is left to fetch is under `total` alone."""
        self._enter(_Phase.ENDED)

    def exclude(self, seconds: float) -> None:
        """Hold a pause of our own reader against `total` alone, not against the worker."""
        self._phase_began += seconds

    def seconds_left(self, failure: ProxyError | None = None) -> float:
        """Until the next deadline.

        Raises:
            Stopping: the grace time is over.
            TotalTimeout, ColdStartTimeout, FirstTokenTimeout, IdleTimeout: a deadline has passed;
                with a `failure`, which kept us from seeing how the call stands, that one.
        """
        now = time.monotonic()
        if (stop_left := self._shutdown.at - now) <= 0:
            raise Stopping("The proxy is shutting down. Please send the request again.")
        if (total_left := self._began + self.terms.total_timeout_seconds - now) <= 0:
            raise failure or TotalTimeout(self.terms.total_timeout_seconds)
        if (phase_left := self._phase_began + self._limit - now) <= 0:
            raise failure or self._phase_error()
        return min(stop_left, total_left, phase_left)

    async def wait(
        self, work: asyncio.Future[T], seconds: float, failure: ProxyError | None = None
    ) -> bool:
        """Wait for work, so long and not beyond a deadline; tell whether it is done.

        Raises what `seconds_left` raises, unless it is done. The work is left as it is.
        """
        if not work.done():
            await asyncio.wait({work}, timeout=min(seconds, self.seconds_left(failure)))
        return work.done()

    async def result(self, work: asyncio.Future[T]) -> T:
        """Wait for work to its end; raises what `seconds_left` raises, and leaves it as it is."""
        while not await self.wait(work, self.terms.keep_alive_seconds):
            pass
        return work.result()

    async def sleep(self, seconds: float, failure: ProxyError | None = None) -> None:
        """Sleep, but not beyond a deadline."""
        await asyncio.sleep(min(seconds, self.seconds_left(failure)))

    @property
    def _limit(self) -> float:
        match self._phase:
            case _Phase.QUEUE:
                return self.terms.queue_timeout_seconds
            case _Phase.FIRST_TOKEN:
                return self.terms.first_token_timeout_seconds
            case _Phase.IDLE:
                return self.terms.idle_timeout_seconds
        return math.inf

    def _phase_error(self) -> ProxyError:
        match self._phase:
            case _Phase.QUEUE:
                return ColdStartTimeout(
                    self._limit,
                    self.terms.queue_setting,
                    self.cold_start_reason(),
                    retry_after_seconds=RETRY_AFTER_COLD_START_SECONDS,
                )
            case _Phase.FIRST_TOKEN:
                return FirstTokenTimeout(self._limit)
        return IdleTimeout(self._limit)

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._phase_began = phase, time.monotonic()


def pause(attempt: int) -> float:
    """Growing pauses with jitter: about 0.2, 0.4, 0.8 ... seconds, and a cap."""
    longest = min(MAX_PAUSE_SECONDS, 0.2 * 2.0**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
