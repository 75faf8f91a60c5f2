"""Conditions: what the road of one endpoint is like now, which tests change as they please."""

import random
from typing import Literal

from emulator.settings import RoadSettings

Direction = Literal["to_worker", "from_worker"]


class Conditions:
    """What bytes and connections meet."""

    def __init__(self, initial: RoadSettings) -> None:
        self._initial = initial
        self.reset()

    def reset(self) -> None:
        """As the settings say."""
        self.now = self._initial
        self._dice = random.Random(0)  # noqa: S311  # repeatable on purpose

    def one_way_seconds(self) -> float:
        """How long the next piece is on its way."""
        return self.now.latency_seconds + self._dice.uniform(0, self.now.jitter_seconds)

    def drops(self, direction: Direction) -> bool:
        """Whether what is sent this way gets lost."""
        return self.now.drop in (direction, "both")

    def seconds_to_cut(self) -> float | None:
        """For how long a connection holds; None if nothing cuts it."""
        mean = self.now.cut_after_seconds
        return self._dice.expovariate(1 / mean) if mean else None
