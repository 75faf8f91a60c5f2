"""Batches: many jobs that are collected first, then queued at once, and counted together.

RunPod gives them workers of their own, at an hour that suits it; here their jobs are queued with
the others. Each of them carries its batch's id as `batchId` to the worker.
"""

import secrets
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from emulator.errors import BadRequest, NotFound
from emulator.work.job import Job, Status
from emulator.work.queue import Queue
from emulator.work.submission import Submission

MAX_ACTIVE_BATCHES: Final = 10
MAX_REQUESTS: Final = 5_000


@dataclass(eq=False, slots=True)
class Request:
    """One job of a batch, before and after it is queued under the same id."""

    submission: Submission
    id: str = field(default_factory=lambda: f"{uuid.uuid4()}-u1")
    job: Job | None = None

    @property
    def status(self) -> Status:
        """Where the job stands; one whose TTL has passed counts as timed out."""
        if self.job is None:
            return Status.IN_QUEUE
        if self.job.is_forgotten and not self.job.status.is_terminal:
            return Status.TIMED_OUT
        return self.job.status


@dataclass(eq=False, slots=True)
class Batch:
    """A collection of jobs; a draft until it is finalized."""

    id: str
    created_at_ms: int
    name: str = ""
    requests: dict[str, Request] = field(default_factory=dict)
    is_draft: bool = True
    is_cancelled: bool = False

    @property
    def status(self) -> str:
        """In RunPod's words; a cancelled batch is so once nothing of it runs any more."""
        if self.is_draft:
            return "DRAFT"
        has_ended = self.is_cancelled and not self.count()[Status.IN_PROGRESS]
        return "CANCELLED" if has_ended else "FINALIZED"

    @property
    def is_active(self) -> bool:
        """True while there is anything in it left to do."""
        is_done = all(request.status.is_terminal for request in self.requests.values())
        return self.is_draft or not (self.is_cancelled or is_done)

    def count(self) -> Counter[Status]:
        """How many requests are in each state."""
        return Counter(request.status for request in self.requests.values())


class Batches:
    """The batches of one endpoint."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._batches: dict[str, Batch] = {}

    def create(self, submissions: list[Submission]) -> Batch:
        """A new draft with these requests."""
        if sum(batch.is_active for batch in self._batches.values()) >= MAX_ACTIVE_BATCHES:
            raise BadRequest(f"more than {MAX_ACTIVE_BATCHES} active batches")
        batch = Batch(f"batch_{secrets.token_hex(8)}", round(time.time() * 1000))
        self.add(batch, submissions)
        self._batches[batch.id] = batch
        return batch

    def get(self, batch_id: str) -> Batch:
        """The batch of this id, or NotFound."""
        try:
            return self._batches[batch_id]
        except KeyError:
            raise NotFound("batch not found") from None

    def newest_first(self) -> list[Batch]:
        """Every batch."""
        return list(reversed(self._batches.values()))

    def add(self, batch: Batch, submissions: list[Submission]) -> None:
        """Put more requests into a draft."""
        _refuse_unless_draft(batch)
        if len(batch.requests) + len(submissions) > MAX_REQUESTS:
            raise BadRequest(f"more than {MAX_REQUESTS} requests in a batch")
        new = [Request(submission) for submission in submissions]
        batch.requests |= {request.id: request for request in new}

    def remove(self, batch: Batch, request_id: str) -> None:
        """Take a request out of a draft."""
        _refuse_unless_draft(batch)
        if batch.requests.pop(request_id, None) is None:
            raise NotFound("request not found")

    def finalize(self, batch: Batch) -> None:
        """Queue every request of a draft."""
        _refuse_unless_draft(batch)
        batch.is_draft = False
        for request in batch.requests.values():
            submission = request.submission
            extras = {**submission.extras, "batchId": batch.id}
            request.job = self._queue.submit(
                submission.input, submission.policy, extras, job_id=request.id
            )

    def cancel(self, batch: Batch) -> None:
        """Cancel what waits; what runs may end."""
        batch.is_draft = False
        batch.is_cancelled = True
        for request in batch.requests.values():
            if request.job is not None and request.status is Status.IN_QUEUE:
                self._queue.cancel(request.id)

    def forget(self) -> None:
        """Forget every batch."""
        self._batches.clear()

    def summary(self, batch: Batch, endpoint_id: str) -> dict[str, Any]:
        """What RunPod shows of a batch."""
        counts = batch.count()
        named = {"name": batch.name} if batch.name else {}
        return {
            "id": batch.id,
            "endpointId": endpoint_id,
            "status": batch.status,
            **named,
            "requestTotal": len(batch.requests),
            "requestInProgress": counts[Status.IN_PROGRESS],
            "requestCompleted": counts[Status.COMPLETED],
            "requestFailed": counts[Status.FAILED] + counts[Status.TIMED_OUT],
            "createdAt": batch.created_at_ms,
        }

    def view(self, request: Request) -> dict[str, Any]:
        """What RunPod shows of one request of a batch."""
        shown: dict[str, Any] = {"id": request.id, "status": request.status.value}
        if request.job is None:
            return shown
        job = request.job.view()
        shown |= {key: job[key] for key in ("output", "error") if key in job}
        if request.job.worker_id is not None:
            shown["startedAt"] = self._wall_time(request.job.started_at)
        if request.job.status.is_terminal:
            shown["completedAt"] = self._wall_time(request.job.finished_at)
        return shown

    def _wall_time(self, moment: float) -> str:
        seconds = time.time() - (self._queue.clock.now() - moment)
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refuse_unless_draft(batch: Batch) -> None:
    if not batch.is_draft:
        raise BadRequest("the batch is final")
