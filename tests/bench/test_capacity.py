"""The search for the most streams that a target holds."""

import pytest

from tests.bench.capacity import LATE_SECONDS, STEPS, Search
from tests.bench.load import Load, Seen, Spread
from tests.bench.stacks import Opened

DIRECT, TARGET = Opened("http://direct/v1"), Opened("http://target/v1")


class Machine:
    """Stands in for a load on a target: above so many streams chunks are late."""

    def __init__(self, holds: int, *, direct_delay: float = 0.0, moments: int = 0) -> None:
        self.loads: list[Load] = []
        self._holds = holds
        self._direct_delay = direct_delay
        self._moments = moments
        """So many of the first loads meet a busy moment."""

    def see(self, load: Load) -> Seen:
        self.loads.append(load)
        delay = self._direct_delay
        if load.url == TARGET.url:
            is_busy = len(self.loads) <= self._moments
            delay += 2 * LATE_SECONDS if load.streams > self._holds or is_busy else 0.001
        spread = Spread(10, delay, delay, delay, delay, delay)
        return Seen(delay=spread, chunks=20 * load.streams, window_seconds=1.0, cpu_seconds=0.5)


def searched(machine: Machine) -> tuple[int, int | None]:
    found = Search(machine.see, DIRECT, print).of("target", TARGET)
    return found.streams, found.refuted


@pytest.mark.parametrize("holds", [STEPS[0], 100, 128, 700, STEPS[-2]])
def test_the_largest_step_that_is_held_is_found(holds: int) -> None:
    largest = max(step for step in STEPS if step <= holds)
    assert searched(Machine(holds)) == (largest, STEPS[STEPS.index(largest) + 1])


def test_both_ends_are_told() -> None:
    assert searched(Machine(10**6)) == (STEPS[-1], None)
    assert searched(Machine(0)) == (0, STEPS[0])


def test_what_is_late_without_the_target_too_does_not_count() -> None:
    assert searched(Machine(100, direct_delay=3 * LATE_SECONDS))[0] == 100


def test_a_busy_moment_is_no_limit() -> None:
    assert searched(Machine(256, moments=1))[0] == 256
