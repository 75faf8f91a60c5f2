"""A worker that starts is told its public ports; they close when it ends."""

import asyncio
import socket
import sys
from contextlib import suppress
from typing import Any

import pytest

from emulator.road.road import Road
from emulator.settings import EndpointSettings
from tests.emulator.road.running import echo, one_port, until
from tests.emulator.running import HANDLERS, Client, eventually, one_endpoint

ECHO = f"{sys.executable} {HANDLERS / 'echo.py'}"


async def test_a_worker_is_told_its_public_ports_as_runpod_does() -> None:
    road = Road(EndpointSettings(id="ep", ports=("8899/tcp", "22/tcp")))
    told = road.open("w1")
    shown = road.view()["workers"]["w1"]
    assert told["RUNPOD_PUBLIC_IP"] == "127.0.0.1"
    assert told["RUNPOD_TCP_PORT_8899"] == str(shown["8899/tcp"]["public_port"])
    assert told["RUNPOD_TCP_PORT_22"] == str(shown["22/tcp"]["public_port"])
    road.close("w1")


async def test_without_ports_a_worker_is_told_nothing() -> None:
    assert Road(EndpointSettings(id="ep")).open("w1") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere loopback has one address")
async def test_two_workers_can_listen_on_the_same_port() -> None:
    async with one_port(echo) as first, one_port(echo) as second:
        for port in (first, second):
            reader, writer = await port.dial()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"


async def test_a_port_refuses_callers_once_its_worker_has_ended() -> None:
    async with one_port(echo) as port:
        number = port.number
        await port.dial()
        port.road.close("w1")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", number)
        assert port.road.view()["workers"] == {}


async def test_what_a_worker_said_last_arrives_although_its_port_has_closed() -> None:
    async with one_port(echo, latency_seconds=0.05) as port:
        reader, writer = await port.dial()
        writer.write(b"last")
        await until(lambda: len(port.road.connections) == 1)
        port.road.close("w1")
        writer.write_eof()
        assert await reader.read() == b"last"


@pytest.mark.slow
def test_a_workers_process_is_reached_and_its_port_and_connections_end_with_it() -> None:
    with one_endpoint(worker=ECHO, ports=["8899/tcp"], min_workers=1) as client:
        eventually(lambda: _ports(client))
        [first] = _ports(client)
        eventually(lambda: _echoes(_ports(client)[first]["8899/tcp"]["public_port"]))
        address = ("127.0.0.1", _ports(client)[first]["8899/tcp"]["public_port"])
        with socket.create_connection(address) as caller:
            caller.sendall(b"hello")
            assert caller.recv(5) == b"hello"
            client.control("POST", "/ep/crash")
            with suppress(ConnectionResetError):
                assert caller.recv(1) == b""
        eventually(lambda: first not in _ports(client))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def _ports(client: Client) -> dict[str, Any]:
    return dict(client.control("GET", "")["endpoints"]["ep"]["road"]["workers"])


def _echoes(port: int) -> bool:
    """Whether the worker listens already."""
    with socket.create_connection(("127.0.0.1", port)) as caller, suppress(ConnectionResetError):
        caller.sendall(b"x")
        return caller.recv(1) == b"x"
    return False
