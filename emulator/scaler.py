"""Scaler: starts worker processes when jobs wait, stops them when they idle, replaces the dead.

One task decides how many workers there should be and one task per worker lives that worker's life.
Both sleep until something happens; nothing polls.
"""

import asyncio
import contextlib
import logging
import math
import secrets
import signal
from collections import Counter
from enum import StrEnum
from itertools import islice
from pathlib import Path

from emulator.queue import Queue
from emulator.settings import EndpointSettings
from emulator.worker_process import WorkerProcess, worker_command, worker_environment

log = logging.getLogger("emulator")


class State(StrEnum):
    """What a slot is doing."""

    UP = "up"
    """Starting, or running; which of the two the queue knows."""
    STOPPING = "stopping"
    UNHEALTHY = "unhealthy"
    """Crashed; waits before it is replaced."""


class Slot:
    """One worker the endpoint pays for, from the decision to start it to its very end."""

    def __init__(self) -> None:
        self.worker_id = secrets.token_hex(7)
        self.state = State.UP
        self.stop_asked = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.process: WorkerProcess | None = None


class Scaler:
    """The workers of one endpoint."""

    def __init__(
        self, settings: EndpointSettings, queue: Queue, base_url: str, api_key: str
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._base_url = base_url
        self._api_key = api_key
        self._slots: list[Slot] = []
        self._crashes = 0
        self._is_throttled = False
        self._directory: Path | None = None
        self._log_directory: Path | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, directory: Path, log_directory: Path) -> None:
        """Begin to scale; needs a running event loop."""
        self._directory, self._log_directory = directory, log_directory
        if self._settings.worker:
            self._task = asyncio.create_task(self._run(), name=f"scaler of {self._settings.id}")

    async def stop(self) -> None:
        """Stop every worker and return when none of their processes is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        tasks = [slot.task for slot in self._slots if slot.task is not None]
        for slot in list(self._slots):
            self._retire(slot, "the emulator stops")
        await asyncio.gather(*tasks)

    def crash(self) -> list[str]:
        """Kill every worker that runs, as if its machine had failed; their ids."""
        running = [slot for slot in self._slots if slot.process is not None]
        for slot in running:
            if slot.process is not None:
                slot.process.cut_off()
        return [slot.worker_id for slot in running]

    def throttle(self, is_throttled: bool) -> None:
        """While throttled no worker starts, as when RunPod has no GPU to give."""
        self._is_throttled = is_throttled
        self._queue.activity.ring()

    def count_states(self) -> Counter[str]:
        """How many workers are idle, initializing, running and unhealthy."""
        slots = {slot.worker_id: slot for slot in self._slots}
        by_hand = self._seen_of_late() - slots.keys()
        states = [self._state(worker_id, slots.get(worker_id)) for worker_id in [*slots, *by_hand]]
        throttled = self._wanted_workers() - len(self._up_slots()) if self._is_throttled else 0
        return Counter(states) + Counter(throttled=max(0, throttled))

    def _seen_of_late(self) -> set[str]:
        """The workers that have called within a lease, started by us or by hand."""
        since = self._queue.clock.now() - self._settings.lease_seconds
        return {id_ for id_, worker in self._queue.workers.items() if worker.seen_at > since}

    def _state(self, worker_id: str, slot: Slot | None) -> str:
        if slot is not None and slot.state is not State.UP:
            return slot.state.value
        worker = self._queue.workers.get(worker_id)
        if worker is None:
            return "initializing"
        if worker.is_unhealthy:
            return "unhealthy"
        return "running" if worker.held else "idle"

    # How many

    async def _run(self) -> None:
        while True:
            self._adjust()
            await self._queue.activity.wait(self._seconds_to_next_look())

    def _adjust(self) -> None:
        """Start what is missing, stop what has idled for long enough."""
        for slot in self._spent_slots():
            self._retire(slot, "it asked to be replaced")
        wanted = self._wanted_workers()
        up = self._up_slots()
        missing = 0 if self._is_throttled else wanted - len(up)
        for _ in range(missing):
            self._start_worker()
        for slot in self._idle_slots()[: max(0, len(up) - wanted)]:
            if self._idle_seconds(slot) >= self._settings.idle_timeout_seconds:
                self._retire(slot, "it was idle")

    def _up_slots(self) -> list[Slot]:
        """A stopping worker does not count, a crashed one that waits for its turn does."""
        return [slot for slot in self._slots if slot.state is not State.STOPPING]

    def _wanted_workers(self) -> int:
        settings = self._settings
        if settings.scaler == "request_count":
            wanted = math.ceil(self._active_jobs() / settings.scaler_value)
        else:
            wanted = self._wanted_by_delay()
        return max(settings.min_workers, min(settings.max_workers, wanted))

    def _active_jobs(self) -> int:
        """Jobs that ask for a worker; a queued one of low priority does not."""
        enough = math.ceil(self._settings.max_workers * self._settings.scaler_value)
        urgent = (job for job in self._queue.waiting.values() if not job.policy.low_priority)
        return len(self._queue.running) + len(list(islice(urgent, enough)))

    def _wanted_by_delay(self) -> int:
        """One worker for any job; one more than now when a job has waited too long."""
        up = len(self._up_slots())
        wait = self._longest_wait()
        if wait is None:
            return min(1, len(self._queue.running))
        return max(1, up + 1 if wait >= self._settings.scaler_value else up)

    def _longest_wait(self) -> float | None:
        now = self._queue.clock.now()
        oldest = next(iter(self._queue.waiting.values()), None)
        return None if oldest is None else now - oldest.created_at

    def _seconds_to_next_look(self) -> float | None:
        """When time alone can change the decision; None when only an event can."""
        settings = self._settings
        looks = [settings.idle_timeout_seconds - self._idle_seconds(s) for s in self._idle_slots()]
        wait = self._longest_wait()
        if settings.scaler == "queue_delay" and wait is not None:
            looks.append(settings.scaler_value - wait)
        due = [seconds for seconds in looks if seconds > 0]
        # A hair late rather than early: the moment must have passed when we look.
        return min(due) + 0.01 if due else None

    def _idle_slots(self) -> list[Slot]:
        """The slots whose worker has nothing to do, the longest idle first."""
        idle = [slot for slot in self._slots if self._state(slot.worker_id, slot) == "idle"]
        return sorted(idle, key=self._idle_seconds, reverse=True)

    def _idle_seconds(self, slot: Slot) -> float:
        return self._queue.clock.now() - self._queue.workers[slot.worker_id].idle_since

    def _spent_slots(self) -> list[Slot]:
        workers = self._queue.workers
        return [
            slot
            for slot in self._slots
            if slot.state is State.UP
            and slot.worker_id in workers
            and workers[slot.worker_id].is_spent
        ]

    # One worker's life

    def _start_worker(self) -> None:
        slot = Slot()
        self._slots.append(slot)
        slot.task = asyncio.create_task(self._live(slot), name=f"worker {slot.worker_id}")

    def _retire(self, slot: Slot, reason: str) -> None:
        if not slot.stop_asked.is_set():
            self._say(slot, f"stopping: {reason}")
            slot.state = State.STOPPING
            slot.stop_asked.set()
            self._queue.drain(slot.worker_id)

    async def _live(self, slot: Slot) -> None:
        try:
            if not await _happens(slot.stop_asked, self._settings.cold_start_delay_seconds):
                await self._run_process(slot)
        except OSError as error:
            await self._recover(slot, f"could not be started: {error}")
        finally:
            self._slots.remove(slot)
            self._queue.activity.ring()

    async def _run_process(self, slot: Slot) -> None:
        process = slot.process = await self._spawn(slot)
        self._say(slot, f"started (pid {process.pid}, log {process.log_path})")
        try:
            code = await self._exit_code(slot, process)
        except BaseException:
            await process.kill()
            raise
        worker = self._queue.workers.get(slot.worker_id)
        has_worked = worker is not None and worker.jobs_done > 0
        self._queue.lose_worker(slot.worker_id)
        self._crashes = 0 if has_worked else self._crashes
        if slot.stop_asked.is_set() or (code == 0 and has_worked):
            self._say(slot, f"stopped ({_exit_text(code)})")
            return
        await self._recover(slot, f"died ({_exit_text(code)}), last lines:\n{process.last_lines()}")

    async def _exit_code(self, slot: Slot, process: WorkerProcess) -> int:
        """Wait for the process to end, by itself or because it was asked to."""
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(slot.stop_asked.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result()
            return await process.stop(self._settings.stop_grace_seconds)
        finally:
            asked.cancel()
            ended.cancel()

    async def _recover(self, slot: Slot, what: str) -> None:
        """Report a crash, then keep the slot busy for a while, the longer the more crashes."""
        self._crashes += 1
        seconds = min(2.0 ** (self._crashes - 1), self._settings.max_backoff_seconds)
        self._say(slot, f"{what}\nnext start in {seconds:g} s", logging.ERROR)
        slot.state = State.UNHEALTHY
        await _happens(slot.stop_asked, seconds)

    async def _spawn(self, slot: Slot) -> WorkerProcess:
        assert self._directory is not None
        assert self._log_directory is not None
        name = f"{self._settings.id}-{slot.worker_id}"
        return await WorkerProcess.start(
            worker_command(self._settings),
            worker_environment(self._settings, slot.worker_id, self._base_url, self._api_key),
            self._directory / name,
            self._log_directory / f"{name}.log",
        )

    def _say(self, slot: Slot, what: str, level: int = logging.INFO) -> None:
        log.log(level, "endpoint %s: worker %s %s", self._settings.id, slot.worker_id, what)


def _exit_text(code: int) -> str:
    """`exit code 1`, or the name of the signal behind 128 + n."""
    with contextlib.suppress(ValueError):
        return signal.Signals(code - 128).name
    return f"exit code {code}"


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event for so long; True when it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return event.is_set()
