"""Operation: one call of either face, and the layers every call goes through."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from emulator.endpoint import Endpoint

E = TypeVar("E", bound=Endpoint)

Operation = Callable[[Request, E], Awaitable[Response]]
"""Answers a call to an endpoint of its kind; refuses by raising an EmulatorError."""
