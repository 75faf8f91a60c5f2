"""Connections made: to a server, or through a proxy to it."""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple

import aiohappyeyeballs
import httpx

from proxy.backends.http1 import Connection
from proxy.backends.socks import SOCKS, SOCKS_PORT, connect_onward

NEXT_ADDRESS_SECONDS: Final = 0.25
"""After so long a host's next address is tried beside the one before (RFC 8305)."""


class Origin(NamedTuple):
    """Where a connection leads to."""

    scheme: bytes
    host: bytes
    port: int
    netloc: bytes
    """Host and port as they stand in a URL."""

    @classmethod
    def of(cls, url: httpx.URL) -> "Origin":
        """That of a URL; raises httpx.UnsupportedProtocol if nothing can be reached there."""
        port = url.port or (443 if url.raw_scheme == b"https" else 80)
        if url.raw_scheme not in (b"http", b"https") or not url.raw_host or port > 65_535:
            raise httpx.UnsupportedProtocol("The URL names no server that speaks HTTP.")
        return cls(url.raw_scheme, url.raw_host, port, url.netloc)


async def dial(
    origin: Origin,
    trusted: ssl.SSLContext,
    proxy: httpx.Proxy | None,
    on_lost: Callable[[Connection], None],
) -> Connection:
    """A new connection; raises OSError, or httpx.ProxyError if the proxy makes none."""
    if proxy is None:
        below = await _reached(origin.host, origin.port)
        return await _connected(below, origin, trusted, on_lost)
    if proxy.url.scheme in SOCKS:
        below = await _reached_by_socks(origin, proxy)
        return await _connected(below, origin, trusted, on_lost)
    place = Origin.of(proxy.url)
    below = await _reached(place.host, place.port)
    to_proxy = await _connected(below, place, trusted, on_lost)
    return to_proxy if origin.scheme == b"http" else await _tunnel(to_proxy, origin, trusted, proxy)


def proxy_authorization(proxy: httpx.Proxy) -> list[tuple[bytes, bytes]]:
    """The header that a proxy wants to see, if its URL names a user."""
    if proxy.raw_auth is None:
        return []
    return [(b"proxy-authorization", b"Basic " + base64.b64encode(b":".join(proxy.raw_auth)))]


async def _reached(host: bytes, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    # Looked up for each connection, since addresses change, and so not for each call.
    addresses = await loop.getaddrinfo(host.decode("ascii"), port, type=socket.SOCK_STREAM)
    return await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS
    )


async def _reached_by_socks(origin: Origin, proxy: httpx.Proxy) -> socket.socket:
    below = await _reached(proxy.url.raw_host, proxy.url.port or SOCKS_PORT)
    try:
        await connect_onward(below, origin.host, origin.port, proxy.raw_auth)
    except BaseException:
        below.close()
        raise
    return below


async def _connected(
    below: socket.socket,
    origin: Origin,
    trusted: ssl.SSLContext,
    on_lost: Callable[[Connection], None],
) -> Connection:
    host, is_secure = origin.host.decode("ascii"), origin.scheme == b"https"
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(on_lost),
        sock=below,
        ssl=trusted if is_secure else None,
        server_hostname=host if is_secure else None,
    )
    return connection


async def _tunnel(
    to_proxy: Connection, origin: Origin, trusted: ssl.SSLContext, proxy: httpx.Proxy
) -> Connection:
    """TLS with a server behind a proxy, over the connection to the proxy."""
    host = origin.host.decode("ascii")
    target = b"%s:%d" % (b"[%s]" % origin.host if b":" in origin.host else origin.host, origin.port)
    head = [b"CONNECT %s HTTP/1.1\r\nhost: %s\r\n" % (target, target)]
    head += [b"%s: %s\r\n" % header for header in proxy_authorization(proxy)]
    try:
        await to_proxy.send(b"".join(head) + b"\r\n", b"", None)
        await to_proxy.head()
        if not 200 <= to_proxy.status < 300:
            raise httpx.ProxyError(f"The proxy answered HTTP {to_proxy.status}.")
        inner = Connection(to_proxy.on_lost)
        transport = await asyncio.get_running_loop().start_tls(
            to_proxy.transport, inner, trusted, server_hostname=host
        )
        if transport is None:
            raise ConnectionResetError
    except BaseException:
        to_proxy.abort()
        raise
    inner.connection_made(transport)
    return inner
