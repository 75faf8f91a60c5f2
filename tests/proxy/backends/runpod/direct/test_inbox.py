"""One job's frames by the channel: what is told to the worker, and what is held."""

import gc
import tracemalloc
from typing import Any

import msgspec
import pytest

from proxy.backends.runpod.direct.inbox import MAX_WAITING_BYTES, WINDOW_BYTES, Inbox, WindowIgnored
from proxy.memory import Memory
from tests.proxy.backends.runpod.direct.conftest import frame


class Carrier:
    """A channel that notes what it is asked to tell."""

    def __init__(self) -> None:
        self.is_silent = False
        self.owed: list[bool] = []
        self.dropped = 0

    def acknowledge(self, inbox: Inbox, *, at_once: bool) -> None:
        self.owed.append(at_once)

    def drop(self, inbox: Inbox) -> None:
        self.dropped += 1


def inbox_of(memory: Memory | None = None) -> tuple[Inbox, Carrier]:
    inbox, carrier = Inbox("n", (memory or Memory(2**30)).reserve_for_answer()), Carrier()
    inbox.attach(carrier)
    return inbox, carrier


def put(inbox: Inbox, *numbers: int, **more: Any) -> None:
    for number in numbers:
        inbox.put(number, frame(number, **more))


def numbers(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["seq"] for frame in frames]


def test_frames_are_received_when_they_come_and_consumed_when_they_were_handed_on() -> None:
    inbox, _ = inbox_of()
    put(inbox, 0, 1, 2)
    assert (inbox.received, inbox.consumed) == (3, 0)
    assert numbers(inbox.take()) == [0, 1, 2]
    assert (inbox.received, inbox.consumed) == (3, 0)
    inbox.note_consumed()
    assert (inbox.received, inbox.consumed) == (3, 3)
    assert inbox.take() == []


def test_a_frame_that_has_come_before_is_dropped() -> None:
    inbox, _ = inbox_of()
    put(inbox, 0, 1)
    inbox.take()
    put(inbox, 0, 1, 2)
    assert numbers(inbox.take()) == [2]


def test_what_comes_after_a_hole_is_handed_on_and_not_received_before_the_hole_is_filled() -> None:
    inbox, _ = inbox_of()
    put(inbox, 0, 2, 3)
    assert numbers(inbox.take()) == [0, 2, 3]
    assert inbox.received == 1
    assert not inbox.is_carried
    inbox.note_read(4)  # the queue has brought number 1
    assert inbox.received == 4
    assert inbox.is_carried


def test_frames_that_the_queue_brought_are_received_and_consumed_too() -> None:
    inbox, carrier = inbox_of()
    inbox.note_read(5)
    inbox.note_consumed()
    assert (inbox.received, inbox.consumed) == (5, 5)
    assert carrier.owed
    put(inbox, 4, 5)
    assert numbers(inbox.take()) == [5]


def test_credit_is_due_at_once_when_a_quarter_of_the_window_has_been_handed_on() -> None:
    inbox, carrier = inbox_of()
    size = WINDOW_BYTES // 8
    for number in range(3):
        put(inbox, number, text="x" * size)
        inbox.take()
        inbox.note_consumed()
    assert carrier.owed == [False, True, True]
    inbox.note_told()
    put(inbox, 3)
    inbox.take()
    inbox.note_consumed()
    assert carrier.owed[-1] is False


def test_a_worker_that_ignores_the_window_is_found_out() -> None:
    inbox, _ = inbox_of()
    text = "x" * 2**20
    with pytest.raises(WindowIgnored):
        put(inbox, *range(MAX_WAITING_BYTES // 2**20 + 1), text=text)


def test_a_window_of_the_smallest_frames_is_a_window() -> None:
    inbox, _ = inbox_of()
    put(inbox, *range(WINDOW_BYTES // 60), text="x")
    assert inbox.received == WINDOW_BYTES // 60


def test_a_frame_without_room_in_the_memory_is_left_to_the_queue() -> None:
    memory = Memory(100_000)
    inbox, _ = inbox_of(memory)
    put(inbox, 0, 1, text="x" * 90_000)
    assert inbox.received == 1
    assert not inbox.is_carried
    assert memory.used_bytes > 90_000
    assert numbers(inbox.take()) == [0]
    assert memory.used_bytes == 0


@pytest.mark.parametrize("junk", [[[]] * 10_000, {f"k{n}": n for n in range(10_000)}])
def test_whatever_a_frame_holds_is_counted(junk: Any) -> None:
    memory = Memory(2**30)
    inbox, _ = inbox_of(memory)
    text = msgspec.json.encode(frame(1, junk=junk))
    tracemalloc.start()
    inbox.put(1, msgspec.json.decode(text))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory.used_bytes > held / 2


def test_a_closed_inbox_holds_nothing() -> None:
    memory = Memory(100_000)
    inbox, _ = inbox_of(memory)
    put(inbox, 0, 1)
    inbox.clear()
    assert memory.used_bytes == 0
    put(inbox, 2)
    del inbox
    gc.collect()
    assert memory.used_bytes == 0


def test_another_runs_numbers_begin_anew() -> None:
    inbox, _ = inbox_of()
    put(inbox, 0, 1)
    inbox.put(0, frame(0, run="r2"))
    assert inbox.received == 1
    assert [frame["run"] for frame in inbox.take()] == ["r1", "r1", "r2"]


def test_it_is_carried_from_the_first_frame_of_a_channel_until_that_is_silent_or_gone() -> None:
    inbox, carrier = inbox_of()
    assert not inbox.is_carried
    put(inbox, 0)
    assert inbox.is_carried
    carrier.is_silent = True
    assert not inbox.is_carried
    carrier.is_silent = False
    inbox.detach()
    assert not inbox.is_carried
    assert inbox.was_lost
    inbox.attach(Carrier())
    assert not inbox.is_carried
    put(inbox, 1)
    assert inbox.is_carried


def test_a_job_is_brought_by_one_channel_at_a_time() -> None:
    inbox, former = inbox_of()
    inbox.attach(Carrier())
    assert former.dropped == 1
