"""The pace of tokens: many streams that put one chunk out each, twenty times a second.

A timer for each stream would be most of the work. Here one task wakes for each millisecond that has
streams and serves them together, so that the stand-ins can hold thousands of them.
"""

import asyncio
import time
from typing import Final, Protocol

TOKENS_A_SECOND: Final = 20
SLOTS: Final = 50
"""Of one millisecond each: the time between two tokens of a stream."""
CHUNK_BYTES: Final = 240
"""About what vLLM sends for a token of a chat."""

_HEAD: Final = (
    b'data: {"id":"%b","object":"chat.completion.chunk","created":1800000000,"model":"%b",'
    b'"choices":[{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b}]}\n\n'
)


class Stream(Protocol):
    """What puts out a chunk when it is its turn."""

    def tick(self) -> bool:
        """Put the next chunk out; whether there are more."""
        ...


class Metronome:
    """Gives each of its streams a turn every twentieth of a second; without any it sleeps."""

    def __init__(self) -> None:
        self._slots: list[list[Stream]] = [[] for _ in range(SLOTS)]
        self._count = 0
        self._began = time.monotonic()
        self._served = 0
        """The last millisecond whose streams have had their turn."""
        self._has_streams = asyncio.Event()

    def add(self, stream: Stream) -> None:
        """Give it turns from now on; the first at once."""
        self._serve()
        if stream.tick():
            self._slots[self._served % SLOTS].append(stream)
            self._count += 1
            self._has_streams.set()

    def start(self) -> asyncio.Task[None]:
        """Begin to tick."""
        return asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            self._serve()
            if not self._count:
                self._has_streams.clear()
                await self._has_streams.wait()
            due = self._began + self._next() / 1000
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _next(self) -> int:
        """The next millisecond that has streams."""
        after = range(self._served + 1, self._served + SLOTS + 1)
        return next((at for at in after if self._slots[at % SLOTS]), self._served + SLOTS)

    def _serve(self) -> None:
        """Give turns to the streams of all milliseconds that have passed."""
        now = int((time.monotonic() - self._began) * 1000)
        if not self._count:
            self._served = now
        while self._served < now:
            self._served += 1
            slot = self._slots[self._served % SLOTS]
            if slot:
                before = len(slot)
                slot[:] = [stream for stream in slot if stream.tick()]
                self._count += len(slot) - before


def first_chunk(answer_id: bytes, model: bytes) -> bytes:
    """The chunk that names the role, which comes with the first token."""
    return _HEAD % (answer_id, model, b'"role":"assistant","content":""', b"null")


def token_chunk(answer_id: bytes, model: bytes, number: int, *, is_last: bool) -> bytes:
    """A token's chunk: its number, and the moment it was made by the clock that all share."""
    text = b"%d %.6f " % (number, time.monotonic())
    content = b'"content":"%b"' % text.ljust(48, b"x")
    return _HEAD % (answer_id, model, content, b'"stop"' if is_last else b"null")


def plain_answer(answer_id: str, model: str) -> dict[str, object]:
    """A whole chat completion of a few tokens."""
    message = {"role": "assistant", "content": "A short answer, all at once."}
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    }
