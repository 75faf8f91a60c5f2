"""Waiting for a condition, with a deadline that only a broken program meets."""

import time
from collections.abc import Callable

DEADLINE_SECONDS = 60.0


def until(condition: Callable[[], object], *, seconds: float = DEADLINE_SECONDS) -> None:
    """Return when `condition()` is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s: {condition}"
        time.sleep(0.02)
