"""A container that stood still, by clocks that are given."""

import pytest

from tests.worker.direct.conftest import Worker, eventually
from tests.worker.direct.scripted_proxy import ScriptedProxy
from worker.direct import freeze
from worker.direct.freeze import Clocks


class Clock:
    """A clock that goes on when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_freeze_shows_on_either_clock() -> None:
    monotonic, wall = Clock(), Clock()
    clocks = Clocks(monotonic, wall)
    monotonic.now, wall.now = 1, 1
    assert clocks.seconds_since_last() == 1
    monotonic.now = 9
    assert clocks.seconds_since_last() == 8
    wall.now = 60
    assert clocks.seconds_since_last() == 59


def test_a_clock_that_is_set_back_is_no_freeze() -> None:
    monotonic, wall = Clock(), Clock()
    clocks = Clocks(monotonic, wall)
    monotonic.now, wall.now = 1, -3600
    assert clocks.seconds_since_last() == 1


async def test_after_a_freeze_channels_close_and_the_door_has_another_certificate(
    worker: Worker, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Clock()
    monkeypatch.setattr(freeze, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(freeze, "wall_clock", wall)
    offer = proxy.channel(port=worker.port)
    posted = worker.run(offer, script={"hang_after": 1})
    await eventually(lambda: posted.frames)
    before = posted.frames[0]["channel"]["certificate"]
    async with proxy.dial(worker.port, before) as channel:
        await channel.until(lambda: channel.items)
        wall.now += 3600
        await channel.until(lambda: channel.closed)
    later = worker.run(proxy.channel(port=worker.port), max_tokens=1)
    await worker.end_of(later)
    after = later.frames[0]["channel"]["certificate"]
    assert after != before
    async with proxy.dial(worker.port, after) as channel:
        await channel.until(lambda: ["have", offer["nonce"]] in channel.items)
