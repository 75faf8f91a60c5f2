"""Messages of the channel, as `tests/wire/channel/` has them: what the proxy makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.backends.runpod.direct.offer import NoOffer, offered
from proxy.backends.runpod.direct.road import DirectRoad
from proxy.backends.runpod.wire import FrameReader
from proxy.memory import Memory
from proxy.telemetry.metrics import Metrics
from tests.proxy.backends.runpod.direct.test_channel import served, turns
from tests.virtual_time import run_virtually

WIRE: dict[str, Any] = json.loads(
    (Path(__file__).parents[4] / "wire" / "channel" / "messages.json").read_text()
)
NONCE = WIRE["input"]["nonce"]


def test_a_jobs_input_tells_what_was_recorded() -> None:
    road = DirectRoad(
        Memory(2**20), Metrics(), door="wss://proxy-1.example.com/channel", may_be_private=False
    )
    told = dict(road.invite("ep", 8899).told)
    own = {"nonce", "certificate", "token"}
    assert told.keys() == WIRE["input"].keys()
    assert {key: told[key] for key in told.keys() - own} == {
        key: WIRE["input"][key] for key in told.keys() - own
    }
    assert all(len(told[key]) == len(WIRE["input"][key]) for key in ("nonce", "token"))


def test_doors_are_read_as_they_were_recorded() -> None:
    assert offered(WIRE["heads"]["open"]).place == "203.0.113.7:34567"
    with pytest.raises(NoOffer, match="no_public_port"):
        offered(WIRE["heads"]["closed"])
    with pytest.raises(NoOffer, match="connecting"):
        offered(WIRE["heads"]["dials"])


def test_what_a_worker_says_is_answered_as_it_was_recorded() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            job.note_read(3)
            job.note_consumed()
            it.wire.say(*_renamed(WIRE["worker"], job.nonce))
            await turns()
            assert it.wire.items == _renamed(WIRE["proxy"][:2], job.nonce)
            assert job.take() == [item[2] for item in WIRE["worker"] if item[0] == "frame"]

    run_virtually(scenario())


def _renamed(items: list[Any], nonce: str) -> Any:
    """The items with this nonce in place of the recorded one."""
    return json.loads(json.dumps(items).replace(NONCE, nonce))


def test_a_summary_is_no_frame() -> None:
    reader = FrameReader()
    assert reader.feed([WIRE["summary"]]) == b""
    assert not reader.ended
