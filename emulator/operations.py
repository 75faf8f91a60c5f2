"""Operation: one call of either face, and the layers every call goes through."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from emulator.endpoint import Endpoint

Operation = Callable[[Request, Endpoint], Awaitable[Response]]
"""Answers a call to an endpoint; refuses by raising an EmulatorError."""
