"""What the worker that starts is doing, from RunPod's own list of workers and their logs.

RunPod's REST API, version 2 (`listEndpointWorkers` and `getWorkerLogs` of its OpenAPI document),
streams a worker's log as events. It takes a key that has this right, so nothing is asked without
one, and only while a request waits for a start. No line of a log is passed on or written down,
since prompts and paths stand in them: known ones are mapped to a phase, all others passed over.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx
import msgspec

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 3.0
"""Between two looks at the list, while no worker starts or its log has ended."""
MAX_PAUSE_SECONDS: Final = 60.0
MAX_LINE_BYTES: Final = 65_536
TAIL_LINES: Final = 200
READ_SECONDS: Final = 120.0
PLACING: Final = "waiting for a machine"

_PHASES: Final = (
    (
        # Before the others: these lines name much that is not being done.
        re.compile(r"Initializing a V1 LLM engine|Resolved architecture|Enforce eager set"),
        "starting the engine",
    ),
    (re.compile(r"[Cc]apturing CUDA graph|[Gg]raph capturing"), "capturing CUDA graphs"),
    (re.compile(r"torch\.compile|Dynamo bytecode|Compiling a graph|[Cc]ompiling"), "compiling"),
    (re.compile(r"[Ww]arm(ing)?[ -]?up|[Mm]emory profiling|KV cache"), "warming up"),
    (
        re.compile(r"Loading (safetensors|pt|weights|model|checkpoint)|Starting to load model"),
        "loading weights",
    ),
    (re.compile(r"[Dd]ownloading|Fetching \d+ files|pulling image|image pull"), "downloading"),
    (re.compile(r"Application startup complete|Uvicorn running"), "starting the server"),
    (re.compile(r"starting vLLM|vLLM API server version"), "starting vLLM"),
)
"""From vLLM 0.32's log, huggingface_hub's and our worker's; the first that matches counts."""


def phase_of(line: str) -> str | None:
    """What a worker that writes this line is doing; None if the line tells nothing."""
    return next((phase for known, phase in _PHASES if known.search(line)), None)


class StartProgress:
    """Follows the starts of one endpoint while asked to; `phase` is what it has found."""

    def __init__(self, client: httpx.AsyncClient, url: str, api_key: str, *, name: str) -> None:
        self.phase = ""
        self._client = client
        self._url = f"{url}/workers"
        self._headers = {"authorization": f"Bearer {api_key}"}
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._is_refused = False

    def begin(self) -> None:
        """A request waits for a start; harmless when done before."""
        if not self._is_refused and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._follow())

    def end(self) -> None:
        """No request waits for one any more."""
        self.phase = ""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _follow(self) -> None:
        while not self._is_refused:
            pause = LOOK_SECONDS
            try:
                if (worker_id := await self._starting_worker()) is not None:
                    await self._read_log(worker_id)
            except _Limited as exc:
                pause = exc.seconds
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                log.debug("endpoint %s: no worker's log: %s", self._name, type(exc).__name__)
            await asyncio.sleep(pause)

    async def _starting_worker(self) -> str | None:
        """The id of one that has been placed; the one that started last.

        While nothing has answered, one that has jobs in hand may be loading its model as well.
        """
        response = await self._client.get(self._url, headers=self._headers, timeout=15)
        self._check(response)
        workers = _workers(response.content)
        starting = [w for w in workers if w.get("status") == "INITIALIZING"]
        starting = starting or [w for w in workers if w.get("status") == "RUNNING"]
        placed = [w for w in starting if isinstance(w.get("startedAt"), str)]
        if starting and not placed:
            self.phase = PLACING
        newest = max(placed, key=lambda worker: str(worker["startedAt"]), default=None)
        worker_id = newest.get("id") if newest else None
        return worker_id if isinstance(worker_id, str) and _ID.fullmatch(worker_id) else None

    async def _read_log(self, worker_id: str) -> None:
        request = self._client.build_request(
            "GET",
            f"{self._url}/{worker_id}/logs",
            params={"tail": TAIL_LINES},
            headers=self._headers,
            timeout=httpx.Timeout(15, read=READ_SECONDS),
        )
        response = await self._client.send(request, stream=True)
        try:
            self._check(response)
            async for line in _log_lines(response.aiter_bytes()):
                self.phase = phase_of(line) or self.phase
        finally:
            await response.aclose()

    def _check(self, response: httpx.Response) -> None:
        """Raise for what is no answer; a key without the right is not tried again."""
        status = response.status_code
        if status in (401, 403, 404):
            self._is_refused = True
            log.warning(
                "endpoint %s: RunPod does not tell what its workers do (HTTP %d): the key in "
                "RUNPOD_REST_API_KEY needs the right to read the endpoint",
                *(self._name, status),
            )
        if status == 429:
            wait = response.headers.get("retry-after", "")
            raise _Limited(min(float(wait), MAX_PAUSE_SECONDS) if wait.isdecimal() else 10.0)
        response.raise_for_status()


class _Limited(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,200}")


def _workers(content: bytes) -> list[Mapping[str, Any]]:
    try:
        workers = msgspec.json.decode(content)["workers"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    return [w for w in workers if isinstance(w, dict)] if isinstance(workers, list) else []


async def _log_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The lines of a log, out of their events."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[:MAX_LINE_BYTES]
        for line in lines:
            if line.startswith(b"data:"):
                try:
                    text = msgspec.json.decode(line[5:])["line"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    continue
                if isinstance(text, str):
                    yield text[:MAX_LINE_BYTES]
