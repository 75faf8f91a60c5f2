"""One connection to a worker, in virtual time: its messages, its pings, its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from proxy.backends.runpod.direct.channel import MAX_UNKNOWN, Channel
from proxy.backends.runpod.direct.inbox import Inbox
from proxy.backends.runpod.direct.inboxes import Inboxes
from proxy.memory import Memory
from tests.proxy.backends.runpod.direct.conftest import frame
from tests.virtual_time import run_virtually


class Wire:
    """A connection in memory, whose other end is the test."""

    def __init__(self) -> None:
        self.incoming = asyncio.Queue[bytes | str | None]()
        self.sent: list[list[list[Any]]] = []
        self.answers_pings = True
        self.is_closed = False

    async def receive(self) -> bytes | str | None:
        return await self.incoming.get()

    async def send(self, text: bytes) -> None:
        items = msgspec.json.decode(text)
        self.sent.append(items)
        for item in items:
            if item[0] == "ping" and self.answers_pings:
                self.say(["pong", item[1]])

    async def close(self) -> None:
        self.is_closed = True

    def say(self, *items: Any) -> None:
        self.incoming.put_nowait(msgspec.json.encode(items))

    @property
    def items(self) -> list[list[Any]]:
        return [item for items in self.sent for item in items if item[0] != "ping"]

    @property
    def pings(self) -> int:
        return sum(item[0] == "ping" for items in self.sent for item in items)


class Served:
    """A channel that is being served, and what its jobs are registered with."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.inboxes = Inboxes(Memory(2**30))
        self.channel = Channel(self.wire, self.inboxes, "ep")
        self.running = asyncio.create_task(self.channel.run())

    def job(self) -> Inbox:
        return self.inboxes.open()


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    found = Served()
    yield found
    found.channel.end("closed")
    await found.running
    assert found.wire.is_closed
    assert len(asyncio.all_tasks()) == 1


async def turns() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_frames_reach_the_inbox_of_their_job_and_are_acknowledged_together() -> None:
    async def scenario() -> None:
        async with served() as it:
            one, two = it.job(), it.job()
            it.wire.say(["frame", one.nonce, frame(0)], ["frame", two.nonce, frame(0)])
            it.wire.say(["frame", one.nonce, frame(1)])
            await turns()
            assert (len(one.take()), len(two.take())) == (2, 1)
            assert it.wire.items == []
            await asyncio.sleep(0.3)
            (message,) = [items for items in it.wire.sent if items[0][0] == "got"]
            assert sorted(message) == sorted([["got", one.nonce, 2, 0], ["got", two.nonce, 1, 0]])

    run_virtually(scenario())


def test_an_end_frame_is_acknowledged_at_once() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            it.wire.say(["frame", job.nonce, frame(0)], ["frame", job.nonce, frame(1, end=True)])
            await turns()
            assert it.wire.items == [["got", job.nonce, 2, 0]]

    run_virtually(scenario())


def test_a_running_job_that_is_followed_is_taken_from_where_it_stands() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            job.note_read(7)
            it.wire.say(["have", job.nonce])
            await turns()
            assert it.wire.items == [["take", job.nonce, 7]]

    run_virtually(scenario())


def test_frames_that_were_under_way_when_their_answer_was_whole_are_no_error() -> None:
    async def scenario() -> None:
        async with served() as it:
            answered, other = it.job(), it.job()
            it.inboxes.close(answered, was_left=False)
            it.wire.say(*[["frame", answered.nonce, frame(n)] for n in range(MAX_UNKNOWN + 1)])
            it.wire.say(["frame", other.nonce, frame(0)])
            await turns()
            assert (it.wire.items, len(other.take())) == ([], 1)

    run_virtually(scenario())


def test_a_job_that_was_left_is_cancelled_and_one_that_never_was_is_passed_over() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            it.inboxes.close(job, was_left=True)
            it.wire.say(["have", job.nonce], ["have", "0" * 32], ["frame", "0" * 32, frame(0)])
            await turns()
            assert it.wire.items == [["cancel", job.nonce]]
            it.wire.say(["frame", job.nonce, frame(3)], ["frame", job.nonce, frame(4)])
            await turns()
            assert it.wire.items == [["cancel", job.nonce]] * 2

    run_virtually(scenario())


@pytest.mark.parametrize(
    "message",
    [
        *("", "{}", "[1]", "[[]]", "[[1]]", '["frame"]', "[" * 5000, '[["frame"]]', '[["have"]]'),
        *('[["frame", 1, {}]]', '[["frame", "n", []]]', '[["frame", "n", {}]]'),
        *('[["frame", "n", {"seq": -1}]]', '[["frame", "n", {"seq": true}]]', '[["gone", {}]]'),
        '[["frame", "n", {"seq": 1.5}]]',
    ],
)
def test_what_is_no_message_ends_the_connection(message: str) -> None:
    async def scenario() -> None:
        async with served() as it:
            it.wire.incoming.put_nowait(message)
            assert await it.running == "malformed"

    run_virtually(scenario())


def test_items_of_other_kinds_are_passed_over() -> None:
    async def scenario() -> None:
        async with served() as it:
            it.wire.say(["news", {"of": ["a later protocol"]}], ["pong", "x"], ["gone", "n"])
            await turns()
            assert not it.running.done()

    run_virtually(scenario())


def test_a_worker_that_sends_frames_of_jobs_that_never_were_is_cut_off() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            for number in range(MAX_UNKNOWN):
                it.wire.say(["frame", f"{number:032}", frame(0)])
            it.wire.say(["frame", job.nonce, frame(0)])
            for number in range(MAX_UNKNOWN):
                it.wire.say(["frame", f"{number:032}", frame(0)])
            await asyncio.sleep(1)
            assert not it.running.done()
            it.wire.say(["frame", "0" * 32, frame(0)])
            assert await it.running == "malformed"

    run_virtually(scenario())


def test_a_worker_that_ignores_the_window_is_cut_off_and_its_job_polled() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            for number in range(6):
                it.wire.say(["frame", job.nonce, frame(number, "x" * 2**20)])
            assert await it.running == "malformed"
            assert job.carrier is None

    run_virtually(scenario())


def test_a_job_that_the_worker_has_no_more_is_asked_for_at_the_queue() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            it.wire.say(["frame", job.nonce, frame(0)])
            await turns()
            assert job.is_carried
            it.wire.say(["gone", job.nonce])
            await turns()
            assert job.carrier is None

    run_virtually(scenario())


def test_it_is_pinged_every_second_with_jobs_and_rarely_without() -> None:
    async def scenario() -> None:
        async with served() as it:
            await asyncio.sleep(100)
            assert it.wire.pings == 7
            job = it.job()
            it.wire.say(["have", job.nonce])
            await asyncio.sleep(10.5)
            assert it.wire.pings in (17, 18)
            it.channel.settle(job)
            await asyncio.sleep(60)
            assert it.wire.pings <= 23

    run_virtually(scenario())


def test_a_silent_worker_is_noticed_after_seconds_heard_again_and_given_up_in_the_end() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            it.wire.say(["frame", job.nonce, frame(0)])
            await asyncio.sleep(0.1)
            it.wire.answers_pings = False
            await asyncio.sleep(2.5)
            assert job.is_carried
            await asyncio.sleep(2)
            assert not job.is_carried
            it.wire.say(["pong", 1])
            await turns()
            assert job.is_carried
            await asyncio.sleep(9)
            assert not it.running.done()
            async with asyncio.timeout(3):
                assert await it.running == "silent"
            assert job.carrier is None

    run_virtually(scenario())


def test_without_jobs_two_pings_without_an_answer_end_it() -> None:
    async def scenario() -> None:
        async with served() as it:
            it.wire.answers_pings = False
            async with asyncio.timeout(46):
                assert await it.running == "silent"

    run_virtually(scenario())


def test_one_that_falls_silent_under_its_last_job_is_given_up_soon_after_it() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            it.wire.say(["frame", job.nonce, frame(0)])
            await asyncio.sleep(0.1)
            it.wire.answers_pings = False
            await asyncio.sleep(2)
            it.channel.drop(job)
            async with asyncio.timeout(3):
                assert await it.running == "silent"

    run_virtually(scenario())


def test_one_that_is_doubted_while_idle_is_given_up_soon_unless_it_answers() -> None:
    async def scenario() -> None:
        async with served() as it:
            await asyncio.sleep(10)
            pings = it.wire.pings
            for _ in range(10):
                it.channel.doubt()
            await asyncio.sleep(5)
            assert it.wire.pings <= pings + 2
            it.wire.answers_pings = False
            await asyncio.sleep(5)
            it.channel.doubt()
            async with asyncio.timeout(4.5):
                assert await it.running == "silent"

    run_virtually(scenario())


def test_a_stop_of_our_own_clock_is_no_silence_of_the_workers() -> None:
    async def scenario() -> None:
        async with served() as it:
            job = it.job()
            it.wire.say(["frame", job.nonce, frame(0)])
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            loop._virtual_now += 60  # type: ignore[attr-defined]
            await asyncio.sleep(2)
            assert job.is_carried

    run_virtually(scenario())


def test_a_cancel_leaves_at_once() -> None:
    async def scenario() -> None:
        async with served() as it:
            it.channel.cancel("n")
            await turns()
            assert it.wire.items == [["cancel", "n"]]

    run_virtually(scenario())
