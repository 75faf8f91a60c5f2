"""A server in plain sockets, for what no HTTP server would do."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def heard(connection: socket.socket) -> bytes:
    """The head of the next request; empty if the other end closes the connection."""
    head = b""
    with suppress(ConnectionError):
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := connection.recv(1)):
                return b""
            head += byte
    return head


def lead_on(connection: socket.socket, address: tuple[str, int], said: bytes) -> None:
    """Be a proxy: say so, and pass on what comes from either end until both have closed."""

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    with socket.create_connection(address) as server:
        connection.sendall(said)
        back = threading.Thread(target=pass_on, args=[server, connection], daemon=True)
        back.start()
        pass_on(connection, server)
        back.join(10)


@contextmanager
def raw_server(
    talk: Callable[[socket.socket], None],
    *,
    host: str = "127.0.0.1",
    trusted: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """Have each connection talked to in a thread of its own, and closed then; yields the URL."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    talks: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if trusted is None:
                talk(connection)
            else:
                with trusted.wrap_socket(connection, server_side=True) as secure:
                    talk(secure)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                talks.append(threading.Thread(target=answer, args=[connection], daemon=True))
                talks[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    port = listener.getsockname()[1]
    try:
        yield f"http{'s' if trusted else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in talks:
            thread.join(timeout=10)
