"""vLLM's answer to one request, read piece by piece over loopback.

The client is aiohttp, which the runpod SDK brings along: reading a stream of 40 events costs it a
third of the CPU that httpx needs (56 against 149 microseconds an event), and its stream reader is
already the bounded buffer we want. Bytes gather there while an output is being posted, the socket
is paused when it is full, and vLLM feels the back-pressure; no task of ours runs per chunk.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import aiohttp
from yarl import URL

from worker.chunks import PIECE_BYTES, Chunks
from worker.errors import EngineFailed, RequestTimeout, WorkerError, WorkerStopping
from worker.job_input import VLLMRequest

EVENT_STREAM: Final = "text/event-stream"
BUFFER_BYTES: Final = 256 * 1024
"""aiohttp stops reading from vLLM at twice this and goes on below it."""

HEADERS: Final = ("metadata", "retry-after")
"""What is told of vLLM's headers: `metadata` says what embeddings that come as bytes are."""
MAX_HEADER_BYTES: Final = 128 * 1024
"""The longest header that is read: `metadata` has some 110 bytes for each input."""

LINGER_SECONDS: Final = 0.005
"""How long the first and the last piece of a stream wait for what follows at once.

vLLM sends the role, then the first token within a millisecond; [DONE], then the end. Each output
of a job costs a round trip to RunPod before the next can leave, so sending the role alone would
keep the first token waiting for tens of milliseconds.
"""
_DONE: Final = b"data: [DONE]\n\n"


class VLLMClient:
    """Asks the vLLM on this machine; shared by all jobs of one event loop.

    No piece of an answer has more than `piece_bytes`.
    """

    def __init__(
        self, base_url: str, *, request_timeout_seconds: float, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self.request_timeout_seconds = request_timeout_seconds
        self.piece_bytes = piece_bytes
        self._base_url = base_url
        self._session: aiohttp.ClientSession | None = None
        self._answers: set[Answer] = set()
        self._gave_up = False

    def ask(self, request: VLLMRequest) -> "Answer":
        """The answer to this request; call its `begin()`, and in the end its `close()`."""
        answer = Answer(self, request)
        self._answers.add(answer)
        if self._gave_up:
            answer.expire()
        return answer

    async def send(self, request: VLLMRequest) -> aiohttp.ClientResponse:
        """Send the request and return the response when its head has come."""
        return await self._open_session().request(
            request.method,
            URL(self._base_url + request.route, encoded=True),
            data=None if request.body is None else io.BytesIO(request.body),
            headers={
                **request.headers,
                "Accept-Encoding": "identity",
                "Content-Type": request.content_type,
                "X-Request-Id": request.request_id,
            },
            allow_redirects=False,
        )

    def forget(self, answer: "Answer") -> None:
        """This answer is closed."""
        self._answers.discard(answer)

    def give_up(self) -> None:
        """Break off all answers, now and in future; they raise WorkerStopping."""
        self._gave_up = True
        for answer in self._answers:
            answer.expire()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def lateness(self) -> WorkerError:
        """What an answer raises that was not complete in time."""
        return WorkerStopping() if self._gave_up else RequestTimeout(self.request_timeout_seconds)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A connection for each request: vLLM drops idle ones after five seconds, and a
                # request sent at that moment would be lost. On loopback a new one is cheap.
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=BUFFER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
            )
        return self._session


class Answer:
    """One answer. All methods raise WorkerError when vLLM breaks off or time is up."""

    status: int
    content_type: str
    headers: dict[str, str]
    """Those of HEADERS that vLLM sent."""

    def __init__(self, client: VLLMClient, request: VLLMRequest) -> None:
        self._client = client
        self._request = request
        self._deadline = asyncio.get_running_loop().time() + client.request_timeout_seconds
        self._timeout: asyncio.Timeout | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._chunks = Chunks(events=False, limit=client.piece_bytes)
        self._first = True
        self._ended = False

    @property
    def route(self) -> str:
        """What was asked of vLLM, perhaps with a query."""
        return self._request.route

    @property
    def is_event_stream(self) -> bool:
        """Whether this is a stream of events that went well."""
        return self.status < 400 and self.content_type.startswith(EVENT_STREAM)

    @property
    def is_complete(self) -> bool:
        """Whether all of it has been handed out."""
        return self._ended and not self._chunks

    async def begin(self) -> None:
        """Ask vLLM and wait for the head of its answer."""
        with self._failures():
            async with self._within(self._deadline):
                self._response = await self._client.send(self._request)
        self.status = self._response.status
        headers = self._response.headers
        self.content_type = headers.get("Content-Type", "")
        self.headers = {name: headers[name] for name in HEADERS if name in headers}
        self._chunks = Chunks(events=self.is_event_stream, limit=self._client.piece_bytes)

    async def next_piece(self) -> bytes:
        """Wait for the next piece, and return it with all that has arrived meanwhile."""
        with self._failures():
            self._take_in()
            while not (piece := self._chunks.take(ended=self._ended)) and not self._ended:
                await self._wait(self._deadline)
            if self._is_brief(piece):
                piece = await self._linger(piece)
        self._first = False
        return piece

    def expire(self) -> None:
        """Make its time be up now."""
        self._deadline = 0.0
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0.0)

    def close(self) -> None:
        """Close the connection. vLLM then aborts what it has not finished."""
        self._client.forget(self)
        if self._response is not None:
            self._response.close()

    @property
    def _content(self) -> aiohttp.StreamReader:
        assert self._response is not None, "begin() comes first"
        return self._response.content

    def _take_in(self) -> None:
        """Take what has arrived, unless there is enough already: then vLLM has to wait."""
        if self._ended or self._chunks.is_full:
            return
        if asyncio.get_running_loop().time() > self._deadline:
            raise TimeoutError
        self._feed(self._content.read_nowait())

    async def _wait(self, deadline: float) -> None:
        async with self._within(deadline):
            data = await self._content.readany()
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        self._chunks.feed(data)
        self._ended = self._content.at_eof()

    @asynccontextmanager
    async def _within(self, deadline: float) -> AsyncIterator[None]:
        async with asyncio.timeout_at(deadline) as self._timeout:
            try:
                yield
            finally:
                self._timeout = None

    def _is_brief(self, piece: bytes) -> bool:
        """Whether more is about to come that should not wait for this piece's round trip."""
        if self._ended or not self.is_event_stream:
            return False
        return self._first or piece.endswith(_DONE)

    async def _linger(self, piece: bytes) -> bytes:
        self._chunks.give_back(piece)
        now = asyncio.get_running_loop().time()
        with suppress(TimeoutError, aiohttp.ClientError):  # a failure will be met again
            await self._wait(min(now + LINGER_SECONDS, self._deadline))
        return self._chunks.take(ended=self._ended)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self.close()
            raise self._client.lateness() from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineFailed from error
