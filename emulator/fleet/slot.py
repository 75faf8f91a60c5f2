"""Slot: the life of one worker, from the decision to start it to the end of its last process."""

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from emulator.fleet.work_source import WorkSource
from emulator.fleet.worker_log import WorkerLog
from emulator.fleet.worker_process import WorkerProcess, worker_command, worker_environment
from emulator.road.road import Road
from emulator.settings import EndpointSettings

log = logging.getLogger("emulator")


class State(StrEnum):
    """What a slot is doing."""

    UP = "up"
    """Starting, or running; which of the two the work source knows."""
    STOPPING = "stopping"
    UNHEALTHY = "unhealthy"
    """Crashed; waits before it is replaced."""


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What the workers of one endpoint have in common."""

    settings: EndpointSettings
    work: WorkSource
    road: Road
    base_url: str
    api_key: str
    directory: Path
    log_directory: Path


@dataclass(slots=True)
class Start:
    """One start of a worker, for the control API; moments are Unix times."""

    worker: str
    started_at: float
    placed_at: float | None = None
    """When its process was there; None before that."""
    ready_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    """None as well for one that was stopped before it had a process."""


class Backoff:
    """The pause after a crash, which doubles as long as workers do nothing but crash."""

    def __init__(self, min_seconds: float, max_seconds: float) -> None:
        self._min_seconds = min_seconds
        self._max_seconds = max_seconds
        self._crashes = 0

    def reset(self) -> None:
        """A worker has worked: the next crash is the first again."""
        self._crashes = 0

    def next_seconds(self) -> float:
        """The pause after one more crash."""
        self._crashes += 1
        return min(self._min_seconds * 2.0 ** (self._crashes - 1), self._max_seconds)


class Slot:
    """One worker the endpoint pays for. `live()` is its whole life, in a task of its own."""

    def __init__(self, context: WorkerContext, backoff: Backoff) -> None:
        self.worker_id = context.work.name_worker()
        self.state = State.UP
        self._context = context
        self._backoff = backoff
        self.start = Start(self.worker_id, time.time())
        self._wanted_at = context.work.clock.now()
        self._is_ready = False
        self._stop_asked = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._thaw_timer: asyncio.TimerHandle | None = None
        self.log = WorkerLog()
        self.has_ended = False

    async def live(self) -> None:
        """Wait out the cold start, run the process, and after a crash the pause before the next."""
        try:
            delay_seconds = self._context.settings.cold_start_delay_seconds
            if await _happens(self._stop_asked, delay_seconds):
                return
            trouble = await self._run_process()
        except OSError as error:
            self._leave()
            trouble = f"could not be started: {error}"
        finally:
            self._forget_thaw()
            self._context.road.close(self.worker_id)
            self.start.ended_at = time.time()
            self.has_ended = True
        if trouble is not None:
            await self._pause(trouble)

    def retire(self, reason: str) -> None:
        """Give the worker nothing more to do and ask it to stop; harmless when done before."""
        if not self._stop_asked.is_set():
            self._say(f"stopping: {reason}")
            self.state = State.STOPPING
            self._stop_asked.set()
            self._context.work.drain(self.worker_id)

    def cut_off(self) -> None:
        """Kill the worker's processes, as if its machine had failed."""
        if self._process is not None:
            self._process.cut_off()

    def freeze(self, seconds: float) -> bool:
        """Stop the worker's processes for so long; False when it has none to stop."""
        if self.state is not State.UP or self._process is None or not self._process.freeze():
            return False
        self._forget_thaw()
        self._thaw_timer = asyncio.get_running_loop().call_later(seconds, self.thaw)
        self._say(f"frozen for {seconds:g} s")
        return True

    def thaw(self) -> None:
        """Let the worker's processes go on."""
        self._forget_thaw()
        if self._process is not None:
            self._process.thaw()

    def note_ready(self) -> None:
        """The worker can work: say so, once."""
        if not self._is_ready:
            self._is_ready = True
            self.start.ready_at = time.time()
            self._say(f"ready after {self._context.work.clock.now() - self._wanted_at:.1f} s")

    def _forget_thaw(self) -> None:
        if self._thaw_timer is not None:
            self._thaw_timer.cancel()
            self._thaw_timer = None

    async def _run_process(self) -> str | None:
        """Run the worker to its end; what went wrong, if something did."""
        process = self._process = await self._start_process()
        self.start.placed_at = time.time()
        self.log.follow(process.log_path)
        self._say(f"started (pid {process.pid}, log {process.log_path})")
        try:
            code = await self._exit_code(process)
        except BaseException:
            await process.kill()
            raise
        finally:
            self._process = None
        self.start.exit_code = code
        has_worked = self._leave()
        if self._stop_asked.is_set() or (code == 0 and has_worked):
            self._say(f"stopped ({_exit_text(code)})")
            return None
        return f"died ({_exit_text(code)}), last lines:\n{process.last_lines()}"

    async def _start_process(self) -> WorkerProcess:
        context = self._context
        name = f"{context.settings.id}-{self.worker_id}"
        own = context.work.prepare(self.worker_id) | context.road.open(self.worker_id)
        environment = worker_environment(
            context.settings, self.worker_id, context.base_url, context.api_key, own
        )
        return await WorkerProcess.start(
            worker_command(context.settings),
            environment,
            context.directory / name,
            context.log_directory / f"{name}.log",
        )

    async def _exit_code(self, process: WorkerProcess) -> int:
        """Wait for the process to end, by itself or because it was asked to."""
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result()
            return await process.stop(self._context.settings.stop_grace_seconds)
        finally:
            asked.cancel()
            ended.cancel()

    def _leave(self) -> bool:
        """Have the worker's work handed to others; True when it had finished any."""
        worker = self._context.work.workers.get(self.worker_id)
        self._context.work.lose_worker(self.worker_id)
        has_worked = worker is not None and worker.jobs_done > 0
        if has_worked:
            self._backoff.reset()
        return has_worked

    async def _pause(self, trouble: str) -> None:
        """Report a crash and keep the slot for a while, so that nothing takes its place."""
        seconds = self._backoff.next_seconds()
        self._say(f"{trouble}\nnext start in {seconds:g} s", logging.ERROR)
        self.state = State.UNHEALTHY
        await _happens(self._stop_asked, seconds)

    def _say(self, what: str, level: int = logging.INFO) -> None:
        self.log.add(f"worker {what.partition(chr(10))[0]}")
        log.log(level, "endpoint %s: worker %s %s", self._context.settings.id, self.worker_id, what)


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
