"""What the workers of endpoints cost, by how many of them there are, looked at again and again.

From one look to the next as many are taken to be there as at the first of the two. So starts and
idle time are in it, and workers that others have woken. It is kept in the file of what keys have
spent: copies that share it, and look at the same endpoint, count each moment once.
"""

import logging
import sqlite3
from typing import Final

from proxy.access.spending import Spending, Spent

log = logging.getLogger(__name__)

MAX_GAP_SECONDS: Final = 60.0
"""Of a longer time without a look so much counts: nobody knows what was there after it."""
_MARK: Final = "\n"
"""What an endpoint's name begins with among those of keys: none of theirs holds it."""


class WorkerCosts:
    """What each endpoint's workers have cost."""

    def __init__(self, spending: Spending) -> None:
        self.spending = spending
        self._looks: dict[str, tuple[float, int]] = {}
        """When each endpoint was last looked at, and how many workers were there."""

    def today(self, endpoint: str) -> Spent:
        """What they have cost since midnight, in UTC."""
        return self.spending.of(_MARK + endpoint)[0]

    async def look(
        self, endpoint: str, workers: int | None, *, price: float, job_seconds: float = 0.0
    ) -> Spent:
        """So many are there now; returns what they have cost today, at this price for a second.

        Where RunPod does not tell how many there are, it is what jobs took of them.
        """
        seconds = job_seconds
        if workers is not None:
            seconds += self._seconds_since_last(endpoint, workers)
        if seconds:
            self.spending.note(_MARK + endpoint, Spent(seconds * price, seconds))
        return self.today(endpoint)

    def _seconds_since_last(self, endpoint: str, workers: int) -> float:
        now = self.spending.now().timestamp()
        before = self._looks.get(endpoint)
        self._looks[endpoint] = now, workers
        try:
            before = self.spending.swap_look(endpoint, now, workers)
        except sqlite3.Error as exc:
            log.error("what workers cost is counted in memory: %s", exc)
        if before is None:
            return 0.0
        at, were_there = before
        return were_there * min(max(0.0, now - at), MAX_GAP_SECONDS)
