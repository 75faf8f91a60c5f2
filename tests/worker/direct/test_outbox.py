"""The frames of one job, whatever happens on the two roads."""

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.direct.outbox import OUTPUT_BYTES, Outbox

WINDOW = 200
POST_AFTER = 1.0


def frame(number: int, *, end: bool = False, text: str = "x") -> dict[str, Any]:
    return {"seq": number, "text": text} | ({"end": True} if end else {})


def numbers(frames: list[Any]) -> list[int]:
    return [(json.loads(one) if isinstance(one, str) else one)["seq"] for one in frames]


def filled(count: int, *, ended: bool = False, text: str = "x") -> Outbox:
    outbox = Outbox(window_bytes=WINDOW, post_after_seconds=POST_AFTER)
    for number in range(count):
        outbox.add(frame(number, end=ended and number == count - 1, text=text), now=0)
    return outbox


class AnyOrder(RuleBasedStateMachine):
    """A job, a proxy that comes and goes, and a queue that takes what is due.

    The proxy knows only what reached it: a lost connection loses what was under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(window_bytes=WINDOW, post_after_seconds=POST_AFTER)
        self.now = 0.0
        self.made_at: list[float] = []
        self.received: set[int] = set()
        self.acknowledged = 0
        self.consumed = 0
        self.posted: list[int] = []
        self.under_way: list[tuple[int, int]] = []
        self.expected = 0
        """The number that the channel has to send next."""

    @precondition(lambda self: not self.outbox.ended)
    @rule(end=st.booleans(), size=st.integers(0, 300))
    def add(self, end: bool, size: int) -> None:
        self.outbox.add(frame(len(self.made_at), end=end, text="x" * size), self.now)
        self.made_at.append(self.now)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1, 2]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, len(self.made_at)))
        self.outbox.attach(first)
        self.expected = max(first, self.acknowledged)
        self.under_way = []

    @rule()
    def lose(self) -> None:
        self.outbox.detach()

    @rule(arrives=st.booleans())
    def send(self, arrives: bool) -> None:
        for text in self.outbox.to_send():
            assert self.outbox.attached
            assert sum(size for _, size in self.under_way) < WINDOW
            number = json.loads(text)["seq"]
            assert number == self.expected, "in order, without holes"
            self.expected += 1
            self.under_way.append((number, len(text)))
            if arrives:
                self.received.add(number)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        safe = self.received | set(self.posted)
        whole = next(number for number in range(len(self.made_at) + 1) if number not in safe)
        received = data.draw(st.integers(0, whole))
        self.consumed = max(self.consumed, data.draw(st.integers(0, received)))
        self.outbox.acknowledge(received, self.consumed)
        self.acknowledged = max(self.acknowledged, received)
        self.expected = max(self.expected, self.acknowledged)
        self.under_way = [one for one in self.under_way if one[0] >= self.consumed]

    @rule()
    def post(self) -> None:
        due = self.outbox.take_due(self.now)
        for number in numbers(due):
            assert number >= self.acknowledged, "nothing is posted once it was acknowledged"
            assert number not in self.posted
            late = self.now - self.made_at[number] >= POST_AFTER
            assert late or not self.outbox.attached
            self.posted.append(number)
        assert self.posted == sorted(self.posted)

    @invariant()
    def what_is_settled_is_safe(self) -> None:
        assert self.outbox.frames == len(self.made_at)
        assert self.outbox.posted == len(self.posted)
        safe = set(range(self.acknowledged)) | set(self.posted)
        whole = self.outbox.ended and safe >= set(range(len(self.made_at)))
        assert self.outbox.is_settled == whole

    def teardown(self) -> None:
        """Whatever happened: without a proxy the queue gets the rest at once, and all is safe."""
        if not self.outbox.ended:
            self.add(end=True, size=1)
        self.outbox.detach()
        while (due_at := self.outbox.due_at) is not None:
            assert due_at <= self.now
            self.post()
        assert self.outbox.is_settled
        self.what_is_settled_is_safe()


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_without_a_channel_a_frame_is_due_at_once() -> None:
    outbox = filled(2)
    assert numbers(outbox.take_due(0)) == [0, 1]
    assert outbox.take_due(9) == []
    assert outbox.due_at is None


def test_what_is_not_acknowledged_in_time_is_due() -> None:
    outbox = filled(2)
    outbox.attach(0)
    outbox.to_send()
    assert outbox.due_at == POST_AFTER
    assert outbox.take_due(0.9) == []
    outbox.acknowledge(1, 0)
    assert numbers(outbox.take_due(1)) == [1]


def test_vllm_waits_while_the_window_is_full_and_goes_on_with_the_client() -> None:
    outbox = filled(9, text="x" * 60)
    outbox.attach(0)
    assert len(outbox.to_send()) == 3
    assert not outbox.has_room
    outbox.acknowledge(3, 0)
    assert outbox.to_send() == [], "what is safe at the proxy still waits for its client"
    outbox.acknowledge(3, 3)
    assert numbers(outbox.to_send()) == [3, 4, 5]


def test_a_proxy_that_comes_back_gets_a_new_window() -> None:
    outbox = filled(9, text="x" * 60)
    outbox.attach(0)
    outbox.to_send()
    outbox.detach()
    outbox.attach(2)
    assert numbers(outbox.to_send()) == [2, 3, 4]


def test_what_was_under_way_to_a_lost_proxy_makes_no_room_for_the_next() -> None:
    outbox = filled(9, text="x" * 60)
    for _ in range(2):
        outbox.attach(0)
        assert numbers(outbox.to_send()) == [0, 1, 2]
    outbox.acknowledge(3, 3)
    assert numbers(outbox.to_send()) == [3, 4, 5]


def test_what_the_proxy_has_by_the_queue_is_not_sent_to_it_again() -> None:
    outbox = filled(9, text="x" * 60)
    outbox.attach(0)
    assert numbers(outbox.to_send()) == [0, 1, 2]
    outbox.take_due(POST_AFTER)
    outbox.acknowledge(4, 4)
    assert numbers(outbox.to_send()) == [4, 5, 6]


def test_a_frame_that_has_left_on_neither_road_cannot_be_acknowledged() -> None:
    outbox = filled(3, ended=True)
    outbox.attach(0)
    outbox.acknowledge(99, 99)
    assert numbers(outbox.to_send()) == [0, 1, 2]
    assert not outbox.is_settled


def test_outputs_stay_below_what_runpod_splits() -> None:
    outbox = filled(5, text="x" * (OUTPUT_BYTES // 3))
    assert [numbers(outbox.take_due(0)) for _ in range(3)] == [[0, 1], [2, 3], [4]]


def test_a_frame_larger_than_an_output_is_one_of_its_own() -> None:
    outbox = filled(2, text="x" * OUTPUT_BYTES)
    assert [numbers(outbox.take_due(0)) for _ in range(3)] == [[0], [1], []]
