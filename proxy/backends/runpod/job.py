"""One job in flight: followed to its end, by polls or by a channel, under its deadlines."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from proxy.api.answer import Course
from proxy.api.call import OnSpent
from proxy.backends.auto_reset_event import AutoResetEvent
from proxy.backends.deadlines import Deadlines, pause
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.refusals import Gust
from proxy.backends.runpod.direct.road import Invitation
from proxy.backends.runpod.endpoint import Endpoint, JobState, JobStatus, StreamPage
from proxy.backends.runpod.job_clock import JobClock
from proxy.backends.runpod.wire import Reader
from proxy.errors import (
    JobNotFound,
    NotSent,
    ProxyError,
    UpstreamBusy,
    UpstreamMisconfigured,
    UpstreamUnavailable,
    WorkerFailed,
)

if TYPE_CHECKING:
    from proxy.backends.runpod.sealing import Seal

LATE_SECONDS = 0.5
"""How much longer than asked for a poll may take before its reader is told that nothing came."""
LOOK_SECONDS = 10.0
"""How often RunPod is asked how a job stands whose frames come by a channel."""
LAST_POLL_SECONDS = 1.0
"""How long a poll may go on whose job's last frame has come by a channel."""
RESULT_TRIES = 4
FORGOTTEN = "RunPod does not know the job (any more), though it has taken it."


class Job:
    """One job in flight. Its holder calls `close` in the end, whatever happens.

    `on_close` is told the job, and whether a worker is known to work on it. With an invitation the
    worker may send its frames by a channel.
    """

    def __init__(
        self,
        job_id: str,
        endpoint: Endpoint,
        monitor: HealthMonitor,
        deadlines: Deadlines,
        *,
        on_close: Callable[["Job", bool], None],
        on_spent: OnSpent,
        invitation: Invitation | None = None,
        seal: "Seal | None" = None,
    ) -> None:
        self.id = job_id
        self.status = JobStatus.IN_QUEUE
        """As RunPod says; IN_QUEUE also while the worker that has it is not known to be up."""
        self.has_ended = False
        """Nothing is left to cancel: RunPod says so, or the answer is complete."""
        self.has_lost_a_poll = False
        """The answer of a poll broke; it may have handed outputs out."""
        self.deadlines = deadlines
        self.on_spent = on_spent
        self._endpoint = endpoint
        self._monitor = monitor
        self._on_close = on_close
        self._clock = JobClock()
        self._worker_id: str | None = None
        """Of a worker that has the job and may still be loading its model."""
        self.has_output = False
        self._is_closed = False
        self._failures = 0
        """Of polls in a row."""
        self._failure: ProxyError | None = None
        """The last of them."""
        self._gust = Gust()
        self.invitation = invitation
        self.seal = seal
        """Opens its frames, if its input was sealed."""
        self._has_head = False
        self._changed = invitation.inbox.changed if invitation else AutoResetEvent()
        """Rings when a poll is done, and when something comes by the channel."""
        self._polling: asyncio.Task[StreamPage] | None = None
        self._asked = self._hold_seconds = 0.0
        """When the poll under way began, and how long RunPod was asked to hold it."""
        self._next_poll = 0.0
        """Not before this is the next one made."""
        self.polled_outputs = 0
        self._quick_returns = 0
        """Of polls in a row that were not held and brought nothing."""
        self._page: StreamPage | None = None
        """What is being yielded; it holds its reservation."""
        self._is_over = False
        """The job has ended, and its last poll was empty."""
        self._looking: asyncio.Task[None] | None = None
        self._next_look = time.monotonic() + LOOK_SECONDS

    @property
    def keep_alive_seconds(self) -> float:
        """How long one turn of `follow` may take."""
        return self.deadlines.terms.keep_alive_seconds

    @property
    def road(self) -> str:
        """The road that its outputs come by, and what is in the way of the channel.

        Empty where there can be no channel, or nothing has come.
        """
        if self.invitation is None or not self.has_output:
            return ""
        return ":".join(filter(None, (self.invitation.road, self.invitation.reason)))

    @property
    def worker_seconds(self) -> float:
        """How long a worker has had the job so far."""
        return self._clock.worker_seconds

    @property
    def course(self) -> Course:
        """How it went so far; in RunPod's words, where it was asked for something else anyway."""
        return Course(
            queue_seconds=self._clock.queue_seconds,
            execution_seconds=self._clock.execution_seconds,
            endpoint_id=self._endpoint.id,
            submitted=self._clock.submitted,
            endpoint=self._endpoint.name,
            work_id=self.id,
        )

    async def follow(self) -> AsyncGenerator[list[Any]]:
        """Yield outputs as they come until the job has ended and all of them have come.

        They come by polls, and by the channel to the worker where there is one: then RunPod is
        asked only now and then whether the job has ended. A turn in which nothing came yields an
        empty list, so the caller is back at work at least every `keep_alive_seconds` or so. A poll
        that fails is repeated until a deadline, one that is refused until that is to be believed.

        Raises:
            ColdStartTimeout, DeadlinePassed: a deadline passed.
            UpstreamUnavailable: it passed while RunPod could not be reached.
            Stopping: the proxy is shutting down.
            InsufficientQuota: it waits for a worker, and the endpoint's daily budget is spent.
            UpstreamMisconfigured: RunPod refuses our key.
            WorkerFailed: RunPod does not know the job.
        """
        while not self._is_over:
            if not self._clock.is_taken:
                self._monitor.ceiling.check()
            wait_seconds = min(self.keep_alive_seconds, self.deadlines.seconds_left(self._failure))
            outputs = self._come()
            if not outputs and not self._is_over:
                await self._wait(wait_seconds)
                outputs = self._come()
            handed_out = time.monotonic()
            yield outputs
            self.deadlines.exclude(time.monotonic() - handed_out)
            self._page = None
            if self.invitation is not None:
                self.invitation.inbox.note_consumed()

    def note_read(self, reader: Reader) -> None:
        """What was yielded has been read: the worker is told, and what its head says is known."""
        if self.invitation is not None:
            self.invitation.inbox.note_read(reader.passed)
        if reader.head is not None and not self._has_head:
            self._has_head = True
            has_met_start = self._monitor.clock.has_met_start(self._clock.submitted)
            self._clock.note_head(reader.worker_seconds, has_met_start=has_met_start)
            if self.invitation is not None:
                self.invitation.note_head(reader.channel)

    def late_frames(self) -> list[Any]:
        """What has come by the channel since the last turn of `follow`."""
        return [] if self.invitation is None else self.invitation.inbox.take()

    async def result(self) -> JobState:
        """What RunPod says of the ended job, with its aggregate output.

        Raises UpstreamUnavailable, UpstreamMisconfigured and WorkerFailed, as `follow` does.
        """
        self.deadlines.note_ended()
        tries = 0
        for attempt in itertools.count():
            try:
                state = await self._ask()
            except (JobNotFound, UpstreamMisconfigured) as exc:
                self._refusal(exc)
            except UpstreamUnavailable:
                if (tries := tries + 1) == RESULT_TRIES:
                    raise
            else:
                # It can lag behind what /stream said.
                if state.status.is_terminal or (tries := tries + 1) == RESULT_TRIES:
                    return state
            await asyncio.sleep(pause(attempt))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Give the job up: it is cancelled unless it has ended. Closing twice does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._page = None
            for call in (self._polling, self._looking):
                if call is not None:
                    call.add_done_callback(lambda call: call.cancelled() or call.exception())
                    if self.has_ended:  # RunPod will end it; cancelled, it costs the connection
                        asyncio.get_running_loop().call_later(LAST_POLL_SECONDS, call.cancel)
                    else:
                        call.cancel()
            if self.invitation is not None:  # the worker hears of it sooner than by RunPod
                self.invitation.close(has_ended=self.has_ended)
            self._on_close(self, self.has_output)

    @property
    def _is_carried(self) -> bool:
        """Whether outputs come by a channel, so that there is nothing to poll."""
        is_carried = self.invitation is not None and self.invitation.inbox.is_carried
        return is_carried and not self.has_ended

    def _come(self) -> list[Any]:
        """What has come by either road since the last time."""
        self._changed.clear()
        outputs: list[Any] = []
        if self._polling is not None and self._polling.done():
            outputs = self._polled(self._polling)
        if self.invitation is not None and (frames := self.invitation.inbox.take()):
            self._note(JobStatus.IN_PROGRESS, frames)
            outputs = outputs + frames
        return outputs

    async def _wait(self, wait_seconds: float) -> None:
        """Wait for something to come, having asked for it where it does not come by itself.

        A poll may have to wait for its turn, or RunPod be slow. It goes on then: what it hands out
        would not be given again.
        """
        pause_seconds = self._next_poll - time.monotonic()
        if self._is_carried:
            wait_seconds = min(wait_seconds, self._seconds_until_look())
        elif self._polling is None and pause_seconds > 0:
            wait_seconds = min(wait_seconds, pause_seconds)
        else:
            if self._polling is None:
                self._begin_poll(wait_seconds)
            wait_seconds += LATE_SECONDS
        await self._changed.wait(wait_seconds)

    def _begin_poll(self, wait_seconds: float) -> None:
        if self.invitation is not None:
            self.invitation.dial()
        self._asked, self._hold_seconds = time.monotonic(), wait_seconds
        self._polling = asyncio.create_task(
            self._endpoint.stream(self.id, wait_seconds=wait_seconds, urgent=not self.has_output)
        )
        self._polling.add_done_callback(self._ring)

    def _polled(self, poll: asyncio.Task[StreamPage]) -> list[Any]:
        """The outputs of a poll that is done; when the next one is due."""
        self._polling = None
        now = time.monotonic()
        try:
            page = self._page = poll.result()
        except (UpstreamUnavailable, UpstreamMisconfigured, JobNotFound) as exc:
            self._note_failure(exc)
            # A longer pause that RunPod asks for is kept by the budget of all calls.
            self._next_poll = now + pause(self._failures)
            return []
        self._note(page.status, page.outputs)
        self._next_look = now + LOOK_SECONDS
        self.polled_outputs += len(page.outputs)
        if page.status is JobStatus.IN_PROGRESS and self.status is JobStatus.IN_QUEUE:
            self._look(self._ask_for_worker)
        if page.outputs:
            self._quick_returns = 0
        elif self.has_ended:
            self._is_over = True
        elif now - self._asked < self._hold_seconds / 2:
            # A platform that does not hold the call must not make us spin. The first pause is
            # 0.1 s at most, since one quick return may be a change of the job's state.
            self._quick_returns += 1
            self._next_poll = now + min(pause(self._quick_returns - 2), 1.0)
        return page.outputs

    def _seconds_until_look(self) -> float:
        """Until RunPod is asked again how a job stands whose outputs come by a channel."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._look(self._ask_for_end)
        return self._next_look - now

    def _look(self, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Ask RunPod how the job stands, while its outputs go on coming."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(ask())
            self._looking.add_done_callback(self._ring)

    def _ring(self, _: asyncio.Future[Any]) -> None:
        self._changed.set()

    async def _ask(self) -> JobState:
        """What /status says; the times that it tells are noted."""
        state = await self._endpoint.status(self.id)
        self._clock.note_state(state)
        return state

    async def _ask_for_end(self) -> None:
        """Learn whether the job has ended otherwise than by its last frame."""
        try:
            state = await self._ask()
        except (ProxyError, JobNotFound):
            return  # while frames come, RunPod may be out of reach
        self.has_ended = self.has_ended or state.status.is_terminal

    def _note_failure(self, exc: UpstreamUnavailable | UpstreamMisconfigured | JobNotFound) -> None:
        """Keep what a poll failed with, for the deadline that may pass meanwhile."""
        self._failures += 1
        if isinstance(exc, UpstreamUnavailable):
            self._failure = exc
            self.has_lost_a_poll |= not isinstance(exc, NotSent | UpstreamBusy)
        else:
            self._failure = self._refusal(exc)

    def _refusal(self, exc: JobNotFound | UpstreamMisconfigured) -> ProxyError:
        """What a refused call means; raised once refusals have lasted so long as to be believed.

        Whether the key is refused, all calls with it tell; whether a job is known, its own.
        """
        if isinstance(exc, JobNotFound):
            failure: ProxyError = WorkerFailed(FORGOTTEN)
            is_believed = self._gust.has_lasted()
        else:
            failure = exc
            is_believed = not self._endpoint.trust.outlasts_refusal()
        if is_believed:
            raise failure from None
        return failure

    def _note(self, status: JobStatus, outputs: list[Any]) -> None:
        self._failures, self._failure = 0, None
        self._gust.end()
        if outputs or status is JobStatus.IN_PROGRESS:
            self._clock.note_taken(is_seen=not outputs)
        if outputs:
            self.has_output = True
            self.deadlines.note_output()
        elif status is JobStatus.IN_QUEUE:
            self._worker_id = None
            self._clock.note_waiting()
            self.deadlines.note_requeued()
            self._monitor.request_updates()
        elif status.is_terminal or self._is_started:
            self.deadlines.note_started()
        else:
            status = JobStatus.IN_QUEUE
        self.status = status
        self.has_ended = self.has_ended or status.is_terminal

    @property
    def _is_started(self) -> bool:
        """Whether the worker that has the job is known to be up."""
        if self.has_output or self.status is not JobStatus.IN_QUEUE:
            return True
        workers = self._monitor.starts.workers
        return self._worker_id is not None and workers.has_answered(self._worker_id)

    async def _ask_for_worker(self) -> None:
        """Learn whether the worker that has the job, and has put nothing out yet, ever answered.

        Where RunPod does not say which worker it is, it counts as one that is up.
        """
        if self._worker_id is not None:
            return
        try:
            async with asyncio.timeout(self.deadlines.seconds_left()):
                state = await self._ask()
        except (ProxyError, JobNotFound, TimeoutError):
            return  # it is asked again after the next poll
        if state.status is JobStatus.IN_QUEUE:
            return
        self._worker_id = state.worker_id
        if state.worker_id is None or state.status.is_terminal or self._is_started:
            self.status = JobStatus.IN_PROGRESS
            self.deadlines.note_started()
