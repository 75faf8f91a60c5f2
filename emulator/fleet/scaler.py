"""Scaler: decides how many workers an endpoint has, from its work alone.

One task makes the decision each time the work notifies it or a worker has idled for long enough,
and one task per worker lives that worker's life (`emulator/fleet/slot.py`). Nothing polls.
"""

import asyncio
import contextlib
import logging
import math
from collections import Counter, deque
from pathlib import Path
from typing import Final

from emulator.fleet.slot import Backoff, Slot, Start, State, WorkerContext
from emulator.fleet.work_source import WorkSource
from emulator.road.road import Road
from emulator.settings import EndpointSettings

log = logging.getLogger("emulator")

MAX_STARTS: Final = 1000
"""Of workers' starts that are remembered, the latest."""


class Scaler:
    """The workers of one endpoint."""

    def __init__(
        self, settings: EndpointSettings, work: WorkSource, base_url: str, api_key: str
    ) -> None:
        self._settings = settings
        self._work = work
        self.road = Road(settings)
        self._base_url = base_url
        self._api_key = api_key
        self._slots: dict[Slot, asyncio.Task[None]] = {}
        self._backoff = Backoff(settings.min_backoff_seconds, settings.max_backoff_seconds)
        self.starts: deque[Start] = deque(maxlen=MAX_STARTS)
        self._is_throttled = False
        self._task: asyncio.Task[None] | None = None

    def start(self, directory: Path, log_directory: Path) -> None:
        """Begin to scale; needs a running event loop."""
        if self._settings.worker:
            context = WorkerContext(
                *(self._settings, self._work, self.road, self._base_url, self._api_key),
                *(directory, log_directory),
            )
            self._task = asyncio.create_task(self._run(context))
            self._task.add_done_callback(_report_failure)

    async def stop(self) -> None:
        """Stop every worker and return when none of their processes is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for slot in self._slots:
            slot.retire("the emulator stops")
        await asyncio.gather(*self._slots.values())
        self.road.cut()

    def crash(self) -> list[str]:
        """Kill every worker that runs, as if its machine had failed; their ids."""
        running = [slot for slot in self._slots if slot.state is State.UP]
        for slot in running:
            slot.cut_off()
        return [slot.worker_id for slot in running]

    def freeze(self, seconds: float, worker_id: str = "") -> list[str]:
        """Freeze the worker with this id, or all that run, for so long; the ids of those it hit."""
        meant = [slot for slot in self._slots if worker_id in ("", slot.worker_id)]
        return [slot.worker_id for slot in meant if slot.freeze(seconds)]

    def thaw(self) -> None:
        """Let all workers go on that are frozen."""
        for slot in self._slots:
            slot.thaw()

    def kill_stopping(self) -> None:
        """Kill the workers that are stopping: they get no more time."""
        for slot in self._slots:
            if slot.state is State.STOPPING:
                slot.cut_off()

    def throttle(self, is_throttled: bool) -> None:
        """While throttled no worker starts, as when RunPod has no GPU to give."""
        self._is_throttled = is_throttled
        self._work.activity.notify()

    def count_states(self) -> Counter[str]:
        """How many workers are idle, initializing, running, unhealthy and throttled."""
        states = self._states().values()
        throttled = self._wanted_workers() - len(self._up_slots()) if self._is_throttled else 0
        return Counter(states) + Counter(throttled=max(0, throttled))

    def ready_workers(self) -> list[str]:
        """The ids of the workers that can be given work, or have some."""
        states = self._states()
        return [worker_id for worker_id, state in states.items() if state in ("idle", "running")]

    def slots(self) -> list[tuple[Slot, str]]:
        """The workers that we started and that are not being stopped, each with its state."""
        return [(slot, self._state(slot.worker_id, slot)) for slot in self._up_slots()]

    # What there is

    def _states(self) -> dict[str, str]:
        """The state of every worker, started by us or by hand."""
        slots = {slot.worker_id: slot for slot in self._slots}
        by_hand = self._seen_of_late() - slots.keys()
        return {id_: self._state(id_, slots.get(id_)) for id_ in [*slots, *by_hand]}

    def _up_slots(self) -> list[Slot]:
        """A stopping worker does not count, a crashed one that waits for its turn does."""
        return [slot for slot in self._slots if slot.state is not State.STOPPING]

    def _idle_slots(self) -> list[Slot]:
        """The slots whose worker has nothing to do, the longest idle first."""
        idle = [slot for slot in self._slots if self._state(slot.worker_id, slot) == "idle"]
        return sorted(idle, key=self._idle_seconds, reverse=True)

    def _idle_seconds(self, slot: Slot) -> float:
        return self._work.clock.now() - self._work.workers[slot.worker_id].idle_since

    def _seen_of_late(self) -> set[str]:
        """The workers that have called within a lease, started by us or by hand."""
        since = self._work.clock.now() - self._settings.lease_seconds
        return {id_ for id_, worker in self._work.workers.items() if worker.seen_at > since}

    def _state(self, worker_id: str, slot: Slot | None) -> str:
        if slot is not None and slot.state is not State.UP:
            return slot.state.value
        worker = self._work.workers.get(worker_id)
        if worker is None:
            return "initializing"
        if worker.is_unhealthy:
            return "unhealthy"
        return "running" if worker.held else "idle"

    # What is wanted

    def _wanted_workers(self) -> int:
        settings = self._settings
        if settings.scaler == "request_count":
            wanted = math.ceil(self._active_jobs() / settings.scaler_value)
        else:
            wanted = self._wanted_by_delay()
        wanted = max(wanted, self._work.least_workers())
        return max(settings.min_workers, min(settings.max_workers, wanted))

    def _active_jobs(self) -> int:
        """What is being done and what asks to be done."""
        enough = math.ceil(self._settings.max_workers * self._settings.scaler_value)
        return len(self._work.running) + self._work.urgent(enough)

    def _wanted_by_delay(self) -> int:
        """One worker for any job; one more, when a job has waited too long and none is starting."""
        wait = self._work.longest_wait()
        if wait is None:
            return min(1, len(self._work.running))
        up = self._up_slots()
        is_starting = any(self._state(slot.worker_id, slot) == "initializing" for slot in up)
        is_late = wait >= self._settings.scaler_value and not is_starting
        return max(1, len(up) + is_late)

    # What is done about it

    async def _run(self, context: WorkerContext) -> None:
        while True:
            self._look_at_workers()
            self._adjust(context)
            await self._work.activity.wait(self._seconds_to_next_look())

    def _look_at_workers(self) -> None:
        for slot in self._slots:
            if slot.state is not State.UP:
                continue
            if slot.worker_id in self._work.workers:
                slot.note_ready()
            if reason := self._work.reason_to_replace(slot.worker_id):
                slot.retire(reason)

    def _adjust(self, context: WorkerContext) -> None:
        """Start what is missing, stop what has idled for long enough."""
        wanted = self._wanted_workers()
        up = len(self._up_slots())
        if not self._is_throttled:
            # A stopping worker still has its memory and its ports: it counts among those allowed.
            for _ in range(min(wanted - up, self._settings.max_workers - len(self._slots))):
                self._start_worker(context)
        for slot in self._idle_slots()[: max(0, up - wanted)]:
            if self._idle_seconds(slot) >= self._settings.idle_timeout_seconds:
                slot.retire("it was idle")

    def _start_worker(self, context: WorkerContext) -> None:
        slot = Slot(context, self._backoff)
        self.starts.append(slot.start)
        task = self._slots[slot] = asyncio.create_task(slot.live())
        task.add_done_callback(lambda _: self._remove(slot))
        task.add_done_callback(_report_failure)

    def _remove(self, slot: Slot) -> None:
        del self._slots[slot]
        self._work.activity.notify()

    def _seconds_to_next_look(self) -> float | None:
        """When time alone can change the decision; None when only an event can."""
        settings = self._settings
        looks = [settings.idle_timeout_seconds - self._idle_seconds(s) for s in self._idle_slots()]
        wait = self._work.longest_wait()
        if settings.scaler == "queue_delay" and wait is not None:
            looks.append(settings.scaler_value - wait)
        due = [seconds for seconds in looks if seconds > 0]
        # A hair late rather than early: the moment must have passed when we look.
        return min(due) + 0.01 if due else None


def _report_failure(task: asyncio.Task[None]) -> None:
    """A task of ours that fails is a mistake of ours, and must not go unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the scaler failed", exc_info=error)
