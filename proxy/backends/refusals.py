"""When RunPod's 401, 403 and 404 are believed.

RunPod's edge refuses good keys for seconds at a time, and a job that was just submitted may not be
known everywhere yet: for that RunPod's own client takes a 404 as "not there yet" seven times, with
pauses from half a second (runpod 2.0.0rc2, JOB_PROPAGATION_ATTEMPTS). A job given up for such an
answer would run on with no one to read it.
"""

import time

GUST_SECONDS = 15.0
"""How long a job's calls, or the submissions with a key that has worked, must be refused without a
break before that is believed."""


class Gust:
    """Refusals in a row."""

    def __init__(self) -> None:
        self._began: float | None = None

    def has_lasted(self) -> bool:
        """Note one more refusal, and tell whether they are to be believed by now."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        return now - self._began >= GUST_SECONDS

    def end(self) -> None:
        """RunPod has answered as it should."""
        self._began = None


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
