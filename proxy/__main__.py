"""`python -m proxy`: serve until told to stop."""

import logging
import os
import sys

from pydantic import ValidationError

from proxy.app import create_app
from proxy.config_file import ConfigError
from proxy.server import Server, allow_descriptors
from proxy.settings import Settings, environment_name, misspelt

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
    allow_descriptors(settings)
    Server(app, settings).run()


def _explained(exc: ValidationError) -> str:
    lines = ["The proxy cannot start:"]
    for error in exc.errors(include_url=False, include_input=False):
        name = environment_name(str(error["loc"][0])) + ": " if error["loc"] else ""
        lines.append(f"  {name}{error['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
