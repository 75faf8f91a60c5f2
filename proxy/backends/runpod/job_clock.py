"""How long a job waited, and how long a worker has had it: by what is told, or as it is seen.

RunPod holds a poll until something comes of a job. So of one that is answered sooner than that the
first that is heard is its output, however long a worker was at it.
"""

import time

from proxy.backends.runpod.endpoint import JobState


class JobClock:
    """The times of one job, from its submission on."""

    def __init__(self) -> None:
        self.submitted = time.monotonic()
        self._waited = self.submitted
        """When it was known for the last time that no worker had it."""
        self._taken: float | None = None
        self._was_taken_unseen = False
        """The first that was heard of a worker was its output."""
        self._delay_ms: int | None = None
        self._execution_ms: int | None = None

    @property
    def is_taken(self) -> bool:
        """Whether a worker has had it."""
        return self._taken is not None

    @property
    def queue_seconds(self) -> float | None:
        """How long it waited for a worker, once one has it; in RunPod's words, if it has told."""
        if self._delay_ms is not None:
            return self._delay_ms / 1000
        return None if self._taken is None else self._taken - self.submitted

    @property
    def execution_seconds(self) -> float | None:
        """How long a worker had it, in RunPod's words, if it has told."""
        return None if self._execution_ms is None else self._execution_ms / 1000

    @property
    def worker_seconds(self) -> float:
        """How long a worker has had it so far."""
        if self._execution_ms is not None:
            return self._execution_ms / 1000
        return 0.0 if self._taken is None else time.monotonic() - self._taken

    def note_waiting(self) -> None:
        """RunPod says that it is in the queue."""
        self._waited = time.monotonic()

    def note_taken(self, *, is_seen: bool) -> None:
        """A worker has it: RunPod says so, or its output has come, unseen before."""
        if self._taken is None:
            self._taken, self._was_taken_unseen = time.monotonic(), not is_seen

    def note_head(self, told_seconds: float | None, *, has_met_start: bool) -> None:
        """The head of the answer has come, and tells for how long the worker has had the job.

        Where it tells nothing, as RunPod's own image, the job counts as taken since it was known
        to wait, unless a worker had to be started for it.
        """
        assert self._taken is not None, "there is output"
        if told_seconds is not None:
            self._taken = min(self._taken, max(self.submitted, time.monotonic() - told_seconds))
        elif self._was_taken_unseen and not has_met_start:
            self._taken = self._waited

    def note_state(self, state: JobState) -> None:
        """What RunPod tells of its times."""
        self._delay_ms = state.delay_ms
        if state.status.is_terminal:
            self._execution_ms = state.execution_ms
