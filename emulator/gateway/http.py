"""What both faces need of HTTP: the key check, JSON in and out, and held long polls."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from emulator.endpoint import Endpoint
from emulator.errors import (
    BadRequest,
    EmulatorError,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
)
from emulator.gateway.state import state_of
from emulator.notifier import Notifier

MAX_DIGITS: Final = 15
"""Of a number that a client may give, as there are moments that no clock can count."""

Handler = Callable[[Request], Awaitable[Response]]


class Json(JSONResponse):
    """A JSON answer, written by msgspec with its keys in the order they have."""

    def render(self, content: Any) -> bytes:
        try:
            return msgspec.json.encode(content)
        except UnicodeEncodeError:  # half a surrogate pair, which only ASCII can write
            return json.dumps(content).encode()


def refusal(request: Request, error: EmulatorError) -> Response:
    """The answer to a call that is refused."""
    headers = {}
    if isinstance(error, TooManyRequests) and find_endpoint(request).settings.send_retry_after:
        headers["retry-after"] = str(error.retry_after_seconds)
    return Json({"error": str(error)}, error.status, headers)


def check_key(request: Request) -> None:
    """Unauthorized without the key, as `Bearer KEY` or, like the worker SDK sends it, bare."""
    key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    expected = state_of(request.app).settings.api_key.get_secret_value()
    if not secrets.compare_digest(key.encode(), expected.encode()):
        raise Unauthorized("invalid api key" if key else "no token provided")


def find_endpoint(request: Request) -> Endpoint:
    """The endpoint the path names, or NotFound."""
    try:
        return state_of(request.app).endpoints[request.path_params["endpoint"]]
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


def whole_number(request: Request, name: str, default: int) -> int:
    """A query parameter that counts something; BadRequest when it is no number, or a mad one."""
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise BadRequest(f"{name} must be a whole number")
    return int(text)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object, or BadRequest.

    Half a surrogate pair (`"\\ud83d"`), which msgspec takes for no JSON, goes on to the worker.
    """
    try:
        has_surrogates = rb"\ud" in body.lower()
        parsed = json.loads(body) if has_surrogates else msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"json is invalid; {error}") from None
    if not isinstance(parsed, dict):
        raise BadRequest("json is invalid; an object is expected")
    return parsed


async def hold(
    request: Request, notifier: Notifier, ready: Callable[[], bool], seconds: float
) -> bool:
    """Hold a long poll until `ready()`, at most `seconds`; False when the caller has left.

    After True nothing has run since `ready()` was looked at, so what it saw may be handed out. The
    hold also ends when the emulator closes.
    """
    if ready():
        return True
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        notifier.notify()

    watcher = asyncio.create_task(watch())
    try:
        state = state_of(request.app)
        await notifier.wait_for(lambda: has_left or state.is_closing or ready(), seconds)
    finally:
        watcher.cancel()
    return not has_left
