"""Whether an endpoint's workers can start, so that no start is paid for in vain again and again.

A start that failed is known from a job that its worker ended with the cause, or from the counters
of /health. All who wait for a worker are told at once, which cancels their jobs: what RunPod's
queue holds makes it start the next worker. Further requests are then refused without a job, until
a pause is over, a worker is seen to be well, or the operator says that things have changed. The
same goes for workers that cannot open sealed jobs: they start, and are of no use.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from proxy.backends.workers import Workers
from proxy.errors import ModelStartFailed, SealingFailed

log = logging.getLogger(__name__)

Useless = ModelStartFailed | SealingFailed
"""Why a worker is good for nothing: it has no model, or does not open the jobs that it is given."""

GOOD_SECONDS = 60.0
"""A worker that answered so recently is likely to be up still."""
JUST_SECONDS = 5.0
"""One that answered so recently neither loads nor has gone: RunPod's shortest idle timeout."""
UNKNOWN_CAUSE = (
    "The model could not be started: the endpoint's workers end before they are ready. "
    "Their log, in RunPod's console, says why."
)


class Starts:
    """What is known of the starts of one endpoint."""

    def __init__(self, name: str, *, pause_seconds: float) -> None:
        self.workers = Workers()
        self._name = name
        self._pause_seconds = pause_seconds
        self._failure: Useless | None = None
        self._closed_until = 0.0
        self._exits = False
        self._answering: set[object] = set()
        self._answered = -GOOD_SECONDS
        self._waiting: set[asyncio.Future[Useless]] = set()

    @property
    def failure(self) -> Useless | None:
        """Why no further start is tried; None if one would be."""
        return None if time.monotonic() >= self._closed_until else self._failure

    def check(self) -> None:
        """Raise why the last start was in vain while no further one is tried."""
        if (failure := self.failure) is not None:
            left = self._closed_until - time.monotonic()
            raise type(failure)(
                f"{failure.message} No other start is tried for {left:.0f} s.",
                retry_after_seconds=left,
            )

    @contextmanager
    def told(self) -> Iterator[asyncio.Future[Useless]]:
        """A future that gets the error when a start fails."""
        failed = asyncio.get_running_loop().create_future()
        self._waiting.add(failed)
        try:
            yield failed
        finally:
            self._waiting.discard(failed)
            failed.cancel()

    def note_failure(self, failure: Useless, *, exits: bool) -> None:
        """A start has failed.

        `exits`: no worker is up. Otherwise a worker has told its cause, which may still be up to
        tell it to others; if there are workers beside it that answer, they are to be asked on.
        """
        now = time.monotonic()
        if not exits and (self._answering or now - self._answered < GOOD_SECONDS):
            log.warning("endpoint %s, one of its workers: %s", self._name, failure.message)
            return
        if self.failure is None:
            log.error("endpoint %s: %s", self._name, failure.message)
        if self.failure is None or not exits:  # a cause that was told is worth more
            self._failure, self._exits = failure, exits
            self._closed_until = now + self._pause_seconds
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(failure)

    def note_up(self, up: int) -> None:
        """So many workers are up, by /health.

        One that has told its cause may be among them, to tell it to others: it counts for nothing
        until none was up in between.
        """
        if not up:
            self._exits = True
        elif self._exits:
            self.forgive()

    def note_answer(self, answer: object) -> None:
        """A worker has begun to answer, so at least one can start."""
        self._answering.add(answer)
        self._answered = time.monotonic()
        self.forgive()

    @property
    def has_just_answered(self) -> bool:
        """A worker has begun to answer, or come to an end, a moment ago."""
        return time.monotonic() - self._answered < JUST_SECONDS

    def note_end(self, answer: object) -> None:
        """That answer has come to its end."""
        if answer in self._answering:
            self._answering.discard(answer)
            self._answered = time.monotonic()

    def forgive(self) -> None:
        """Try again: something has changed."""
        if self._failure is not None:
            log.info("endpoint %s: starts are tried again", self._name)
        self._failure, self._closed_until = None, 0.0
