"""The face of load-balancing endpoints: any call on any path, relayed to a worker.

RunPod serves them at `https://{endpoint}.api.runpod.ai/{any path}`. Here that is `/lb/{endpoint}/`
on the emulator's own address, and everything that comes with the host `{endpoint}.localhost` or
`{endpoint}.api.runpod.ai`.

Both bodies stream. A call ends for the worker when its client leaves, and is never repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, Final

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from emulator.endpoint import BalancedEndpoint, Endpoint
from emulator.errors import (
    BadGateway,
    EmulatorError,
    GatewayTimeout,
    RequestTooLarge,
    Unauthorized,
)
from emulator.gateway.dropped import cut
from emulator.gateway.http import Json
from emulator.gateway.layers import with_auth, with_faults, with_latency
from emulator.work.affinity import WORKER_HEADER, Affinity
from emulator.work.balancer import Lease

DOMAINS: Final = ("localhost", "api.runpod.ai")
ONE_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade".split()
)
"""Headers that are about one connection; the others pass."""
NOT_TO_WORKER: Final = ONE_HOP | {b"host", b"expect"}
NOT_TO_CLIENT: Final = ONE_HOP | {b"date", b"server"}
"""Our own server writes a date and a server."""


async def relay(request: Request, endpoint: BalancedEndpoint) -> Response:
    """The worker's answer; it is asked for when the answer is sent."""
    return Relay(request, endpoint)


def routes(endpoints: Iterable[Endpoint]) -> list[BaseRoute]:
    """Every way to reach an endpoint's workers, those by host first."""
    names = [endpoint.settings.id for endpoint in endpoints]
    hosts = [Host(f"{name}.{domain}", app=_face(name)) for name in names for domain in DOMAINS]
    return [*hosts, Mount("/lb/{endpoint}", app=_face())]


def _face(endpoint_id: str = "") -> ASGIApp:
    """Relays HTTP calls for this endpoint, or for the one that the path names."""
    layers = with_latency("client", with_faults("relay", relay))
    handler = with_auth(BalancedEndpoint, layers, _refusal)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # WebSockets are not imitated
            await send({"type": "websocket.close"})
            return
        if endpoint_id:
            scope["path_params"] = {"endpoint": endpoint_id}
        answer = await handler(Request(scope, receive))
        await answer(scope, receive, send)

    return app


def _refusal(_: Request, error: EmulatorError) -> Response:
    """What this face's gateway says, which words a missing key unlike RunPod's API."""
    if isinstance(error, Unauthorized):
        facts = {"status": error.status, "title": "Unauthorized", "detail": str(error)}
        return Json(facts, error.status)
    return Json({"error": str(error)}, error.status)


class Relay(Response):
    """One call to a worker, from the search for one to the last byte of its answer."""

    def __init__(self, request: Request, endpoint: BalancedEndpoint) -> None:
        super().__init__()
        self._request = request
        self._balancer = endpoint.balancer
        self._limits = endpoint.settings.balancing
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay until the answer is sent or the client has left."""
        upload = Upload(receive, self._limits.max_bytes)
        try:
            await _first_of(self._relay(upload, send), upload.read())
        except EmulatorError as error:
            if self._has_begun:
                await cut(receive)
            else:
                await _refusal(self._request, error)(scope, receive, send)

    async def _relay(self, upload: "Upload", send: Send) -> None:
        wish = Affinity.parse(self._request.headers.get(WORKER_HEADER, ""))
        lease = await self._balancer.acquire(wish)
        outcome = "left"
        try:
            async with asyncio.timeout(self._limits.processing_seconds):
                await self._pass_on(lease, upload, send)
            outcome = "completed"
        except TimeoutError:
            outcome = "failed"
            raise GatewayTimeout("error code: 524") from None
        except httpx.HTTPError as error:
            outcome = "failed"
            raise BadGateway("bad gateway") from error
        except BadGateway:
            outcome = "failed"
            raise
        finally:
            self._balancer.release(lease, outcome)

    async def _pass_on(self, lease: Lease, upload: "Upload", send: Send) -> None:
        answer = await self._balancer.http.send(self._for_worker(lease, upload), stream=True)
        try:
            size = int(answer.headers.get("content-length", 0))
            self._refuse_large(size)
            headers = [pair for pair in answer.headers.raw if pair[0].lower() not in NOT_TO_CLIENT]
            headers.append((WORKER_HEADER.encode(), lease.worker.id.encode()))
            head = {"status": answer.status_code, "headers": headers}
            await send({"type": "http.response.start", **head})
            self._has_begun = True
            size = 0
            async for piece in answer.aiter_raw():
                size += len(piece)
                self._refuse_large(size)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()

    def _for_worker(self, lease: Lease, upload: "Upload") -> httpx.Request:
        raw = self._request.headers.raw
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in raw)
        return httpx.Request(
            self._request.method,
            httpx.URL(f"http://127.0.0.1:{lease.port}").copy_with(raw_path=self._target()),
            headers=[pair for pair in raw if pair[0] not in NOT_TO_WORKER],
            content=upload.pieces() if has_body else None,
        )

    def _target(self) -> bytes:
        """The path and query for the worker, exactly as the client wrote them."""
        scope = self._request.scope
        above = scope["root_path"].count("/")  # /lb/{endpoint}, or nothing
        path: bytes = b"/" + scope["raw_path"].split(b"/", above + 1)[-1]
        query: bytes = scope["query_string"]
        return path + b"?" + query if query else path

    def _refuse_large(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise BadGateway(f"the answer is above {self._limits.max_bytes} bytes")


class Upload:
    """The client's body. It is read ahead, so that the client's leaving is seen at once."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def read(self) -> None:
        """Read until the client leaves; RequestTooLarge when it sends too much."""
        size = 0
        while (message := await self._receive())["type"] == "http.request":
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._max_bytes:
                raise RequestTooLarge(f"the body is above {self._max_bytes} bytes")
            if piece:
                self._pieces.put_nowait(piece)
            if not message.get("more_body"):
                self._pieces.put_nowait(None)

    async def pieces(self) -> AsyncIterator[bytes]:
        """What was read, as it comes, to the end of the body."""
        while (piece := await self._pieces.get()) is not None:
            yield piece


async def _first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run them all until one ends or fails, and cancel the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
