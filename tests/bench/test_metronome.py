"""Streams get their turns at an even pace, whenever they begin."""

import asyncio
import time

import pytest

from tests.bench.metronome import TOKENS_A_SECOND, Metronome

pytestmark = pytest.mark.slow


class Counting:
    """A stream that notes when it had its turns, and ends after some."""

    def __init__(self, turns: int) -> None:
        self.moments: list[float] = []
        self.ended = asyncio.Event()
        self._turns = turns

    def tick(self) -> bool:
        self.moments.append(time.monotonic())
        if len(self.moments) == self._turns:
            self.ended.set()
        return not self.ended.is_set()


async def has_ended(stream: Counting) -> None:
    await stream.ended.wait()
    await asyncio.sleep(0.06)  # for one turn too many to come


async def test_every_stream_has_all_its_turns_evenly() -> None:
    metronome = Metronome()
    ticking = metronome.start()
    streams = [Counting(turns) for turns in (1, 5, 9)]
    for stream in streams:
        metronome.add(stream)
        await asyncio.sleep(0.013)
    await has_ended(streams[-1])
    late = Counting(3)  # after a time without any
    metronome.add(late)
    await has_ended(late)
    ticking.cancel()
    assert [len(stream.moments) for stream in [*streams, late]] == [1, 5, 9, 3]
    for stream in [*streams[1:], late]:
        seconds = stream.moments[-1] - stream.moments[0]
        turns = len(stream.moments) - 1
        assert seconds * TOKENS_A_SECOND == pytest.approx(turns, rel=0.5)
