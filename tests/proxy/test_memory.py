"""One bound on the memory of all bodies and buffers."""

import gc

import pytest

from proxy.errors import MemoryLimitReached
from proxy.memory import Memory


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    memory = Memory(100)
    first, second = memory.reserve(60), memory.reserve()
    with pytest.raises(MemoryLimitReached) as refused:
        second.grow(41)
    assert refused.value.headers["retry-after"] == "5"
    assert (memory.used_bytes, second.size) == (60, 0)
    second.grow(40)
    first.shrink(1)
    assert memory.used_bytes == 99


def test_what_is_released_or_dropped_is_given_back_once() -> None:
    memory = Memory(100)
    released, dropped = memory.reserve(10), memory.reserve(20)
    released.release()
    released.release()
    assert memory.used_bytes == 20
    del dropped, released
    gc.collect()
    assert memory.used_bytes == 0
