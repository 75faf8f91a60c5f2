"""`python -m proxy`: serve until told to stop."""

import logging
import os
import sys

import uvicorn
from pydantic import ValidationError

from proxy.app import create_app
from proxy.settings import Settings, misspelt

GRACE_MARGIN_SECONDS = 5
"""uvicorn waits a little longer than the streams, which end themselves."""
IDLE_CONNECTION_SECONDS = 75
"""Longer than the 60 s after which load balancers drop an idle connection, so that they do it."""

log = logging.getLogger("proxy")


def main() -> None:
    """Read the settings, then serve."""
    logging.basicConfig(
        level=os.environ.get("PROXY_LOG_LEVEL", "info").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = Settings()
    except ValidationError as exc:
        sys.exit(_explained(exc))
    for sentence in misspelt(os.environ):
        log.warning("%s", sentence)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=round(settings.drain_seconds + GRACE_MARGIN_SECONDS),
    )


def _explained(exc: ValidationError) -> str:
    lines = ["The proxy cannot start:"]
    for error in exc.errors(include_url=False, include_input=False):
        name = ".".join(map(str, error["loc"]))
        lines.append(f"  {name}: {error['msg']}" if name else f"  {error['msg']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
