"""When RunPod's 401, 403 and 404 are believed.

RunPod's edge refuses good keys for seconds at a time, and a job that was just submitted may not be
known everywhere yet: for that RunPod's own client takes a 404 as "not there yet" seven times, with
pauses from half a second (runpod 2.0.0rc2, JOB_PROPAGATION_ATTEMPTS). A job given up for such an
answer would run on with no one to read it.
"""

import time

GUST_SECONDS = 15.0
"""How long a job's calls must be refused without a break before that is believed."""
TRUST_SECONDS = 30.0
"""How long after it worked, for any call about a job, a key is still tried for a submission that is
refused."""


class Gust:
    """The refusals of one job's calls in a row."""

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
    """Whether a key has worked so lately that a refusal is not to be believed."""

    def __init__(self) -> None:
        self._worked: float | None = None

    def note_worked(self) -> None:
        """RunPod has taken a call with this key."""
        self._worked = time.monotonic()

    @property
    def holds(self) -> bool:
        """Whether it worked a moment ago."""
        return self._worked is not None and time.monotonic() - self._worked < TRUST_SECONDS
