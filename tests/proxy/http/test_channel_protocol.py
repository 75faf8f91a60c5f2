"""A WebSocket at the proxy's door, and a worker that does not read what it is sent, or in time."""

import functools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from proxy.http.channel_protocol import ChannelProtocol
from proxy.http.connection import BoundedConfig
from tests.proxy.conftest import settings_for
from tests.proxy.http.test_websockets import OFFER
from tests.proxy.raw_http import connected
from tests.servers import serve

MORE_THAN_IS_BUFFERED: Final = 2**24


class Door:
    """Sends a large message to whoever comes, and keeps what is said after it."""

    def __init__(self) -> None:
        self.heard: Message = {}
        self.has_heard = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        worker = WebSocket(scope, receive, send)
        await worker.accept()
        await worker.send_text("x" * MORE_THAN_IS_BUFFERED)
        self.heard = await worker.receive()
        self.has_heard.set()


@contextmanager
def channel_to(door: Door, *, send_timeout_seconds: float) -> Iterator[socket.socket]:
    bounds = settings_for("http://127.0.0.1:1").model_copy(
        update={"send_timeout_seconds": send_timeout_seconds}
    )
    bounded = functools.partial(BoundedConfig, settings=bounds, ws=ChannelProtocol)
    with serve(door, config_of=bounded) as url, connected(url) as wire:
        wire.sendall(b"GET /channel HTTP/1.1\r\nhost: x\r\n" + OFFER + b"\r\n")
        yield wire


def test_a_worker_that_does_not_read_in_time_is_cut_off() -> None:
    door = Door()
    with channel_to(door, send_timeout_seconds=0.05):
        assert door.has_heard.wait(30)
    assert door.heard["type"] == "websocket.disconnect"


@pytest.mark.slow
def test_a_worker_that_reads_in_time_is_not() -> None:
    door = Door()
    with channel_to(door, send_timeout_seconds=1) as wire:
        time.sleep(0.1)
        unread = MORE_THAN_IS_BUFFERED
        while unread > 0 and (piece := wire.recv(2**20)):
            unread -= len(piece)
        time.sleep(1.5)  # longer than it may go without reading
        wire.sendall(b"\x81\x82" + bytes(4) + b"ok")
        assert door.has_heard.wait(30)
    assert door.heard["type"] == "websocket.receive"
