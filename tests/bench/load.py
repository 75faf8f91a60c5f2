"""The load generator, a process of its own: a `Load` as JSON comes in, what was seen goes out.

`python -m tests.bench.load < load.json`. It opens so many streams over a ramp, holds them for a
window in which gaps, delays and the CPU time of the watched processes are counted, and reads each
to its end, so that lost and repeated chunks show. Plain requests are sent at an even rate.
"""

import asyncio
import re
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal, cast
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

from tests.bench.metronome import TOKENS_A_SECOND
from tests.bench.processes import cpu_seconds, memory_bytes

STALL_SECONDS: Final = 0.25
SHORT_TOKENS: Final = 4
"""Of the streams that are opened for their first token alone."""
AFTER_SECONDS: Final = 0.3
"""How much longer than the window the streams last."""
GRACE_SECONDS: Final = 30.0
"""How long an answer may take beyond what it should."""

_STAMP: Final = re.compile(rb'"content":\s*"(\d+) (\d+\.\d+) ')
_CONTENT: Final = re.compile(rb'"(?:content|reasoning_content|reasoning)":\s*"[^"]')

Kind = Literal["streams", "plain"]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask of one target."""

    url: str
    """The base URL as OpenAI's clients take it."""
    key: str
    model: str
    kind: Kind
    streams: int = 1
    starts: int = 0
    """Short streams before the others, one after the other, for their first tokens."""
    ramp_seconds: float = 1.0
    window_seconds: float = 5.0
    requests_a_second: float = 20.0
    """Of plain requests."""
    watched: tuple[int, ...] = ()
    """The processes whose CPU time counts."""
    is_stamped: bool = True
    """Whether a chunk tells when it was made, as our stand-ins' do."""
    tokens: int | None = None
    """Of each stream; as many as fill the window if it is not said."""
    prompt: str = "Count."


class Spread(msgspec.Struct, frozen=True):
    """What many values of one kind look like."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Of these values; None where there are none."""
        if not values:
            return None
        ordered = sorted(values)
        last = len(ordered) - 1

        def at(share: float) -> float:
            return ordered[round(share * last)]

        return cls(
            len(ordered), statistics.fmean(ordered), at(0.5), at(0.95), at(0.99), ordered[-1]
        )


class Seen(msgspec.Struct, kw_only=True):
    """What was seen of one target under one load; times in seconds."""

    first_token: Spread | None = None
    gap: Spread | None = None
    """Between two arrivals of a stream that brought something."""
    delay: Spread | None = None
    """From a chunk's making to its arrival."""
    plain: Spread | None = None
    """Of a plain request, from sending it to its last byte."""
    stalls: int = 0
    """Gaps of more than a quarter of a second, in the window."""
    chunks: int = 0
    """In the window."""
    tokens: int = 0
    """All that came, before and after it too."""
    lost: int = 0
    repeated: int = 0
    failed: dict[str, int] = {}
    """Requests that did not end well, by the reason."""
    asked: int = 0
    cpu_seconds: float = 0.0
    """Of the watched processes, in the window."""
    memory_bytes: int = 0
    """Of the watched processes in the middle of the window."""
    window_seconds: float = 0.0
    tokens_a_second: float | None = None
    """Of one stream; where chunks have no stamps."""


class Failed(Exception):
    """A request did not end well."""


class Exchange(asyncio.Protocol):
    """One request and its answer on a connection of its own; `watch` is told of what comes."""

    def __init__(self, request: bytes) -> None:
        self.status = 0
        self.body = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Failed(f"no HTTP: {error}"))
            return
        if not self.done.done() and self.status == 200:
            self.arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has closed it."""
        self._end(Failed("the connection was closed"))

    def on_status(self, status: bytes) -> None:
        """The first line has come (httptools)."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A part of the body (httptools)."""
        self.body += body

    def on_message_complete(self) -> None:
        """The answer is whole (httptools)."""
        if self.status != 200:
            self._end(
                Failed(f"HTTP {self.status}: {bytes(self.body[:200]).decode(errors='replace')}")
            )
            return
        self.arrived()
        self._end(None)

    def arrived(self) -> None:
        """Something of a good answer has come and is in `body`."""

    def close(self) -> None:
        """Let go of the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self, failure: Failed | None) -> None:
        if self.done.done():
            return
        if failure is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(failure)


class StreamExchange(Exchange):
    """A streamed chat; each event is looked at once and forgotten."""

    def __init__(self, request: bytes, run: "Run") -> None:
        super().__init__(request)
        self.numbers = 0
        self.first: float | None = None
        self.last = 0.0
        self._run = run
        self._has_done = False

    @property
    def is_whole(self) -> bool:
        """Whether `[DONE]` has come."""
        return self._has_done

    def arrived(self) -> None:
        """Look at the events that are whole by now."""
        end = self.body.rfind(b"\n") + 1
        if not end:
            return
        events = bytes(self.body[:end])
        del self.body[:end]
        self._has_done |= b"data: [DONE]" in events
        if self._run.load.is_stamped:
            self._note([(int(n), float(at)) for n, at in _STAMP.findall(events)])
        else:
            now = time.monotonic()
            self._note([(self.numbers + n, now) for n in range(len(_CONTENT.findall(events)))])

    def _note(self, chunks: list[tuple[int, float]]) -> None:
        if not chunks:
            return
        now = time.monotonic()
        run = self._run
        in_window = run.began <= now < run.ends
        if self.first is None:
            self.first = now
        elif in_window:
            run.note_gap(now - self.last)
        self.last = now
        for number, made in chunks:
            if number < self.numbers:
                run.seen.repeated += 1
                continue
            run.seen.lost += number - self.numbers
            self.numbers = number + 1
            run.seen.tokens += 1
            if in_window:
                run.seen.chunks += 1
                run.delays.append(now - made)


class Run:
    """One load, from its first request to its last answer."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.seen = Seen()
        self.delays: list[float] = []
        self.began = self.ends = float("inf")
        """Of the window."""
        self._gaps: list[float] = []
        self._first_tokens: list[float] = []
        self._plain: list[float] = []
        self._speeds: list[float] = []
        self._failed: Counter[str] = Counter()
        parts = urlsplit(load.url)
        self._host, self._path = parts.hostname or "", parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)

    def note_gap(self, seconds: float) -> None:
        """A stream was silent for so long."""
        self._gaps.append(seconds)
        self.seen.stalls += seconds > STALL_SECONDS

    async def go(self) -> Seen:
        """Ask, and tell what was seen."""
        if self.load.kind == "plain":
            await self._go_plain()
        else:
            await self._go_streams()
        seen = self.seen
        seen.first_token = Spread.of(self._first_tokens)
        seen.gap, seen.delay = Spread.of(self._gaps), Spread.of(self.delays)
        seen.plain = Spread.of(self._plain)
        seen.failed = dict(self._failed)
        if not self.load.is_stamped:
            seen.delay = None
            seen.tokens_a_second = statistics.median(self._speeds) if self._speeds else None
        return seen

    async def _go_streams(self) -> None:
        load = self.load
        for _ in range(load.starts):
            await self._stream(SHORT_TOKENS)
        starts = time.monotonic()
        async with asyncio.TaskGroup() as group:
            if load.is_stamped:
                self.began = starts + load.ramp_seconds
                self.ends = self.began + load.window_seconds
                group.create_task(self._watch())
            else:  # who knows how long it takes: all of it counts
                self.began = starts
            for number in range(load.streams):
                at = starts + load.ramp_seconds * number / load.streams * 0.8
                group.create_task(self._stream_at(at))

    async def _stream_at(self, at: float) -> None:
        await asyncio.sleep(at - time.monotonic())
        await self._stream(self.load.tokens or self._tokens_to_the_end())

    def _tokens_to_the_end(self) -> int:
        return round((self.ends - time.monotonic() + AFTER_SECONDS) * TOKENS_A_SECOND)

    async def _stream(self, tokens: int) -> None:
        body = {
            "model": self.load.model,
            "messages": [{"role": "user", "content": self.load.prompt}],
            "max_tokens": tokens,
            "stream": True,
        }
        exchange = StreamExchange(self._request(body), self)
        sent = time.monotonic()
        patience = tokens / TOKENS_A_SECOND + GRACE_SECONDS
        if not self.load.is_stamped:
            patience *= 10
        if not await self._exchange(exchange, patience):
            return
        if exchange.first is not None:
            self._first_tokens.append(exchange.first - sent)
            if exchange.last > exchange.first:
                speed = (exchange.numbers - 1) / (exchange.last - exchange.first)
                self._speeds.append(speed)
        if not exchange.is_whole:
            self._failed["the stream had no [DONE]"] += 1
        elif self.load.is_stamped:
            self.seen.lost += max(0, tokens - exchange.numbers)

    async def _watch(self) -> None:
        await asyncio.sleep(self.began - time.monotonic())
        before, began = cpu_seconds(self.load.watched), time.monotonic()
        await asyncio.sleep((self.ends - time.monotonic()) / 2)
        self.seen.memory_bytes = memory_bytes(self.load.watched)
        await asyncio.sleep(self.ends - time.monotonic())
        self.seen.cpu_seconds = cpu_seconds(self.load.watched) - before
        self.seen.window_seconds = time.monotonic() - began

    async def _go_plain(self) -> None:
        load = self.load
        for _ in range(3):
            await self._plain_request()
        self._plain.clear()
        before, began = cpu_seconds(load.watched), time.monotonic()
        count = max(1, round(load.window_seconds * load.requests_a_second))
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                await asyncio.sleep(began + number / load.requests_a_second - time.monotonic())
                group.create_task(self._plain_request())
        self.seen.cpu_seconds = cpu_seconds(load.watched) - before
        self.seen.window_seconds = time.monotonic() - began

    async def _plain_request(self) -> None:
        messages = [{"role": "user", "content": self.load.prompt}]
        tokens = self.load.tokens or 16
        body = {"model": self.load.model, "messages": messages, "max_tokens": tokens}
        sent = time.monotonic()
        if await self._exchange(Exchange(self._request(body)), 10 * GRACE_SECONDS):
            self._plain.append(time.monotonic() - sent)

    async def _exchange(self, exchange: Exchange, patience: float) -> bool:
        """Ask; whether the answer came to its end."""
        self.seen.asked += 1
        try:
            async with asyncio.timeout(patience):
                loop = asyncio.get_running_loop()
                await loop.create_connection(
                    lambda: exchange,
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
                await exchange.done
        except TimeoutError:
            self._failed["it took too long"] += 1
        except (Failed, OSError) as error:
            self._failed[str(error) or type(error).__name__] += 1
        else:
            return True
        finally:
            exchange.done.cancel()
            exchange.close()
        return False

    def _request(self, body: dict[str, object]) -> bytes:
        content = msgspec.json.encode(body)
        return (
            f"POST {self._path}/chat/completions HTTP/1.1\r\n"
            f"host: {self._host}\r\nauthorization: Bearer {self.load.key}\r\n"
            "content-type: application/json\r\naccept: */*\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        ).encode() + content


def main() -> None:
    """Read a load from standard input, and write what was seen to standard output."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(Run(load).go())))


if __name__ == "__main__":
    main()
