"""Work that a large body costs, in steps: one step in each turn of the event loop, whoever asks."""

import asyncio
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that yields wherever the event loop may do something else, and returns what came of it."""


class Turns:
    """Hands out the turns of one event loop, in the order in which they are asked for.

    Without it, ten large bodies at once would each do a step of their work in every turn.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, steps: Steps[T]) -> T:
        """Do all steps, one in a turn, with everything else of the loop between two of them."""
        while True:
            async with self._lock:
                try:
                    next(steps)
                except StopIteration as end:
                    result: T = end.value
                    return result
                finally:
                    await asyncio.sleep(0)


def at_once(steps: Steps[T]) -> T:
    """Do all steps in a row: for a body that is small."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
