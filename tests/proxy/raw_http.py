"""Requests as bytes over a socket, for what no client library sends."""

import socket
from contextlib import suppress
from typing import Any

import httpx
import msgspec

from tests.proxy.conftest import KEY, chat

CHAT = "/v1/chat/completions"
PATIENCE_SECONDS = 30.0
AUTHORIZED = f"authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n".encode()
JSON = msgspec.json.encode(chat())


def connected(url: str) -> socket.socket:
    """A connection to the server of this URL."""
    port = httpx.URL(url).port
    connection = socket.create_connection(("127.0.0.1", port or 80), PATIENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def head(*, length: int, extra: bytes = b"") -> bytes:
    lines = b"POST %s HTTP/1.1\r\nhost: x\r\n" % CHAT.encode()
    return lines + AUTHORIZED + extra + b"content-length: %d\r\n\r\n" % length


def all_of(wire: socket.socket) -> bytes:
    """Everything until the proxy closes the connection."""
    received = b""
    with suppress(ConnectionError):  # closed while something of ours was still on its way
        while data := wire.recv(65536):
            received += data
    return received


def send(wire: socket.socket, data: bytes) -> None:
    """Send it, or as much of it as the proxy takes."""
    with suppress(ConnectionError):
        wire.sendall(data)


def parsed(received: bytes) -> tuple[int, bytes]:
    """The status and the body of one response."""
    top, _, body = received.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 ")
    return int(top.split()[1]), body


def refusal(received: bytes) -> tuple[int, dict[str, Any]]:
    """The status and the error of one answer that closes the connection."""
    status, body = parsed(received)
    assert b"\r\nconnection: close\r\n" in received
    assert b"\r\nx-request-id: req_" in received
    envelope = msgspec.json.decode(body)
    assert set(envelope["error"]) == {"message", "type", "param", "code"}
    return status, envelope["error"]


def read_until(wire: socket.socket, end: bytes, *, sent: bytes) -> bytes:
    """What is answered to that, up to its end; nothing if the connection is closed before."""
    received = b""
    with suppress(ConnectionError):
        wire.sendall(sent)
        while data := wire.recv(65536):
            received += data
            if received.endswith(end):
                return received
    return b""
