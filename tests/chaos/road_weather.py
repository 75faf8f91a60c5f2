"""Bad weather on the direct road: channels are cut, silent, late or refused, and workers freeze."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.emulator.running import Json

Control = Callable[[str, str, Json | None], Any]
"""A call below `/_emulator/{endpoint}`: method, path, body."""

LEASE_SECONDS: Final = 6.0
"""A worker that is frozen for longer loses its jobs."""
MOVES: Final = 0.03
"""How many spells move the ports, for which workers have to be replaced."""


@dataclass(frozen=True)
class Spell:
    """Something that happens to the road, and for how long."""

    name: str
    method: str
    path: str
    body: Json | None
    seconds: float


class RoadWeather:
    """Changes the emulated road to workers as long as a storm lasts, and counts what it did."""

    def __init__(self, control: Control, luck: float) -> None:
        self.spells: Counter[str] = Counter()
        self._control = control
        self._dice = random.Random(luck)

    async def rage(self, tasks: list[asyncio.Task[None]]) -> None:
        """Have one spell after the other until the tasks are done."""
        while not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=self._dice.uniform(0.5, 4))
            spell = self._spell()
            self.spells[spell.name] += 1
            await asyncio.to_thread(self._control, spell.method, spell.path, spell.body)
            await asyncio.wait(tasks, timeout=spell.seconds)
            await asyncio.to_thread(self._control, "DELETE", "/road", None)
            if spell.name == "moved":
                await asyncio.to_thread(self._control, "POST", "/crash", None)

    def calm(self) -> None:
        """Let everything go well, and all workers go on."""
        self._control("DELETE", "/road", None)
        self._control("DELETE", "/freeze", None)

    def _spell(self) -> Spell:
        dice = self._dice
        if dice.random() < MOVES:
            return Spell("moved", "POST", "/road/move", None, 2)
        frozen = {"seconds": dice.uniform(0.1, LEASE_SECONDS + 2)}
        return dice.choice(
            [
                Spell("cut", "POST", "/road/cut", None, 0),
                Spell("frozen", "POST", "/freeze", frozen, frozen["seconds"]),
                *(
                    Spell(name, "PUT", "/road", conditions, dice.uniform(0.5, 5))
                    for name, conditions in self._conditions()
                ),
            ]
        )

    def _conditions(self) -> list[tuple[str, Json]]:
        dice = self._dice
        return [
            ("late", {"latency_seconds": dice.uniform(0, 0.2), "jitter_seconds": 0.1}),
            ("cut now and then", {"cut_after_seconds": dice.uniform(0.1, 1)}),
            ("cut by bytes", {"cut_after_bytes": dice.randint(1, 20_000)}),
            ("deaf", {"drop": "to_worker"}),
            ("mute", {"drop": "from_worker"}),
            ("silent", {"drop": "both"}),
            ("silent and walled", {"drop": "both", "dials": "ignore"}),
            ("walled", {"dials": "ignore", "cut_after_seconds": 0.2}),
            ("refused", {"dials": "refuse", "cut_after_seconds": 0.2}),
        ]
