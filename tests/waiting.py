"""Waiting for something to come about, instead of for a time to pass."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    """Return once `condition` holds; fail if that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
