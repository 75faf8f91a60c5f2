"""The answer of a queue endpoint: the outputs of a job, read from RunPod."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from proxy.api.answer import NO_COURSE, Course, Head, whole
from proxy.backends.runpod.endpoint import JobStatus
from proxy.backends.runpod.failure import error_from, failure_of_sealed, model_start_failed
from proxy.backends.runpod.job import Job
from proxy.backends.runpod.wire import Reader, reader_for
from proxy.errors import DeadlinePassed, ProxyError, WorkerFailed
from proxy.memory import Memory
from proxy.telemetry.metrics import Metrics


class JobAnswer:
    """The Answer of a job.

    `on_head` is told the head, and the bytes that came with it.
    """

    def __init__(
        self,
        submit: Callable[[], Awaitable[Job]],
        *,
        wants_stream: bool,
        ends: tuple[bytes, ...],
        endpoint: str,
        metrics: Metrics,
        memory: Memory,
        on_head: Callable[[Head, bytes], None],
    ) -> None:
        self.head: Head | None = None
        self._submit: Callable[[], Awaitable[Job]] | None = submit
        """Holds the request's body; None as soon as RunPod has it."""
        self._wants_stream = wants_stream
        self._ends = ends
        self._endpoint = endpoint
        self._metrics = metrics
        self._memory = memory
        self._held = memory.reserve_for_answer()
        """For what the reader holds back."""
        self._on_head = on_head
        self._job: Job | None = None
        self._reader: Reader | None = None
        self._pieces: AsyncGenerator[bytes] | None = None

    @property
    def job_id(self) -> str | None:
        """The job's id, once RunPod has taken it."""
        return self._job.id if self._job else None

    @property
    def road(self) -> str:
        """The road by which the job's outputs come, and what is in the way of the other."""
        return self._job.road if self._job else ""

    @property
    def course(self) -> Course:
        """How the job went so far."""
        return self._job.course if self._job else NO_COURSE

    @property
    def is_waiting(self) -> bool:
        """Whether the job is not taken yet, or in RunPod's queue."""
        return self._job is None or self._job.status is JobStatus.IN_QUEUE

    async def open(self) -> bytes:
        """Submit the job, and follow it to its first output."""
        assert self._submit is not None, "it is opened once"
        self._job = await self._submit()
        if self._submit is None:  # it was closed just before this
            self._job.close()
        self._submit = None
        self._pieces = self._read(self._job)
        async for piece in self._pieces:
            if self.head is not None:
                if self.head.start_failed is not None:
                    raise model_start_failed(await self._message(piece))
                self._on_head(self.head, piece)
                return piece
        raise WorkerFailed("The worker finished without an answer.")

    async def pieces(self) -> AsyncIterator[bytes]:
        """Follow the job to its end."""
        assert self._pieces is not None, "open() comes first"
        async for piece in self._pieces:
            yield piece

    def close(self) -> None:
        """Cancel the job unless it has ended."""
        self._submit = self._reader = self._pieces = None
        self._held.release()
        if self._job is not None:
            self._job.close()

    async def _read(self, job: Job) -> AsyncGenerator[bytes]:
        async with aclosing(job.follow()) as polls:
            async for outputs in polls:
                piece = self._feed(job, outputs)
                if self._reader is not None and self._reader.ended:
                    # The answer is whole, though RunPod may take a while to say so.
                    job.has_ended = True
                    job.close()
                    yield piece
                    return
                yield piece
        recovery = asyncio.create_task(self._recover(job))
        try:
            while not await job.deadlines.wait(recovery, job.keep_alive_seconds):
                yield b""
            yield recovery.result()
        finally:
            recovery.cancel()

    def _feed(self, job: Job, outputs: list[Any]) -> bytes:
        if self._reader is None:
            if not outputs:
                return b""
            self._reader = self._reader_for(job, outputs[0])
        if job.has_lost_a_poll:
            self._reader.distrust_stream()
        piece = self._reader.feed(outputs)
        self._held.resize(self._reader.held_bytes)
        self.head = self._reader.head
        job.note_read(self._reader)
        return piece

    async def _message(self, beginning: bytes) -> Any:
        """The message of the error envelope that begins so."""
        body = await whole(self, beginning, self._memory.reserve_for_answer())
        try:
            return msgspec.json.decode(body)["error"]["message"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    async def _recover(self, job: Job) -> bytes:
        """The job has ended, but the answer is not whole: ask for the rest, or the reason."""
        state = await job.result()
        late = job.late_frames()
        job.close()
        match state.status:
            case JobStatus.FAILED if job.seal is not None and self._reader is None:
                raise failure_of_sealed(state.error)
            case JobStatus.FAILED:
                raise error_from(state.error)
            case JobStatus.TIMED_OUT:
                raise DeadlinePassed("RunPod ended the job because it took too long.")
            case JobStatus.CANCELLED:
                raise WorkerFailed("The job was cancelled on RunPod's side.")
        if state.error:
            raise error_from(state.error)
        return self._feed(job, late) + self._complete(job, state.output)

    def _complete(self, job: Job, output: Any) -> bytes:
        if self._reader is None:
            if not output:
                raise WorkerFailed("The worker finished without an answer.")
            first = output[0] if isinstance(output, list) else output
            self._reader = self._reader_for(job, first)
        try:
            rest = self._reader.complete(output)
        except ProxyError:
            self._metrics.note_repair(self._endpoint, lost=self._reader.lost, repaired=0)
            raise
        self._metrics.note_repair(
            self._endpoint, lost=self._reader.lost, repaired=self._reader.lost
        )
        self.head = self._reader.head
        return rest

    def _reader_for(self, job: Job, output: Any) -> Reader:
        unseal = None if job.seal is None else job.seal.open
        return reader_for(output, wants_stream=self._wants_stream, ends=self._ends, unseal=unseal)
