"""A daily budget in dollars for one endpoint, beyond which nothing is sent to it.

RunPod's /health tells how workers are, and is asked for that all day. What they cost is an
estimate: RunPod charges for those that run or start, and for each one's idle timeout behind that,
but not for those that it only keeps ready, which look the same as idle ones. When the budget is
spent, answers that workers are at go on. What only waits for a worker is given up, and nothing more
is submitted until the day ends or the budget is raised.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Final

from proxy.access.spending import Spent, next_day
from proxy.access.worker_costs import WorkerCosts
from proxy.backends.health import Health
from proxy.config.tables import EndpointConfig
from proxy.errors import InsufficientQuota

log = logging.getLogger(__name__)

UNSEEN_SECONDS: Final = 60.0
"""When RunPod has not told its workers for so long, the seconds of jobs count in their place."""


class PaidWorkers:
    """How many workers RunPod charges for, as a series of looks tells.

    An idle one counts for `idle_seconds` after it was busy. `active` ones count always.
    """

    def __init__(self, idle_seconds: float = 0, active: int = 0) -> None:
        self._idle_seconds = idle_seconds
        self._active = active
        self._busy: deque[tuple[float, int]] = deque()
        """What was busy, and when, not longer ago than that."""

    def count(
        self, health: Health, now: float, *, is_awaited: bool = False, is_working: bool = False
    ) -> int:
        """How many there are by this look; a request of ours may wait for a worker, or have one.

        One that starts while nothing waits is only made ready.
        """
        busy = max(health.busy, int(is_working))  # a load balancer's need not be told
        if (is_awaited or health.in_queue) and not health.takes_nothing:
            busy += health.initializing
        self._busy.append((now, busy))
        while now - self._busy[0][0] > self._idle_seconds:
            self._busy.popleft()
        there = max(busy, health.up + health.initializing)
        return max(self._active, min(there, max(number for _, number in self._busy)))


class Ceiling:
    """What one endpoint has cost today, and may cost. Without a budget it is never reached."""

    def __init__(self, name: str = "", costs: WorkerCosts | None = None) -> None:
        self.budget: float | None = None
        self._name = name
        self._costs = costs
        self._price = 0.0
        self._paid = PaidWorkers()
        self._look_again: Callable[[], None] = lambda: None
        self._is_working: Callable[[], bool] = lambda: False
        self._spent = Spent()
        self._day: date | None = None
        """The day that was spent on."""
        self._reached: date | None = None
        """The last day on which it was told that the budget is spent."""
        self._seen = float("-inf")
        """When RunPod last told how many workers there are, on the monotonic clock."""
        self._job_seconds = 0.0
        """What jobs took while it did not, and is not counted yet."""

    def set(
        self,
        config: EndpointConfig,
        look_again: Callable[[], None],
        is_working: Callable[[], bool] = lambda: False,
    ) -> None:
        """Hold the endpoint to its budget; `look_again` keeps looks at its workers going.

        `is_working`: whether a worker is at a call of ours.
        """
        self._is_working = is_working
        self.budget, self._price = config.daily_budget, config.price_per_second
        self._look_again = look_again
        if self.budget is None or self._costs is None:
            return
        self._paid = PaidWorkers(config.worker_idle_seconds or 0, config.active_workers or 0)
        if not self.is_reached:
            self._reached = None
        self._note(self._costs.today(self._name) if self._day is None else self._spent)
        look_again()

    def lift(self) -> None:
        """Hold the endpoint to no budget any more."""
        self.budget = None

    @property
    def dollars_today(self) -> float:
        """What was spent since midnight, in UTC."""
        return self._spent.dollars if self._day == self._today() else 0.0

    @property
    def is_reached(self) -> bool:
        """Whether the budget of the day is spent."""
        return self.budget is not None and self.dollars_today >= self.budget

    @property
    def reason(self) -> str:
        """Why nothing is sent to the endpoint, and until when."""
        return (
            f"its daily budget of ${self.budget:g} is spent (about ${self.dollars_today:.4g}); it "
            f"is used again from {self._resumes:%Y-%m-%d} 00:00 UTC on, or when the operator of "
            "this proxy raises daily_budget"
        )

    def check(self) -> None:
        """Raise InsufficientQuota if the budget is spent."""
        if self.is_reached:
            seconds = (self._resumes - self._now()).total_seconds()
            raise InsufficientQuota(
                f"The endpoint of this model is paused: {self.reason}.",
                retry_after_seconds=seconds,
            )

    async def note_look(self, health: Health | None, *, is_awaited: bool = False) -> None:
        """A look has found this; None if RunPod did not tell."""
        if self.budget is None or self._costs is None:
            return
        self._look_again()
        workers = None
        if health is not None:
            self._seen = time.monotonic()
            workers = self._paid.count(
                health, self._seen, is_awaited=is_awaited, is_working=self._is_working()
            )
        job_seconds, self._job_seconds = self._job_seconds, 0.0
        self._note(
            await self._costs.look(self._name, workers, price=self._price, job_seconds=job_seconds)
        )

    def note_job(self, seconds: float) -> None:
        """A worker has had a job for so long."""
        if self.budget is not None and time.monotonic() - self._seen > UNSEEN_SECONDS:
            self._job_seconds += seconds

    def _note(self, spent: Spent) -> None:
        today = self._today()
        if self._day is not None and self._day != today:
            log.info(
                "endpoint %s: about $%.2f of its daily budget of $%g were spent on %s",
                *(self._name, self._spent.dollars, self.budget, self._day),
            )
        self._day, self._spent = today, spent
        if self.is_reached and self._reached != today:
            self._reached = today
            log.warning("endpoint %s is paused: %s", self._name, self.reason)

    @property
    def _resumes(self) -> datetime:
        return next_day(self._now())

    def _today(self) -> date:
        return self._now().date()

    def _now(self) -> datetime:
        return datetime.now(UTC) if self._costs is None else self._costs.spending.now()
