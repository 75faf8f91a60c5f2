"""Worker: what the platform knows of one worker from its calls, and the stops it owes it."""

from dataclasses import dataclass, field

from emulator.notifier import Notifier


@dataclass(eq=False, slots=True)
class StopOrder:
    """A job the worker has to stop."""

    is_due: bool = True
    is_delivered: bool = False


@dataclass(eq=False, slots=True)
class Worker:
    """One worker that asks for jobs; moments are seconds of the queue's clock."""

    id: str
    seen_at: float
    idle_since: float
    held: dict[str, float] = field(default_factory=dict)
    """Job id -> when it was taken. A job that was told to stop counts until it is really gone."""
    orders: dict[str, StopOrder] = field(default_factory=dict)
    jobs_done: int = 0
    is_draining: bool = False
    is_unhealthy: bool = False
    is_spent: bool = False
    """The worker asked to be replaced (`refresh_worker`)."""
    changed: Notifier = field(default_factory=Notifier)

    def has_due_orders(self) -> bool:
        """True when a stop is to be delivered now."""
        return any(order.is_due for order in self.orders.values())

    def order_stop(self, job_id: str) -> None:
        """Put the job on the stop list."""
        self.orders[job_id] = StopOrder()
        self.changed.notify()

    def release(self, job_id: str, now: float) -> None:
        """The worker no longer has this job, neither to run nor to stop."""
        self.orders.pop(job_id, None)
        if self.held.pop(job_id, None) is not None and not self.held:
            self.idle_since = now
