"""What can go wrong on the road to a worker's port, for new connections and for those there are."""

import asyncio
import sys
from contextlib import suppress

import pytest

from tests.emulator.road.running import Streams, echo, one_port, until

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the dial is taken")


async def answers(caller: Streams, text: bytes = b"x") -> bool:
    """Whether what is sent comes back; False when there was silence for a while."""
    reader, writer = caller
    writer.write(text)
    try:
        async with asyncio.timeout(0.1):
            return await reader.readexactly(len(text)) == text
    except TimeoutError:
        return False


async def is_reset(caller: Streams) -> bool:
    """Whether the connection has been reset, which is waited for."""
    try:
        await caller[0].read()
    except ConnectionResetError:
        return True
    return False


async def test_every_connection_can_be_cut_and_new_ones_are_carried() -> None:
    async with one_port(echo) as port:
        callers = [await port.dial() for _ in range(3)]
        for caller in callers:
            assert await answers(caller)
        assert port.road.cut() == 3
        for caller in callers:
            assert await is_reset(caller)
        assert await answers(await port.dial())


async def test_a_connection_that_is_cut_while_it_is_being_made_is_reset() -> None:
    async with one_port(echo) as port:
        for turns in range(10):
            caller = await port.dial()
            await until(lambda: port.connections() == 1)
            for _ in range(turns):
                await asyncio.sleep(0)
            port.road.cut()
            assert await is_reset(caller)
            await until(lambda: port.connections() == 0)


async def test_a_connection_is_cut_before_it_carries_too_much() -> None:
    async with one_port(echo, cut_after_bytes=10) as port:
        caller = await port.dial()
        assert await answers(caller, b"12345")
        caller[1].write(b"6")
        assert await is_reset(caller)


async def test_connections_are_cut_at_random_also_those_there_are() -> None:
    async with one_port(echo) as port:
        first = await port.dial()
        assert await answers(first)
        port.change(cut_after_seconds=0.01)
        assert await is_reset(first)
        assert await is_reset(await port.dial())
        port.change()
        last = await port.dial()
        assert await answers(last)


@pytest.mark.slow
@pytest.mark.parametrize("drop", ["to_worker", "from_worker", "both"])
async def test_what_is_dropped_leaves_the_connections_open_and_silent(drop: str) -> None:
    heard = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            while data := await reader.read(100):
                heard.append(data)
                writer.write(data)
        writer.close()

    async with one_port(listen) as port:
        old, other = await port.dial(), await port.dial()
        assert await answers(old)
        port.change(drop=drop)
        new = await port.dial()
        assert not await answers(old, b"lost")
        assert not await answers(new, b"lost")
        assert (b"lost" in heard) is (drop == "from_worker")
        port.change()
        assert not await answers(old), "what has lost bytes stays dead"
        assert await answers(other), "what has lost nothing goes on"
        assert await answers(await port.dial())


async def test_a_dropped_end_is_not_seen_by_the_other_side() -> None:
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            await reader.read()
        ended.set()
        writer.close()

    async with one_port(listen) as port:
        _, writer = await port.dial()
        await until(lambda: port.connections() == 1)
        port.change(drop="to_worker")
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.05)
        assert not ended.is_set()
        assert port.road.cut() == 1
        await asyncio.wait_for(ended.wait(), 60)


async def test_dials_can_be_refused_while_connections_go_on() -> None:
    async with one_port(echo) as port:
        old = await port.dial()
        assert await answers(old)
        port.change(dials="refuse")
        with pytest.raises(ConnectionRefusedError):
            await port.dial()
        assert await answers(old)
        port.change()
        assert await answers(await port.dial())


@on_linux
@pytest.mark.slow
async def test_dials_can_be_left_without_an_answer_as_a_firewall_does() -> None:
    async with one_port(echo) as port:
        old = await port.dial()
        assert await answers(old)
        port.change(dials="ignore")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(port.dial(), 0.1)
        assert await answers(old)
        port.change()
        assert await answers(await port.dial())


async def test_a_port_that_moves_closes_the_old_one_with_its_connections() -> None:
    async with one_port(echo) as port:
        old, caller = port.number, await port.dial()
        assert await answers(caller)
        port.road.move()
        assert port.number != old
        assert await is_reset(caller)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", old)
        assert await answers(await port.dial())


async def test_a_reset_brings_the_settings_back() -> None:
    async with one_port(echo, dials="refuse") as port:
        port.change()
        assert await answers(await port.dial())
        port.road.reset()
        with pytest.raises(ConnectionRefusedError):
            await port.dial()
