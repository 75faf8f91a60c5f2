"""SOCKS5 (RFC 1928, RFC 1929): a proxy asked for a connection to a server.

The proxy looks the server's name up, for socks5:// as for socks5h://, as httpx has it do.
"""

import asyncio
import ipaddress
import socket
from typing import Final

import httpx

SOCKS: Final = ("socks5", "socks5h")
"""The schemes of its URLs."""
SOCKS_PORT: Final = 1080
"""Where it is if its URL names no port."""

_VERSION: Final = b"\x05"
_NO_LOGIN: Final = b"\x00"
_LOGIN: Final = b"\x02"
_IPV4: Final = b"\x01"
_NAME: Final = b"\x03"
_IPV6: Final = b"\x04"
_REASONS: Final = (
    "it failed",
    "its rules forbid it",
    "the network cannot be reached",
    "the host cannot be reached",
    "the connection was refused",
    "it took too long",
    "it knows no such command",
    "it knows no such address",
)
"""Why no connection came about, by the reply's code less one."""


async def connect_onward(
    to_proxy: socket.socket, host: bytes, port: int, login: tuple[bytes, bytes] | None
) -> None:
    """Have the proxy connect to a server; what follows on the socket is the server's.

    Raises:
        httpx.ProxyError: it does not.
        OSError: the connection to the proxy broke.
    """
    loop = asyncio.get_running_loop()
    methods = _NO_LOGIN if login is None else _NO_LOGIN + _LOGIN
    await loop.sock_sendall(to_proxy, _VERSION + _with_length(methods))
    version, method = await _next(to_proxy, 2)
    if bytes([version]) != _VERSION:
        raise httpx.ProxyError("The proxy does not speak SOCKS5.")
    if bytes([method]) not in methods:
        raise httpx.ProxyError("The SOCKS proxy wants another login than its URL has.")
    if bytes([method]) == _LOGIN and login is not None:
        request = b"\x01" + _with_length(login[0]) + _with_length(login[1])
        await loop.sock_sendall(to_proxy, request)
        if (await _next(to_proxy, 2))[1] != 0:
            raise httpx.ProxyError("The SOCKS proxy refuses its URL's user or password.")
    connect = _VERSION + b"\x01\x00" + _address(host) + port.to_bytes(2, "big")
    await loop.sock_sendall(to_proxy, connect)
    _, code, _, kind = await _next(to_proxy, 4)
    if code != 0:
        reason = _REASONS[code - 1] if code <= len(_REASONS) else f"code {code}"
        raise httpx.ProxyError(f"The SOCKS proxy made no connection: {reason}.")
    await _skip_address(to_proxy, bytes([kind]))


def _address(host: bytes) -> bytes:
    try:
        address = ipaddress.ip_address(host.decode("ascii"))
    except ValueError:
        return _NAME + _with_length(host)
    return (_IPV4 if address.version == 4 else _IPV6) + address.packed


async def _skip_address(to_proxy: socket.socket, kind: bytes) -> None:
    """Read over the address and the port that the proxy calls from."""
    sizes = {_IPV4: 4, _IPV6: 16}
    size = sizes[kind] if kind in sizes else (await _next(to_proxy, 1))[0]
    await _next(to_proxy, size + 2)


def _with_length(value: bytes) -> bytes:
    if len(value) > 255:
        raise httpx.ProxyError("A SOCKS proxy takes no name and no login of over 255 bytes.")
    return bytes([len(value)]) + value


async def _next(to_proxy: socket.socket, size: int) -> bytes:
    """The next bytes of the proxy's, so many and none of what follows them."""
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < size:
        if not (part := await loop.sock_recv(to_proxy, size - len(received))):
            raise ConnectionResetError
        received += part
    return received
