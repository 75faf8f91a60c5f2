"""Bytes reach the worker behind a public port and come back, whole and in order."""

import asyncio
import os
import socket
import time

import pytest

from emulator.road.conditions import Conditions
from emulator.road.connection import RESET_ON_CLOSE, End, Lane
from emulator.settings import RoadSettings
from tests.emulator.road.running import echo, one_port, until


async def test_bytes_are_carried_both_ways_with_their_ends() -> None:
    async with one_port(echo) as port:
        reader, writer = await port.dial()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"bye")
        writer.write_eof()
        assert await reader.read() == b"bye", "what follows the caller's end still comes"
        await until(lambda: port.connections() == 0)


async def test_a_worker_that_speaks_first_is_heard() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.close()

    async with one_port(greet) as port:
        reader, _ = await port.dial()
        assert await reader.read() == b"welcome"


async def test_what_comes_before_the_other_end_is_there_waits_for_it() -> None:
    worker, caller = End(lambda: None), End(lambda: None)
    conditions = Conditions(RoadSettings())
    lane = Lane(conditions, "from_worker", worker, caller, lambda _: None)
    Lane(conditions, "to_worker", caller, worker, lambda _: None)
    lane.carry(b"early")
    await asyncio.sleep(0.01)
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: caller, sock=ours)
    with theirs:
        theirs.settimeout(60)
        assert await asyncio.to_thread(theirs.recv, 100) == b"early"
    transport.close()


@pytest.mark.slow
async def test_many_connections_carry_at_once() -> None:
    async def talk(number: int) -> None:
        reader, writer = await port.dial()
        for turn in range(5):
            text = f"{number}/{turn}".encode()
            writer.write(text)
            assert await reader.readexactly(len(text)) == text

    async with one_port(echo, latency_seconds=0.001, jitter_seconds=0.002) as port:
        await asyncio.gather(*map(talk, range(200)))
        assert port.connections() == 200


@pytest.mark.slow
@pytest.mark.parametrize("road", [{}, {"latency_seconds": 0.01, "jitter_seconds": 0.02}])
async def test_a_side_that_does_not_read_holds_the_other_back(road: dict[str, float]) -> None:
    may_read = asyncio.Event()
    sent = os.urandom(1024) * 1024 * 32

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        await echo(reader, writer)

    async with one_port(swallow, **road) as port:
        reader, writer = await port.dial()
        writer.write(sent)
        writer.write_eof()
        left = -1
        while writer.transport.get_write_buffer_size() != left:
            left = writer.transport.get_write_buffer_size()
            await asyncio.sleep(0.2)
        assert left > len(sent) / 2, "the rest waits at the caller"
        may_read.set()
        assert await reader.read() == sent


async def test_a_reset_is_passed_on() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        own_socket = writer.get_extra_info("socket")
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        writer.transport.abort()

    async with one_port(reset) as port:
        reader, writer = await port.dial()
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_caller_is_reset_while_the_worker_does_not_listen() -> None:
    async with one_port(echo) as port:
        await port.stop_worker()
        reader, _ = await port.dial()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await until(lambda: port.connections() == 0)


async def test_bytes_take_their_time_in_each_direction_and_keep_their_order() -> None:
    async with one_port(echo, latency_seconds=0.1, jitter_seconds=0.05) as port:
        reader, writer = await port.dial()
        began = time.monotonic()
        pieces = [bytes([number]) for number in range(100)]
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        assert await reader.readexactly(100) == b"".join(pieces)
        assert time.monotonic() - began >= 0.2
