"""A client that leaves its call when a test says so, and not when a time has passed."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import httpx

PATIENCE_SECONDS = 60


@contextmanager
def call_to_leave(
    url: str, *, key: str, body: Any = None, headers: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """A GET, or a POST with a JSON body, that is left at the end of the `with`.

    After it the server has noticed, since it has closed the connection.
    """
    there = httpx.URL(url)
    content = b"" if body is None else json.dumps(body).encode()
    head = [
        f"{'GET' if body is None else 'POST'} {there.raw_path.decode()} HTTP/1.1",
        f"Host: {there.netloc.decode()}",
        f"Authorization: Bearer {key}",
        *([] if body is None else [f"Content-Length: {len(content)}"]),
        "Content-Type: application/json",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    address = (there.host, there.port or 80)
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
        yield
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
