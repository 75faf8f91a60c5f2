"""Faults: calls that are delayed, refused, or dropped on purpose.

A rule names an operation and what goes wrong with it; rules come from `[[faults]]` in the TOML
file and from the control API. They imitate a network and a platform at their worst, so they know
nothing of jobs: a lost chunk is a `job-stream` answered 200 without having been looked at.
"""

import asyncio
import random
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from emulator.operations import E, Operation
from emulator.settings import Fault, OperationName

BODILESS: Final = (204, 304)
"""HTTP has no room for a body in answers with these statuses."""


class Faults:
    """The rules in force and how often each was met."""

    def __init__(self, initial: tuple[Fault, ...] = ()) -> None:
        self._initial = initial
        self.reset()

    def reset(self) -> None:
        """Back to the rules of the settings, as if nothing had been called."""
        self._rules: list[Fault] = list(self._initial)
        self._met: list[int] = [0] * len(self._initial)
        self._dice = random.Random(0)  # noqa: S311  # repeatable on purpose

    def add(self, fault: Fault) -> None:
        """Put one more rule in force, after those there are."""
        self._rules.append(fault)
        self._met.append(0)

    def clear(self) -> None:
        """Let everything go well."""
        self._rules.clear()
        self._met.clear()

    def view(self) -> list[dict[str, Any]]:
        """Each rule, with how many calls it has hit."""
        return [
            {**rule.model_dump(), "hits": max(0, met - rule.skip)}
            for rule, met in zip(self._rules, self._met, strict=True)
        ]

    def strike(self, operation: OperationName, endpoint_id: str) -> list[Fault]:
        """The faults this call meets; counts the call."""
        struck = []
        for index, rule in enumerate(self._rules):
            if rule.operation == operation and rule.endpoint in ("", endpoint_id):
                struck += [rule] * self._meets(index, rule)
        return struck

    def _meets(self, index: int, rule: Fault) -> bool:
        is_used_up = rule.times and self._met[index] >= rule.skip + rule.times
        if is_used_up or (rule.chance < 1 and self._dice.random() >= rule.chance):
            return False
        self._met[index] += 1
        return self._met[index] > rule.skip


def faulty(name: OperationName, operation: Operation[E]) -> Operation[E]:
    """The operation, subject to the rules in force."""

    async def call(request: Request, endpoint: E) -> Response:
        faults: Faults = request.app.state.faults
        struck = faults.strike(name, endpoint.settings.id)
        for fault in struck:
            await asyncio.sleep(fault.delay_seconds)
            if fault.drop == "call":
                return Dropped()
            if fault.status is not None:
                headers = {"content-type": "application/json", **fault.headers}
                body = None if fault.status in BODILESS else fault.body
                return Response(body, fault.status, headers)
        answer = await operation(request, endpoint)
        return Dropped(answer) if any(fault.drop == "answer" for fault in struck) else answer

    return call


class Dropped(Response):
    """No answer at all: the connection is cut.

    An answer that is given is made and thrown away first, since some do their work only then.
    """

    def __init__(self, answer: Response | None = None) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the answer if there is one, then cut the connection."""
        if self._answer is not None:
            await self._answer(scope, receive, _throw_away)
        await cut(receive)


async def cut(receive: Receive) -> None:
    """Reset the caller's connection, and return when it is gone.

    ASGI has no word for that, so this reaches for the connection that uvicorn keeps behind
    `receive`, and fails under any other server.
    """
    connection: Any = receive
    connection.__self__.transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _throw_away(message: Message) -> None:
    pass
