"""WorkSource: what the scaler and a worker's slot ask of an endpoint, whatever kind it is."""

from collections.abc import Sized
from typing import Protocol

from emulator.clock import Clock
from emulator.notifier import Notifier
from emulator.work.workers import Worker


class WorkSource(Protocol):
    """The work of one endpoint and the workers that do it: a `Queue` or a `Balancer`."""

    @property
    def clock(self) -> Clock:
        """What moments are measured by."""

    @property
    def activity(self) -> Notifier:
        """Notified when the need for workers may have changed."""

    @property
    def workers(self) -> dict[str, Worker]:
        """The workers that have shown themselves, by id."""

    @property
    def running(self) -> Sized:
        """What workers have in hand."""

    def urgent(self, enough: int) -> int:
        """How much waits and asks for workers; no need to count beyond `enough`."""

    def longest_wait(self) -> float | None:
        """For how long the first of what asks for a worker has waited."""

    def least_workers(self) -> int:
        """How many workers there must be, whatever the load."""

    def name_worker(self) -> str:
        """The id of a worker that is about to be started."""

    def prepare(self, worker_id: str) -> dict[str, str]:
        """The worker's process is about to start: its environment, beyond what all workers get."""

    def reason_to_replace(self, worker_id: str) -> str | None:
        """Why the worker should make room for a new one, if it should."""

    def drain(self, worker_id: str) -> None:
        """Give the worker nothing more to do."""

    def lose_worker(self, worker_id: str) -> None:
        """The worker is gone, with what it had in hand."""
