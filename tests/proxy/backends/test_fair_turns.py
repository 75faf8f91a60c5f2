"""Fair turns: a round between flows by their weights, and no turn that is lost."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from proxy.backends.fair_turns import AHEAD, FairTurns, Flow, Place

A, B, C = Flow("a"), Flow("b"), Flow("c", weight=3)


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that needs an event loop and waits for nothing."""

    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


def full(concurrency: int = 2) -> tuple[FairTurns, list[Place]]:
    """Turns whose window, of one worker, is taken."""
    turns = FairTurns(concurrency)
    return turns, [turns.place(A) for _ in range(concurrency + AHEAD)]


def served(turns: FairTurns, held: list[Place], places: dict[Place, str]) -> str:
    """The flows of waiting places, in the order in which their turns come."""
    order = ""
    while any(place.is_waiting for place in places):
        waited = [place for place in places if place.is_waiting]
        held.pop(0).leave()
        taken = [place for place in waited if not place.is_waiting]
        order += "".join(places[place] for place in taken)
        held += taken
    return order


@in_a_loop
async def test_while_there_is_room_nothing_waits() -> None:
    _, held = full()
    assert not any(place.is_waiting for place in held)


@in_a_loop
async def test_where_the_concurrency_is_not_known_nothing_waits() -> None:
    turns = FairTurns()
    turns.note_workers(0)
    assert not any(turns.place(flow).is_waiting for flow in (A, B) * 500)


@in_a_loop
async def test_a_call_of_no_flow_never_waits_and_takes_room_all_the_same() -> None:
    turns = FairTurns(1)
    held = [turns.place(None) for _ in range(5)]
    assert not any(place.is_waiting for place in held)
    waiting = turns.place(A)
    for place in held[:4]:
        assert waiting.is_waiting
        place.leave()
    assert not waiting.is_waiting


@in_a_loop
async def test_a_flood_takes_no_more_than_every_other_turn() -> None:
    turns, held = full()
    places = {turns.place(A): "a" for _ in range(300)}
    places |= {turns.place(B): "b" for _ in range(3)}
    assert turns.waiting == 303
    assert served(turns, held, places)[:6] == "ababab"


@in_a_loop
async def test_a_flow_gets_as_many_turns_in_each_round_as_it_weighs() -> None:
    turns, held = full()
    places = {turns.place(flow): flow.name for flow in (A, B, C) for _ in range(30)}
    order = served(turns, held, places)
    assert order[:40] == "abccc" * 8
    assert sorted(order) == sorted("abc" * 30)


@in_a_loop
async def test_a_weight_need_not_be_whole() -> None:
    turns, held = full()
    half = Flow("h", weight=0.5)
    places = {turns.place(flow): flow.name for flow in (A, half) for _ in range(20)}
    assert served(turns, held, places)[:15] == "aahaahaahaahaah"


@in_a_loop
async def test_a_flow_that_comes_again_and_again_starves_no_other() -> None:
    turns, held = full()
    places = {turns.place(A): "a" for _ in range(20)}
    order = ""
    for _ in range(10):  # one after the other, as a person asks
        places |= {turns.place(C): "c"}
        before = [place for place in places if place.is_waiting]
        held.pop(0).leave()
        held.pop(0).leave()
        taken = [place for place in before if not place.is_waiting]
        order += "".join(places[place] for place in taken)
        held += taken
    assert order.count("a") == 10


@in_a_loop
async def test_each_worker_that_starts_lets_as_many_through_as_it_runs() -> None:
    turns, _ = full(4)
    waiting = [turns.place(B) for _ in range(100)]
    for workers in (1, 2, 5):
        turns.note_workers(workers)
        taken = 4 + AHEAD + sum(not place.is_waiting for place in waiting)
        assert taken == 4 * workers + AHEAD
    turns.note_workers(None)
    assert turns.waiting == 0


@in_a_loop
async def test_fewer_workers_take_nothing_back() -> None:
    turns, held = full(4)
    turns.note_workers(2)
    held += [turns.place(B) for _ in range(4)]
    turns.note_workers(0)
    waiting = turns.place(B)
    for place in held[:4]:
        place.leave()
    assert waiting.is_waiting
    held[4].leave()
    assert not waiting.is_waiting


@in_a_loop
async def test_who_leaves_the_line_gives_up_its_place_at_once() -> None:
    turns, held = full()
    first, second = turns.place(A), turns.place(A)
    first.leave()
    assert turns.waiting == 1
    held[0].leave()
    assert not second.is_waiting


@pytest.mark.parametrize("leaves_first", [True, False])
def test_a_turn_that_comes_as_its_caller_leaves_goes_to_the_next(leaves_first: bool) -> None:
    async def run() -> None:
        turns, held = full()
        place, following = turns.place(A), turns.place(B)
        caller = asyncio.create_task(place.turn())
        await asyncio.sleep(0)
        if leaves_first:
            caller.cancel()
            held[0].leave()
        else:
            held[0].leave()
            caller.cancel()
        assert not caller.done()
        with pytest.raises(asyncio.CancelledError):
            await caller
        place.leave()
        place.leave()
        assert not following.is_waiting
        assert turns.place(A).is_waiting  # and nobody else's turn came of it

    asyncio.run(run())


@in_a_loop
async def test_no_turn_is_lost_or_made_however_callers_come_and_leave() -> None:
    chance = random.Random(7)
    turns, held = full(3)
    flows, waiting = [A, B, C], [turns.place(A) for _ in range(3)]
    for _ in range(5_000):
        match chance.randrange(4):
            case 0 | 1:
                waiting.append(turns.place(chance.choice(flows)))
            case 2 if waiting:
                waiting.pop(chance.randrange(len(waiting))).leave()
            case 3 if held:
                held.pop(chance.randrange(len(held))).leave()
        held += [place for place in waiting if not place.is_waiting]
        waiting = [place for place in waiting if place.is_waiting]
        assert turns.waiting == len(waiting)
        assert len(held) <= 3 + AHEAD
        assert len(held) == 3 + AHEAD or not waiting


@in_a_loop
async def test_copies_that_know_nothing_of_one_another_have_a_share_each() -> None:
    turns = FairTurns(4, copies=2)
    assert [turns.place(A).is_waiting for _ in range(5)] == [False] * 3 + [True] * 2
    turns.note_workers(2)  # a window of nine
    assert turns.waiting == 0
    turns.note_workers(None)
    assert not any(turns.place(A).is_waiting for _ in range(50))


@in_a_loop
async def test_what_was_lent_is_used_and_the_place_of_a_call_that_ends_is_no_waiting_ones() -> None:
    turns = FairTurns(4, copies=2)
    turns.lend(2, {})
    held = [turns.place(A) for _ in range(2)]
    waiting = turns.place(A)
    held[0].leave()
    assert waiting.is_waiting
    turns.lend(1, {})
    assert not waiting.is_waiting
    held[1].leave()
    assert not turns.place(A).is_waiting
    turns.keep_to_share()
    assert [turns.place(A).is_waiting for _ in range(2)] == [False, True]


@in_a_loop
async def test_a_flow_that_waits_in_other_copies_too_has_a_part_of_its_turns_here() -> None:
    turns = FairTurns(4)
    turns.lend(0, {"a": 3})
    places = {turns.place(flow): flow.name for flow in (A, B) for _ in range(20)}
    order = ""
    for _ in range(16):
        waited = [place for place in places if place.is_waiting]
        turns.lend(1, {"a": 3})
        order += "".join(places[place] for place in waited if not place.is_waiting)
    assert order == "bba" + "bbba" * 3 + "b"
