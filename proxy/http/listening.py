"""The sockets to listen on, opened first of all, so that a taken port costs nothing."""

import errno
import socket

BACKLOG = 2048
"""uvicorn's own."""


class ListenError(Exception):
    """The proxy cannot listen there; the message names the setting."""


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host; `::` stands for IPv4 as well.

    Raises:
        ListenError: the host is none of this machine's, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ListenError(f"PROXY_HOST: this machine knows no address of {host}") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            place = (address[0], port, *address[2:])
            try:
                sockets.append(_bound(family, kind, protocol, place, both=host == "::"))
            except OSError as exc:
                # `localhost` has an IPv6 address also where the system has no IPv6.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
            else:
                port = port or sockets[0].getsockname()[1]
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise ListenError(_reason(host, port, exc)) from None
    if not sockets:
        raise ListenError(f"PROXY_HOST: {host} is no address of this machine")
    return sockets


def _bound(
    family: int, kind: int, protocol: int, place: tuple[object, ...], *, both: bool
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind(place)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(host: str, port: int, exc: OSError) -> str:
    match exc.errno:
        case errno.EADDRINUSE:
            return f"PROXY_PORT: {port} is taken at {host}; stop what listens there, or set another"
        case errno.EACCES:
            return f"PROXY_PORT: this user may not listen on {port}; set one above 1023"
    return f"PROXY_HOST and PROXY_PORT: cannot listen at {host}, port {port}: {exc.strerror}"
