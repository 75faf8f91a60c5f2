"""What both faces need of HTTP: the key check, JSON in and out, and held long polls."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.bell import Bell
from emulator.endpoint import Endpoint
from emulator.errors import BadRequest, EmulatorError, NotFound, TooLarge, Unauthorized

log = logging.getLogger("emulator")

Operation = Callable[[Request, Endpoint], Awaitable[Response]]
Handler = Callable[[Request], Awaitable[Response]]


class Json(JSONResponse):
    """A JSON answer, written by orjson with its keys in the order they have."""

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def guarded(operation: Operation) -> Handler:
    """The route of an operation: checks the key, finds the endpoint, words the refusals."""

    async def handler(request: Request) -> Response:
        try:
            _check_key(request)
            return await operation(request, _endpoint(request))
        except EmulatorError as error:
            return Json({"error": str(error)}, status_code=error.status)

    return handler


def _check_key(request: Request) -> None:
    """Clients send `Bearer KEY` or the bare key, the worker SDK always the bare key."""
    key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    expected = request.app.state.settings.api_key.get_secret_value()
    if not secrets.compare_digest(key.encode(), expected.encode()):
        raise Unauthorized("invalid api key" if key else "no token provided")


def _endpoint(request: Request) -> Endpoint:
    endpoints: dict[str, Endpoint] = request.app.state.endpoints
    try:
        return endpoints[request.path_params["endpoint"]]
    except KeyError:
        raise NotFound("endpoint not found") from None


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The raw body, whatever its content type claims; TooLarge above `max_bytes`."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            megabytes = max_bytes / 1024 / 1024
            raise TooLarge(f"json is invalid; max size is {megabytes:g} MB")
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object, or BadRequest."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"json is invalid; {error}") from None
    if not isinstance(parsed, dict):
        raise BadRequest("json is invalid; an object is expected")
    return parsed


async def hold(request: Request, bell: Bell, ready: Callable[[], bool], seconds: float) -> bool:
    """Hold a long poll until `ready()`, at most `seconds`; False when the caller has left.

    After True nothing has run since `ready()` was looked at, so what it saw may be handed out.
    """
    if ready():
        return True
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        bell.ring()

    watcher = asyncio.create_task(watch())
    try:
        await bell.wait_for(lambda: has_left or ready(), seconds)
    finally:
        watcher.cancel()
    return not has_left
