"""Fair turns over two copies with a real Redis: one window, and turns between their keys."""

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis

from proxy.backends import shared_turns
from proxy.backends.fair_turns import AHEAD, FairTurns, Flow, Place
from proxy.backends.shared_turns import SharedTurns
from proxy.storage.shared_state import PREFIX, Script, SharedState
from tests.redis_server import RedisServer
from tests.waiting import until

A, B, C = Flow("a"), Flow("b"), Flow("c", weight=3)
CONCURRENCY = 4
WINDOW = CONCURRENCY + AHEAD
KEPT = f"{PREFIX}:turns:{{ep}}"
NEVER = 1000.0


@pytest.fixture(autouse=True)
def no_lease_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(shared_turns, "LEASE_SECONDS", NEVER)


class CountedState(SharedState):
    """A Redis that is counted how often it is asked, and answers."""

    asked = answered = 0

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        self.asked += 1
        answer = await super().run(script, keys, arguments)
        self.answered += 1
        return answer


class Copy:
    """One copy's turns, and what it shares them by."""

    def __init__(self, redis: RedisServer, concurrency: int) -> None:
        self.turns = FairTurns(concurrency, copies=2)
        self.state = CountedState(redis.url)
        self._shared = SharedTurns(self.state)
        self._shared.hold(self.turns, "ep")

    async def questions_answered(self, number: int) -> None:
        """So many more."""
        before = self.state.answered
        await until(lambda: self.state.answered >= before + number)

    async def kill(self) -> None:
        """It says nothing any more, and gives nothing back."""
        await self._shared.close()
        await self.state.close()


class Crowd:
    """The calls of two copies, which end when a test says so."""

    def __init__(self, redis: RedisServer, concurrency: int) -> None:
        self.one, self.other = (Copy(redis, concurrency) for _ in range(2))
        self.order = ""
        """The flows of calls that were let through."""
        self.running: deque[tuple[Copy, Place]] = deque()
        self.most_running = 0
        self._redis = redis
        self._calls: set[asyncio.Task[None]] = set()

    def ask(self, copy: Copy, flow: Flow, times: int = 1) -> list[asyncio.Task[None]]:
        """So many calls, which pass or wait."""
        calls = [asyncio.create_task(self._call(copy, flow)) for _ in range(times)]
        self._calls.update(calls)
        return calls

    async def fill(self, copy: Copy, flow: Flow) -> None:
        """Calls of this flow take the whole window."""
        self.ask(copy, flow, WINDOW)
        await until(lambda: len(self.running) == WINDOW)

    async def wait_in_line(self, copy: Copy, flow: Flow, times: int = 1) -> None:
        """So many more calls wait, and Redis knows."""
        waiting = copy.turns.waiting
        self.ask(copy, flow, times)
        await until(lambda: copy.turns.waiting == waiting + times)
        await copy.questions_answered(2)  # the first may have been on its way

    async def turns(self, number: int, copy: Copy | None = None) -> str:
        """The flows whose turns come as so many calls, of one copy or of both, end one by one."""
        before = len(self.order)
        for done in range(1, number + 1):
            self.end(copy)
            await until(lambda done=done: len(self.order) == before + done)  # type: ignore[misc]
        return self.order[before:]

    def end(self, copy: Copy | None = None) -> None:
        """The oldest call ends, or that of one copy."""
        ended = next(call for call in self.running if copy in (None, call[0]))
        self.running.remove(ended)
        ended[1].leave()

    async def close(self) -> None:
        """All calls are left."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        while self.running:
            self.end()
        for copy in (self.one, self.other):
            await copy.kill()

    def copies(self) -> list[dict[str, float]]:
        """What Redis knows of the copies that have places or want them."""
        with Redis.from_url(self._redis.url, decode_responses=True) as client:
            return [json.loads(copy) for copy in client.hvals(KEPT)]

    async def _call(self, copy: Copy, flow: Flow) -> None:
        place = copy.turns.place(flow)
        try:
            await place.turn()
        except asyncio.CancelledError:
            place.leave()
            raise
        self.order += flow.name
        self.running.append((copy, place))
        self.most_running = max(self.most_running, len(self.running))


@asynccontextmanager
async def two_copies(redis: RedisServer, concurrency: int = CONCURRENCY) -> AsyncIterator[Crowd]:
    crowd = Crowd(redis, concurrency)
    try:
        yield crowd
    finally:
        await crowd.close()


async def test_a_copy_that_is_alone_has_the_whole_window_and_no_more(redis: RedisServer) -> None:
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        await crowd.wait_in_line(crowd.one, A, 3)
        await crowd.one.questions_answered(3)
        assert crowd.most_running == WINDOW


async def test_copies_together_let_through_one_window_whoever_comes_and_leaves(
    redis: RedisServer,
) -> None:
    dice = random.Random(3)
    async with two_copies(redis) as crowd:
        left, calls = 0, list[asyncio.Task[None]]()
        for _ in range(400):
            match dice.randrange(4):
                case 0 | 1:
                    copy, flow = dice.choice((crowd.one, crowd.other)), dice.choice((A, B, C))
                    calls += crowd.ask(copy, flow)
                case 2 if crowd.running:
                    crowd.end()
                case 3 if calls:
                    left += calls.pop(dice.randrange(len(calls))).cancel()
            await asyncio.sleep(dice.choice((0, 0, 0.002)))
        while any(not call.done() for call in calls):
            await until(lambda: bool(crowd.running))
            crowd.end()
            await asyncio.sleep(0)
        assert crowd.most_running == WINDOW
        while crowd.running:
            crowd.end()
        await until(lambda: crowd.copies() == [])
        assert left


async def test_a_key_has_one_of_the_next_two_turns_at_whichever_copy_another_floods(
    redis: RedisServer,
) -> None:
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        await crowd.wait_in_line(crowd.one, A, 300)
        for copy in (crowd.other, crowd.one, crowd.other):
            await crowd.wait_in_line(copy, B)
            assert "b" in await crowd.turns(2)


async def test_two_copies_with_a_flood_each_take_turns_by_the_weights_of_their_keys(
    redis: RedisServer,
) -> None:
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        await crowd.wait_in_line(crowd.one, A, 40)
        await crowd.wait_in_line(crowd.other, C, 60)
        turns = await crowd.turns(40)
        assert abs(turns.count("c") - 30) <= 1
        assert abs(turns[:12].count("c") - 9) <= 1


async def test_a_key_that_waits_in_both_copies_gets_no_more_turns_by_it(
    redis: RedisServer,
) -> None:
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        for copy, flow in ((crowd.one, A), (crowd.one, B), (crowd.other, B)):
            await crowd.wait_in_line(copy, flow, 60)
        turns = await crowd.turns(60)
        assert abs(turns.count("b") - 30) <= 2


async def test_who_comes_again_and_again_at_one_copy_starves_nobody_at_the_other(
    redis: RedisServer,
) -> None:
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        await crowd.wait_in_line(crowd.one, A, 30)
        for _ in range(6):
            await crowd.wait_in_line(crowd.other, B)
            assert sorted(await crowd.turns(2)) == ["a", "b"]


async def test_a_copy_where_nobody_waited_for_long_has_no_more_turns_for_that(
    redis: RedisServer,
) -> None:
    async with two_copies(redis) as crowd:
        crowd.ask(crowd.other, B)  # its call runs all the time
        crowd.ask(crowd.one, A, CONCURRENCY)
        await until(lambda: len(crowd.running) == WINDOW)
        await crowd.wait_in_line(crowd.one, A, 40)
        assert await crowd.turns(15, crowd.one) == "a" * 15
        await crowd.wait_in_line(crowd.other, B, 20)
        assert (await crowd.turns(10)).count("b") <= 6


async def test_while_there_is_room_a_call_is_let_through_without_a_question(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_turns, "RENEW_SECONDS", NEVER)
    async with two_copies(redis, 100) as crowd:
        crowd.ask(crowd.one, A)
        await until(lambda: len(crowd.running) == 1)
        await until(lambda: crowd.copies()[0]["held"] == 1 + 50)
        asked = crowd.one.state.asked
        for _ in range(200):
            place = crowd.one.turns.place(A)
            assert not place.is_waiting
            await asyncio.sleep(0)
            place.leave()
        assert crowd.one.state.asked == asked


async def test_where_one_key_is_alone_redis_is_not_asked(redis: RedisServer) -> None:
    async with two_copies(redis) as crowd:
        places = [crowd.one.turns.place(None) for _ in range(20)]
        for place in places:
            assert not place.is_waiting
            place.leave()
        await asyncio.sleep(0)
        assert crowd.one.state.asked == 0


async def test_a_copy_that_begins_finds_room_beside_one_that_has_used_little(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_turns, "RENEW_SECONDS", NEVER)
    async with two_copies(redis, 100) as crowd:
        crowd.ask(crowd.one, A)
        await until(lambda: len(crowd.running) == 1)
        crowd.ask(crowd.other, A, 40)
        await until(lambda: len(crowd.running) == 41)


async def test_what_a_copy_does_not_use_is_the_others_where_calls_wait(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_turns, "RENEW_SECONDS", 0.1)
    async with two_copies(redis, 100) as crowd:
        crowd.ask(crowd.one, A)
        await until(lambda: crowd.one.turns.lent == 50)
        crowd.ask(crowd.other, A, 200)
        await until(lambda: len(crowd.running) == 101)


async def test_a_place_that_is_used_no_more_is_the_other_copys_at_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_turns, "RENEW_SECONDS", NEVER)
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        await crowd.wait_in_line(crowd.other, A, 3)
        for running in (6, 7, 8):
            crowd.end(crowd.one)
            await until(lambda running=running: len(crowd.order) == running)  # type: ignore[misc]
        assert crowd.most_running == WINDOW


async def test_workers_that_come_up_let_more_through_in_all_copies_together(
    redis: RedisServer,
) -> None:
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        for copy, flow in ((crowd.one, A), (crowd.other, B)):
            await crowd.wait_in_line(copy, flow, 30)
        for copy in (crowd.one, crowd.other):
            copy.turns.note_workers(3)
        wide = 3 * CONCURRENCY + AHEAD
        await until(lambda: len(crowd.running) == wide)
        for copy in (crowd.one, crowd.other):
            await copy.questions_answered(2)
        assert crowd.most_running == wide
        assert abs(crowd.order[WINDOW:].count("b") - 4) <= 1
        crowd.other.turns.note_workers(None)
        await until(lambda: crowd.other.turns.waiting == 0)


async def test_places_are_kept_for_as_long_as_calls_are_under_way(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_turns, "RENEW_SECONDS", 0.05)
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        for _ in range(3):
            (before,) = crowd.copies()
            await until(lambda before=before: crowd.copies()[0]["till"] > before["till"])  # type: ignore[misc]
            assert crowd.copies()[0]["held"] == WINDOW


async def test_places_of_a_copy_that_was_killed_are_free_after_its_lease(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_copies(redis) as crowd:
        await crowd.fill(crowd.one, A)
        await crowd.wait_in_line(crowd.one, A, 30)
        await crowd.wait_in_line(crowd.other, B, 30)
        monkeypatch.setattr(shared_turns, "LEASE_SECONDS", 1.0)
        await crowd.one.questions_answered(2)
        monkeypatch.setattr(shared_turns, "LEASE_SECONDS", NEVER)
        await crowd.one.kill()
        await until(lambda: crowd.order.count("b") == WINDOW)
        await crowd.other.questions_answered(2)
        assert crowd.order.count("b") == WINDOW


async def test_while_redis_is_away_each_copy_keeps_to_its_share_and_then_they_share_one_window(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_turns, "SETTLE_SECONDS", NEVER)
    redis.stop()
    async with two_copies(redis, 5) as crowd:
        for copy, flow in ((crowd.one, A), (crowd.other, B)):
            crowd.ask(copy, flow, 20)
            await until(lambda flow=flow: crowd.order.count(flow.name) == 3)  # type: ignore[misc]
        assert crowd.order == "aaabbb"
        assert sorted(await crowd.turns(4)) == list("aaab")
        redis.start()
        await until(lambda: sum(copy["held"] for copy in crowd.copies()) == 6)
        turns = await crowd.turns(10)
        assert abs(turns.count("a") - 5) <= 1
        assert crowd.most_running == 6


async def test_a_copy_whose_redis_is_back_leaves_room_for_those_that_are_not_yet_known(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_turns, "SETTLE_SECONDS", NEVER)
    redis.stop()
    async with two_copies(redis, 5) as crowd:
        crowd.ask(crowd.one, A, 20)
        await until(lambda: len(crowd.running) == 3)
        redis.start()
        await crowd.one.questions_answered(10)
        await crowd.turns(3)
        await crowd.one.questions_answered(10)
        assert crowd.most_running == 3
