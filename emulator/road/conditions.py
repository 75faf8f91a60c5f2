"""Conditions: what the road of one endpoint is like now, which tests change as they please."""

import random

from emulator.settings import RoadSettings


class Conditions:
    """How long bytes take."""

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
