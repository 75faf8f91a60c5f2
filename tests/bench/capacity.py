"""How many streams a target holds on its core before its chunks come late."""

from collections.abc import Callable
from typing import Final

import msgspec

from tests.bench.load import Load, Seen
from tests.bench.stacks import Opened

LATE_SECONDS: Final = 0.05
"""What one chunk in a hundred may be delayed by, beyond what it is without the target."""
STEPS: Final = (
    *(10, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256),
    *(320, 400, 512, 640, 800, 1000, 1280, 1600),
)
"""A quarter more each time: figures of this kind differ by more than that between two runs."""
FIRST_STEP: Final = STEPS.index(128)
TRIES: Final = 2
WINDOW_SECONDS: Final = 3.0
STARTS_A_SECOND: Final = 100
LONGEST_RAMP_SECONDS: Final = 10.0


class Capacity(msgspec.Struct, kw_only=True):
    """What was found for one target."""

    target: str
    streams: int
    """The most that were held; 0 if not even the fewest were."""
    refuted: int | None
    """The next step, that was too much; None if there was none."""
    chunks_a_second: float = 0.0
    core_share: float = 0.0
    """Of the core's time that was used with that many."""


class Search:
    """Finds capacities; the direct run at each step is made once for all targets."""

    def __init__(
        self, see: Callable[[Load], Seen], direct: Opened, say: Callable[[str], None]
    ) -> None:
        self._see = see
        self._direct = direct
        self._say = say
        self._direct_delays: dict[int, float] = {}

    def of(self, name: str, opened: Opened) -> Capacity:
        """The capacity of this target, by halving the range of steps."""
        found = Capacity(target=name, streams=0, refuted=None)
        low, high = -1, len(STEPS)
        at = FIRST_STEP
        while high - low > 1:
            streams = STEPS[at]
            # A busy moment of the machine is no limit of the target's: what fails is tried again.
            if any(self._is_held(found, opened, streams) for _ in range(TRIES)):
                low, found.streams = at, streams
            else:
                high, found.refuted = at, streams
            at = (low + high) // 2
        return found

    def _is_held(self, found: Capacity, opened: Opened, streams: int) -> bool:
        try:
            seen = self._see(_load(opened, streams))
        except RuntimeError as error:
            self._say(f"  {found.target}, {streams} streams: {error}")
            return False
        if seen.delay is None or seen.failed or seen.lost:
            self._say(f"  {found.target}, {streams} streams: failed {seen.failed}")
            return False
        delay = seen.delay.p99
        is_held = delay < LATE_SECONDS or delay - self._direct_delay(streams) < LATE_SECONDS
        self._say(f"  {found.target}, {streams} streams: p99 of the delay {delay * 1000:.0f} ms")
        if is_held:
            found.chunks_a_second = seen.chunks / seen.window_seconds
            found.core_share = seen.cpu_seconds / seen.window_seconds
        return is_held

    def _direct_delay(self, streams: int) -> float:
        if streams not in self._direct_delays:
            seen = self._see(_load(self._direct, streams))
            self._direct_delays[streams] = seen.delay.p99 if seen.delay else 0.0
        return self._direct_delays[streams]


def _load(opened: Opened, streams: int) -> Load:
    return Load(
        url=opened.url,
        key=opened.key,
        model=opened.model,
        kind="streams",
        streams=streams,
        ramp_seconds=min(max(1.0, streams / STARTS_A_SECOND), LONGEST_RAMP_SECONDS),
        window_seconds=WINDOW_SECONDS,
        watched=opened.watched,
    )
