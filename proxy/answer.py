"""A job's answer as it comes: first its head, then its bytes, or the error that it ended in."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from proxy.endpoint import JobStatus
from proxy.errors import DeadlinePassed, WorkerFailed
from proxy.failure import error_from
from proxy.jobs import Job
from proxy.wire import Head, Reader, reader_for


class Answer:
    """What the worker answers to one request. One reader at a time may take pieces from it."""

    def __init__(self, job: Job, *, wants_stream: bool) -> None:
        self.job = job
        self.head: Head | None = None
        """Known once `open` has returned."""
        self._wants_stream = wants_stream
        self._reader: Reader | None = None
        self._pieces = self._read()

    async def open(self) -> bytes:
        """Wait for the head, and return the bytes that came with it."""
        async for piece in self._pieces:
            if self.head is not None:
                return piece
        raise WorkerFailed("The worker finished without an answer.")

    async def pieces(self) -> AsyncIterator[bytes]:
        """What follows, as it comes; a piece is empty when nothing came for a while."""
        async for piece in self._pieces:
            yield piece

    async def rest(self) -> bytes:
        """What follows, in one."""
        return b"".join([piece async for piece in self._pieces])

    async def _read(self) -> AsyncGenerator[bytes]:
        async with aclosing(self.job.follow()) as polls:
            async for outputs in polls:
                piece = self._feed(outputs)
                if self._reader is not None and self._reader.ended:
                    # The answer is whole, though RunPod may take a while to say so.
                    self.job.has_ended = True
                    self.job.close()
                    yield piece
                    return
                yield piece
        yield await self._recover()

    def _feed(self, outputs: list[Any]) -> bytes:
        if self._reader is None:
            if not outputs:
                return b""
            self._reader = reader_for(outputs[0], wants_stream=self._wants_stream)
        if self.job.has_lost_a_poll:
            self._reader.doubt()
        piece = self._reader.feed(outputs)
        self.head = self._reader.head
        return piece

    async def _recover(self) -> bytes:
        """The job has ended, but the answer is not whole: ask for the rest, or the reason."""
        state = await self.job.result()
        self.job.close()
        match state.status:
            case JobStatus.FAILED:
                raise error_from(state.error)
            case JobStatus.TIMED_OUT:
                raise DeadlinePassed("RunPod ended the job because it took too long.")
            case JobStatus.CANCELLED:
                raise WorkerFailed("The job was cancelled on RunPod's side.")
        if state.error:
            raise error_from(state.error)
        return self._complete(state.output)

    def _complete(self, output: Any) -> bytes:
        if self._reader is None:
            if not output:
                raise WorkerFailed("The worker finished without an answer.")
            first = output[0] if isinstance(output, list) else output
            self._reader = reader_for(first, wants_stream=self._wants_stream)
        rest = self._reader.complete(output)
        self.head = self._reader.head
        return rest
