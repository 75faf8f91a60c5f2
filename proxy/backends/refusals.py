"""When RunPod's 401, 403 and 404 are believed.

RunPod's edge refuses good keys for seconds at a time, and a job that was just submitted may not be
known everywhere yet: for that RunPod's own client takes a 404 as "not there yet" seven times, with
pauses from half a second (runpod 2.0.0rc2, JOB_PROPAGATION_ATTEMPTS). A job given up for such an
answer would run on with no one to read it.
"""

import math
import time
from collections.abc import Callable

GUST_SECONDS = 15.0
"""How long a job's calls, or the submissions with a key that has worked, must be refused without a
break before that is believed."""


GAP_SECONDS = 7.5
"""Refusals further apart than that are not without a break, though no call went well in between:
there may have been none. Calls that are refused are made again sooner."""


class Gust:
    """Refusals in a row."""

    def __init__(
        self,
        gap_seconds: float = GAP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gap_seconds = gap_seconds
        self._clock = clock
        self._began = self._last = -math.inf
        self._is_believed = False

    def has_lasted(self) -> bool:
        """Note one more refusal, and tell whether they are to be believed by now, and then on."""
        now = self._clock()
        if now - self._last > self._gap_seconds:
            self._began = now
        self._last = now
        self._is_believed |= now - self._began >= GUST_SECONDS
        return self._is_believed

    def end(self) -> None:
        """RunPod has answered as it should."""
        self._last, self._is_believed = -math.inf, False


class Trust:
    """Whether a key that is refused may be a good one all the same, as one that has worked is."""

    def __init__(self) -> None:
        self._has_worked = False
        self._gust = Gust()

    def note_worked(self) -> None:
        """RunPod has taken a call with this key."""
        self._has_worked = True
        self._gust.end()

    def outlasts_refusal(self) -> bool:
        """Note a refusal, and tell whether it is not to be believed yet."""
        return self._has_worked and not self._gust.has_lasted()
