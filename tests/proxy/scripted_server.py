"""A server that speaks plain HTTP and follows a script: a load-balancing endpoint, or any other."""

import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.proxy.scripted_runpod import LONGEST_HOLD_SECONDS, wait_for

WORKER = {"x-runpod-worker-id": "w1"}


@dataclass
class Reply:
    """One answer: its pieces are sent one by one, the last ones after `hold` is set, if given."""

    status: int = 200
    pieces: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: dict(WORKER))
    content_type: str = "application/json"
    hold: threading.Event | None = None
    head_hold: threading.Event | None = None
    """Not even the status is sent before this is set."""
    breaks: bool = False
    """Cut the connection after the pieces."""


class ScriptedServer:
    """`replies` are given in turn, the last one again and again; `requests` holds what came."""

    def __init__(self) -> None:
        methods = ["GET", "POST"]
        self.app = Starlette(routes=[Route("/{path:path}", self._serve, methods=methods)])
        self.reset()

    def reset(self) -> None:
        """Forget everything: one server serves many tests."""
        self.replies: list[Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.open = 0
        """How many answers are being sent."""

    async def _serve(self, request: Request) -> Response:
        body = await request.body()
        reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
        self.requests.append(
            {
                "method": request.method,
                "path": request.url.path,
                "headers": dict(request.headers),
                "body": body,
            }
        )
        if reply.head_hold:
            await wait_for(reply.head_hold, LONGEST_HOLD_SECONDS)
        if reply.content_type != "text/event-stream" and not reply.breaks and not reply.hold:
            whole = b"".join(reply.pieces)
            return Response(whole, reply.status, reply.headers, reply.content_type)
        return StreamingResponse(
            self._pieces(reply), reply.status, reply.headers, reply.content_type
        )

    async def _pieces(self, reply: Reply) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            for number, piece in enumerate(reply.pieces, start=1):
                if number == len(reply.pieces) and reply.hold:
                    await wait_for(reply.hold, LONGEST_HOLD_SECONDS)
                yield piece
            if reply.breaks:
                raise ConnectionResetError
        finally:
            self.open -= 1
