"""Real servers for tests: an ASGI application behind a real uvicorn, on a port the kernel chose."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Server(uvicorn.Server):
    """Stops as soon as it is asked to: uvicorn's own looks whether it should ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    async def main_loop(self) -> None:
        """Keep the date in the headers right until `stop()` is called."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 1)

    def stop(self) -> None:
        """End it, from another thread."""
        self.should_exit = True
        if self._loop is not None:  # or it sees for itself when it has come up
            self._loop.call_soon_threadsafe(self._stop.set)


@contextmanager
def serve(
    app: Any, *, port: int = 0, config_of: Callable[..., uvicorn.Config] = uvicorn.Config
) -> Iterator[str]:
    """Serve `app` on loopback in a thread of its own and yield its base URL.

    The listening socket exists before the thread starts, so the URL is good at once. On leaving,
    the server is asked to stop, its lifespan ends, and the thread is joined.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(256)
    config = config_of(app, log_level="warning", timeout_graceful_shutdown=5, timeout_keep_alive=75)
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        thread.join(timeout=60)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"
