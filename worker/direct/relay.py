"""One job with a channel: vLLM's frames come in, and leave by the channel, the queue, or both.

Two sides work on one outbox. The *pump*, a task of its own, reads vLLM and sends what it makes at
once. The *queue side* is the generator that the SDK reads: it yields what is due for the queue, and
waits otherwise. The pump reads on while the channel has room, or, without one, when the queue side
has nothing left and waits: so pieces grow while an output is being posted, as without a channel.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from worker.direct.connection import Connection
from worker.direct.outbox import POST_AFTER_SECONDS, Frame, Outbox
from worker.outputs import Output

_USAGE: Final = re.compile(r'"usage":(\{(?:[^{}]|\{[^{}]*\})*\})')
_LAST_TEXTS: Final = 2
"""In how many of the last frames the usage is looked for: [DONE] may have one of its own."""


class Relay:
    """One job. `begin` and `end` are called with it, each once, when it does so."""

    def __init__(
        self,
        nonce: str,
        run: str,
        begin: Callable[["Relay"], None],
        end: Callable[["Relay"], None],
    ) -> None:
        self.nonce = nonce
        self._run = run
        self._on_begin = begin
        self._on_end = end
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._outbox = Outbox()
        self._connection: Connection | None = None
        self._pump: asyncio.Task[None] | None = None
        self._failure: Output | None = None
        self._last_texts: deque[str] = deque(maxlen=_LAST_TEXTS)
        self._cancelled = False
        self._hurries = False
        self._end_was_sent = False
        self._queue_waits = False
        self._news_for_queue = asyncio.Event()
        self._news_for_pump = asyncio.Event()

    async def outputs(self, source: AsyncGenerator[Output, None]) -> AsyncGenerator[Output, None]:
        """What the queue has to get of the outputs that this source makes."""
        self._pump = asyncio.create_task(self._read(source))
        self._pump.add_done_callback(lambda _: self._news_for_queue.set())
        self._end_with_job()
        self._on_begin(self)
        try:
            while not self._is_over:
                if due := self._outbox.take_due(self._loop.time()):
                    yield due if len(due) > 1 else due[0]
                else:
                    await self._wait_for_due()
            if (last := self._last_output()) is not None:
                yield last
        finally:
            self._end()

    # The channel's side

    def take(self, connection: Connection, first: int) -> None:
        """Send the frames from this number on over this connection."""
        self._connection = connection
        self._outbox.attach(first)
        self._send()
        self._news_for_pump.set()

    def got(self, received: int, consumed: int) -> None:
        """The proxy has acknowledged frames."""
        self._outbox.acknowledge(received, consumed)
        self._send()
        self._news_for_pump.set()
        if self._outbox.is_settled:
            self._news_for_queue.set()

    def cancel(self) -> None:
        """Stop vLLM now, and end the job."""
        self._cancelled = True
        if self._pump is not None:
            self._pump.cancel()
        self._news_for_queue.set()

    def lose(self, connection: Connection) -> None:
        """This connection is lost: the queue takes over."""
        if self._connection is connection:
            self._connection = None
            self._outbox.detach()
            self._news_for_queue.set()
            self._news_for_pump.set()

    def hurry(self) -> None:
        """Read vLLM without waiting for anybody, since the worker is about to end."""
        self._hurries = True
        self._news_for_pump.set()

    def _send(self) -> None:
        if self._connection is None:
            return
        for frame in self._outbox.to_send():
            self._connection.send_frame(self.nonce, frame)
        self._end_was_sent = self._outbox.ended and self._outbox.all_sent

    # vLLM's side

    async def _read(self, source: AsyncGenerator[Output, None]) -> None:
        async with aclosing(source):
            async for output in source:
                if not isinstance(output, dict) or "seq" not in output:
                    self._failure = output
                    return
                self._add(output)
                while not self._may_read:
                    self._news_for_pump.clear()
                    await self._news_for_pump.wait()

    def _add(self, frame: Frame) -> None:
        self._outbox.add(frame, self._loop.time())
        if text := frame.get("text"):
            self._last_texts.append(text)
        self._send()
        if self._connection is None:
            self._news_for_queue.set()

    @property
    def _may_read(self) -> bool:
        if self._hurries or self._outbox.ended:
            return True
        if self._connection is not None:
            return self._outbox.has_room
        return self._queue_waits and self._outbox.due_at is None

    # The queue's side

    @property
    def _is_over(self) -> bool:
        if self._cancelled or self._outbox.is_settled:
            return True
        if self._failure is None and self._pump is not None and self._pump.done():
            self._pump.result()
        return self._failure is not None

    async def _wait_for_due(self) -> None:
        """Wait until something may be due, or the job is over."""
        self._queue_waits = True
        self._news_for_queue.clear()
        if self._connection is None:
            self._news_for_pump.set()
        timer = self._loop.call_at(self._next_look_at(), self._news_for_queue.set)
        try:
            await self._news_for_queue.wait()
        finally:
            timer.cancel()
            self._queue_waits = False

    def _next_look_at(self) -> float:
        """A frame that comes in later is due later than this, so it needs no timer of its own."""
        due_at = self._outbox.due_at
        return self._loop.time() + POST_AFTER_SECONDS if due_at is None else due_at

    def _last_output(self) -> Output | None:
        """What ends the job where the queue does not have all of it, or the job has failed."""
        if self._failure is not None:
            return self._failure
        frames, posted = self._outbox.frames, self._outbox.posted
        if posted == frames and not self._cancelled:
            return None
        summary: dict[str, Any] = {
            "frames": frames,
            "posted": posted,
            "seconds": round(self._loop.time() - self._began_at, 3),
        }
        if usage := _usage(self._last_texts):
            summary["usage"] = usage
        if self._cancelled:
            summary["cancelled"] = True
        return {"run": self._run, "summary": summary}

    # The end

    def _end_with_job(self) -> None:
        """End when the SDK's task for this job ends, though the generator may stand at a `yield`.

        Nothing is raised in the generator then, and it is closed when it is garbage.
        """
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: self._end())

    def _end(self) -> None:
        if self._pump is None:
            return
        self._pump.cancel()
        self._pump = None
        self._on_end(self)
        if self._connection is not None and not self._end_was_sent:
            self._connection.send_gone(self.nonce)


def _usage(texts: "deque[str]") -> Any:
    """vLLM's usage, where it told it."""
    for text in reversed(texts):
        if found := _USAGE.findall(text):
            try:
                return json.loads(found[-1])
            except ValueError:
                return None
    return None
