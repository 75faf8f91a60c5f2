"""Fair turns before an endpoint that takes calls in the order in which they come.

RunPod's queue cannot be reordered: what one key has put into it stands before everything that comes
later. So where a worker's concurrency is known the queue is kept short, and calls wait here. The
window is what the workers that are up or starting can run at once, and a little more: by what waits
at RunPod it starts further workers. They are counted by /health, so after a cold start no more is
let through than those workers can run.

Turns go round between flows, a flow being what one key has sent, or one tenant of a key: deficit
round robin (Shreedhar and Varghese, 1995) where each call costs 1 and a flow's quantum is its
weight. A call of no flow, and any call where the concurrency is not known, passes at once.

Copies of the proxy share the window: each keeps to its part of it, or to what it is lent.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

AHEAD: Final = 1
"""How many calls an endpoint has beyond what its workers can run, while others wait here.

One that waits at RunPod makes it start a further worker, by either of its scalers; each more would
stand before the next flow's turn."""
NOT_ITS_TURN: Final = "requests that came before it are under way"


@dataclass(frozen=True, slots=True)
class Flow:
    """Whose calls share their turns."""

    name: str
    weight: float = 1
    """How many turns it gets in each round, relative to others."""


class Place:
    """One call's place: in the line, then within the window. Its holder calls `leave` in the end.

    Leaving is one step without an `await` and may come at any time, also twice, so that no turn is
    lost that comes at the very moment in which its caller leaves.
    """

    __slots__ = ("_flow", "_turn", "_turns")

    def __init__(
        self, turns: "FairTurns", flow: Flow | None, turn: asyncio.Future[None] | None
    ) -> None:
        self._turns: FairTurns | None = turns
        self._flow = flow
        self._turn = turn

    @property
    def is_waiting(self) -> bool:
        """Whether its turn has not come yet."""
        return self._turn is not None and not self._turn.done()

    async def turn(self) -> None:
        """Wait for the turn."""
        if self._turn is not None:
            await self._turn

    def leave(self) -> None:
        """The call has ended, or is given up."""
        turns, self._turns = self._turns, None
        if turns is None:
            return
        turn = self._turn
        if turn is None or (turn.done() and not turn.cancelled()):
            turns.give_back(self._flow)
        elif self._flow is not None:
            turn.cancel()
            turns.drop(self._flow.name, turn)


class FairTurns:
    """The line before one endpoint, in one of so many `copies` of the proxy.

    A worker runs `concurrency` calls at once, where known.
    """

    def __init__(self, concurrency: int | None = None, *, copies: int = 1) -> None:
        self.window = math.inf
        """How many calls all copies together let through."""
        self.taken = 0
        """How many this one has let through."""
        self.lent: int | None = None
        """How many more it may, as it was lent; None where it keeps to its share."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a call has to wait, when one has ended, and when workers were counted."""
        self._concurrency = concurrency
        self._copies = copies
        self._lines: dict[str, _Line] = {}
        """The flows that wait, in the order of the round; the first one's turn is next."""
        self._lines_of: Mapping[str, int] = {}
        """How many lines a flow has, in all copies, where it is more than this one."""
        self.note_workers(1)

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return sum(len(line.places) for line in self._lines.values())

    @property
    def share(self) -> float:
        """How many calls this copy lets through when it knows nothing of the others."""
        return self.window if math.isinf(self.window) else math.ceil(self.window / self._copies)

    def flows(self, at_most: int) -> dict[str, float]:
        """The weights of flows that wait, of so many, those first whose turn is next."""
        return {name: line.weight for name, line in islice(self._lines.items(), at_most)}

    def place(self, flow: Flow | None) -> Place:
        """A place for one more call, at the end of its flow's line if it has to wait."""
        if flow is None or (not self._lines and self._room > 0):
            self._take()
            return Place(self, flow, None)
        turn = asyncio.get_running_loop().create_future()
        if (line := self._lines.get(flow.name)) is None:
            line = self._lines[flow.name] = _Line()
        line.weight = flow.weight  # the key's table may have been changed
        line.places[turn] = None
        self.on_change()
        return Place(self, flow, turn)

    def note_workers(self, workers: int | None) -> None:
        """So many are up or starting; None if RunPod does not tell, and then nothing waits.

        The first call needs a window before any worker is there, and one worker will come.
        """
        if self._concurrency is None:
            return
        if workers is None:
            self.window = math.inf
        else:
            self.window = max(1, workers) * self._concurrency + AHEAD
        self._admit()
        self.on_change()

    def lend(self, places: int, lines_of: Mapping[str, int]) -> None:
        """So many more calls may pass; of these flows so many copies have a line."""
        self.lent = (self.lent or 0) + places
        self._lines_of = lines_of
        self._admit()

    def keep(self, places: int) -> bool:
        """Keep no more than so many of those lent; whether that is fewer than there were."""
        had, self.lent = self.lent or 0, min(self.lent or 0, places)
        return self.lent < had

    def keep_to_share(self) -> None:
        """Nothing is lent any more, so what the others let through is not known."""
        self.lent, self._lines_of = None, {}
        self._admit()

    def give_back(self, flow: Flow | None) -> None:
        """A call within the window has ended.

        Where its place was lent, and calls wait, it may be the turn of another copy's.
        """
        self.taken -= 1
        if self.lent is not None and flow is not None and not self._lines:
            self.lent += self.taken + self.lent < self.window
        self._admit()
        self.on_change()

    def drop(self, name: str, turn: asyncio.Future[None]) -> None:
        """A place is in its flow's line no more; a flow that waits no more loses its credit."""
        line = self._lines.get(name)
        if line is not None:
            line.places.pop(turn, None)
            if not line.places:
                del self._lines[name]

    @property
    def _room(self) -> float:
        """How many calls may pass as things stand."""
        if self.lent is None or math.isinf(self.window):
            return self.share - self.taken
        return self.lent

    def _take(self) -> None:
        self.taken += 1
        if self.lent:
            self.lent -= 1

    def _admit(self) -> None:
        while self._lines and self._room > 0:
            turn = self._next()
            if not turn.done():  # its caller is just about to leave
                turn.set_result(None)
                self._take()

    def _next(self) -> asyncio.Future[None]:
        """The place whose turn it is."""
        while True:
            name, line = next(iter(self._lines.items()))
            if line.credit < 1:
                line.credit += line.weight / self._lines_of.get(name, 1)
            if line.credit >= 1:
                break
            self._move_to_end(name)
        turn = next(iter(line.places))
        line.credit -= 1
        if line.credit < 1:
            self._move_to_end(name)
        self.drop(name, turn)
        return turn

    def _move_to_end(self, name: str) -> None:
        self._lines[name] = self._lines.pop(name)


class _Line:
    """The calls of one flow that wait, in the order in which they came."""

    __slots__ = ("credit", "places", "weight")

    def __init__(self) -> None:
        self.places: dict[asyncio.Future[None], None] = {}
        self.weight: float = 1
        self.credit: float = 0
