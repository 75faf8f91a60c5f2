"""A clock whose hands the test turns."""

from collections.abc import Callable


class FakeTimer:
    """A call that happens when the test turns the clock past its moment."""

    def __init__(self, moment: float, callback: Callable[[], None]) -> None:
        self.moment = moment
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        """Never make the call."""
        self.is_cancelled = True


class FakeClock:
    """Speaks emulator.clock.Clock; stands still until `advance`."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._timers: list[FakeTimer] = []

    def now(self) -> float:
        """The moment the test has set."""
        return self._now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> FakeTimer:
        """Remember the call until the clock has been turned far enough."""
        timer = FakeTimer(self._now + seconds, callback)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Turn the clock, making every call that falls due on the way at its own moment."""
        end = self._now + seconds
        while due := [timer for timer in self.pending() if timer.moment <= end]:
            first = min(due, key=lambda timer: timer.moment)
            self._timers.remove(first)
            self._now = max(self._now, first.moment)
            first.callback()
        self._now = end

    def pending(self) -> list[FakeTimer]:
        """The calls that are still to come."""
        self._timers = [timer for timer in self._timers if not timer.is_cancelled]
        return self._timers
