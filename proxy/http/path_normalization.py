"""Paths as clients build them from a base URL: too many slashes, `/v1` twice or not at all."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile(r"/{2,}")
_WITHOUT_V1 = re.compile(r"/(chat|completions|embeddings|responses|messages|audio|models)(/|$)")


class ForgivingPaths:
    """Takes `/v1//models`, `/v1/models/`, `/v1/v1/models` and `/models` for `/v1/models`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            scope["path"] = _forgiven(scope["path"])
        await self._app(scope, receive, send)


def _forgiven(path: str) -> str:
    path = _SLASHES.sub("/", path).rstrip("/") or "/"
    if path.startswith("/v1/v1/"):
        return path.removeprefix("/v1")
    return f"/v1{path}" if _WITHOUT_V1.match(path) else path
