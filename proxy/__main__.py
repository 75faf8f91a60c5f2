"""`python -m proxy`: serve until told to stop."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from proxy.app import create_app
from proxy.config import ConfigError
from proxy.settings import Settings, environment_name, misspelt

IDLE_CONNECTION_SECONDS = 75
"""Longer than the 60 s after which load balancers drop an idle connection, so that they do it."""

log = logging.getLogger("proxy")


def main() -> None:
    """Read the settings, then serve."""
    try:
        settings = Settings()
    except ValidationError as exc:
        sys.exit(_explained(exc))
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for sentence in misspelt(os.environ):
        log.warning("%s", sentence)
    try:
        app = create_app(settings)
    except ConfigError as exc:
        sys.exit(f"The proxy cannot start:\n  {exc}")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.longest_drain_seconds + 1),
    )
    Server(config, app).run()


class Server(uvicorn.Server):
    """uvicorn, telling the application that it will stop, while requests are still running."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, and to read the configuration again on SIGHUP."""
        await super().startup(sockets)
        if (services := getattr(self._app.state, "services", None)) is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, services.reload)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: requests that run get their grace time, then end with an error.

        uvicorn's own handler would raise the signal again after a clean end; ours exits with 0.
        """
        if (services := getattr(self._app.state, "services", None)) is not None:
            services.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _explained(exc: ValidationError) -> str:
    lines = ["The proxy cannot start:"]
    for error in exc.errors(include_url=False, include_input=False):
        name = environment_name(str(error["loc"][0])) + ": " if error["loc"] else ""
        lines.append(f"  {name}{error['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
