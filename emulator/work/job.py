"""Job: one unit of queued work, its states, and the JSON RunPod shows for it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from emulator.clock import Timer
from emulator.notifier import Notifier


class Status(StrEnum):
    """Where a job stands, in RunPod's words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_terminal(self) -> bool:
        """True when the job will not move again by itself."""
        return self not in (Status.IN_QUEUE, Status.IN_PROGRESS)


class Absent:
    """The type of ABSENT: a value that was never set, as opposed to null."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


@dataclass(frozen=True, slots=True)
class Policy:
    """What a client may ask of one job."""

    execution_timeout_seconds: float
    ttl_seconds: float
    low_priority: bool = False


@dataclass(eq=False, slots=True)
class Job:
    """One job. Only the queue changes it; moments are seconds of the queue's clock."""

    id: str
    input: dict[str, Any]
    policy: Policy
    retention_seconds: float
    created_at: float
    extras: dict[str, Any] = field(default_factory=dict)
    """What stood beside the input and is not ours to act on, handed to the worker as it came."""

    status: Status = Status.IN_QUEUE
    worker_id: str | None = None
    retries: int = 0
    started_at: float = 0
    seen_at: float = 0
    """When its worker last gave a sign of this job; its lease runs from here."""
    finished_at: float = 0
    expires_at: float | None = None
    """When it is forgotten, in place of the ends of its TTL and its retention."""
    output: Any = ABSENT
    error: Any = ABSENT
    chunks: list[Any] = field(default_factory=list)
    is_forgotten: bool = False
    """True once its TTL or retention has passed: every call for it is answered 404."""
    changed: Notifier = field(default_factory=Notifier)
    timer: Timer | None = None

    @property
    def is_over(self) -> bool:
        """True when there is nothing left to wait for."""
        return self.is_forgotten or self.status.is_terminal

    def has_news(self) -> bool:
        """True when a call to /stream has something to answer."""
        return bool(self.chunks) or self.is_over

    def drain(self) -> list[dict[str, Any]]:
        """The chunks no client has read yet, as stream items; a second call has none of them."""
        chunks, self.chunks = self.chunks, []
        return [{"output": chunk} for chunk in chunks]

    def view(self) -> dict[str, Any]:
        """What /status shows: keys in alphabetical order, absent ones left out."""
        facts: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if self.worker_id is not None:
            facts["workerId"] = self.worker_id
            facts["delayTime"] = _milliseconds(self.started_at - self.created_at)
            if self.status.is_terminal:
                facts["executionTime"] = _milliseconds(self.finished_at - self.started_at)
        if self.retries:
            facts["retries"] = self.retries
        facts |= {"output": self.output, "error": self.error}
        return {key: facts[key] for key in sorted(facts) if facts[key] is not ABSENT}

    def for_worker(self) -> dict[str, Any]:
        """What a worker is handed. RunPod drops an empty input on the way, and so do we."""
        handed: dict[str, Any] = {"id": self.id, **self.extras}
        if self.input:
            handed["input"] = self.input
        return dict(sorted(handed.items()))


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
