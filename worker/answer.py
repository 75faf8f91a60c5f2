"""vLLM's answer to one request, read piece by piece over loopback.

The client is aiohttp, which the runpod SDK brings along: reading a stream of 40 events costs it a
third of the CPU that httpx needs (56 against 149 microseconds an event), and its stream reader is
already the bounded buffer we want. Bytes gather there while an output is being posted, the socket
is paused when it is full, and vLLM feels the back-pressure; no task of ours runs per chunk.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import aiohttp
from yarl import URL

from worker.chunks import Chunks
from worker.errors import EngineFailed, RequestTimeout, WorkerError, WorkerStopping
from worker.job_input import VLLMRequest

EVENT_STREAM: Final = "text/event-stream"
BUFFER_BYTES: Final = 256 * 1024
"""aiohttp stops reading from vLLM at twice this and goes on below it."""

LINGER_SECONDS: Final = 0.003
"""How long the first and the last piece of a stream wait for what follows at once.

vLLM sends the role, then the first token within a millisecond; [DONE], then the end. Each output
of a job costs a round trip to RunPod before the next can leave, so sending the role alone would
keep the first token waiting for tens of milliseconds.
"""
_DONE: Final = b"data: [DONE]\n\n"


class VLLMClient:
    """Asks the vLLM on this machine; shared by all jobs of one event loop.

    Set `stopping` before stopping vLLM, so that broken answers say that it was on purpose.
    """

    def __init__(self, base_url: str, *, request_timeout_seconds: float) -> None:
        self._base_url = base_url
        self._timeout_seconds = request_timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self.stopping = False

    def ask(self, request: VLLMRequest) -> "Answer":
        """The answer to this request, which begins with its `begin()`."""
        return Answer(self, request, self._timeout_seconds)

    async def send(self, request: VLLMRequest) -> aiohttp.ClientResponse:
        """Send the request and return the response when its head has come."""
        return await self._open_session().request(
            request.method,
            URL(self._base_url + request.route, encoded=True),
            data=request.body,
            headers={
                "Accept-Encoding": "identity",
                "Content-Type": request.content_type,
                "X-Request-Id": request.request_id,
            },
            allow_redirects=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

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
            )
        return self._session


class Answer:
    """One answer. All methods raise WorkerError when vLLM breaks off or time is up."""

    status: int
    content_type: str

    def __init__(self, client: VLLMClient, request: VLLMRequest, timeout_seconds: float) -> None:
        self._client = client
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._deadline = asyncio.get_running_loop().time() + timeout_seconds
        self._response: aiohttp.ClientResponse | None = None
        self._chunks = Chunks(events=False)
        self._first = True
        self._ended = False

    @property
    def is_event_stream(self) -> bool:
        """Is this a stream of events that went well?"""
        return self.status < 400 and self.content_type.startswith(EVENT_STREAM)

    @property
    def is_complete(self) -> bool:
        """Has all of it been handed out?"""
        return self._ended and not self._chunks

    async def begin(self) -> None:
        """Ask vLLM and wait for the head of its answer."""
        with self._failures():
            async with asyncio.timeout_at(self._deadline):
                self._response = await self._client.send(self._request)
        self.status = self._response.status
        self.content_type = self._response.headers.get("Content-Type", "")
        self._chunks = Chunks(events=self.is_event_stream)

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

    def close(self) -> None:
        """Close the connection. vLLM then aborts what it has not finished."""
        if self._response is not None:
            self._response.close()

    @property
    def _content(self) -> aiohttp.StreamReader:
        assert self._response is not None, "begin() comes first"
        return self._response.content

    def _take_in(self) -> None:
        self._chunks.feed(self._content.read_nowait())
        self._ended = self._content.at_eof()

    async def _wait(self, deadline: float) -> None:
        async with asyncio.timeout_at(deadline):
            self._chunks.feed(await self._content.readany())
        self._ended = self._content.at_eof()

    def _is_brief(self, piece: bytes) -> bool:
        """Is more about to come that should not wait for this piece's round trip?"""
        if self._ended or not self.is_event_stream:
            return False
        return self._first or piece.endswith(_DONE)

    async def _linger(self, piece: bytes) -> bytes:
        self._chunks.give_back(piece)
        now = asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            await self._wait(min(now + LINGER_SECONDS, self._deadline))
        return self._chunks.take(ended=self._ended)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self.close()
            raise RequestTimeout(self._timeout_seconds) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken_off() from error

    def _broken_off(self) -> WorkerError:
        return WorkerStopping() if self._client.stopping else EngineFailed()
