"""Affinity: which worker a request to a load-balancing endpoint asks for, and how firmly."""

from dataclasses import dataclass
from typing import Final, Self

WORKER_HEADER: Final = "x-runpod-worker-id"
"""On a request the wish, on an answer the worker that gave it."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """The wish: a worker that is preferred, or the only one that will do."""

    worker_id: str = ""
    """Empty: any worker will do."""
    is_strict: bool = False
    resumes: bool = False
    """A worker that was scaled down is to be started again under its old id."""

    @classmethod
    def parse(cls, header: str) -> Self:
        """`ID`, `strict ID`, `strict-resume ID`, or nothing."""
        mode, _, worker_id = header.strip().partition(" ")
        if mode not in ("strict", "strict-resume"):
            return cls(header.strip())
        return cls(worker_id.strip(), is_strict=True, resumes=mode == "strict-resume")
