"""Answers by the direct channel, with a real proxy and a worker that a test drives."""

from tests.proxy.backends.runpod.direct.conftest import Direct, event, frame
from tests.waiting import wait_until


def test_an_answer_comes_by_the_channel_once_it_is_open(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.send(frame(2), frame(3, end=True))
        assert answer.read_all() == "".join(map(event, range(4)))
    wait_until(lambda: direct.worker.acknowledged(direct.nonce) == (4, 4))
    assert direct.runpod.cancelled == []
