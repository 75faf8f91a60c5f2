"""The log, on stderr: lines to read, or a JSON object in each line for programs that collect them.

Either way a line is a line: what a client has chosen cannot break it, or forge another.
"""

import json
import logging
import time
from typing import Any, Final, Literal

from proxy.telemetry.ended_request import EndedRequest

Format = Literal["text", "json"]

ENDED: Final = "ended"
"""The request that a line is about, in `extra`; a JSON line has all that is told of it by names."""
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


access = logging.getLogger("proxy.access")


def log_to_stderr(level: str, format: Format) -> None:
    """The level is for our own lines: at `debug` other libraries' would show what clients say."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines() if format == "json" else logging.Formatter(_TEXT))
    root_level = max(logging.INFO, logging.getLevelNamesMapping()[level.upper()])
    logging.basicConfig(level=root_level, handlers=[handler])
    logging.captureWarnings(format == "json")
    logging.getLogger("proxy").setLevel(level.upper())
    for library in ("alembic", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)


class JSONLines(logging.Formatter):
    """Each record as a JSON object in one line of ASCII; its time is UTC, in milliseconds."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds, milliseconds = time.gmtime(record.created), int(record.msecs)
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{milliseconds:03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (ended := getattr(record, ENDED, None)) is not None:
            line |= _fields(ended)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_request(ended: EndedRequest) -> None:
    """The line of a request."""
    if not access.isEnabledFor(logging.INFO):
        return
    access.info(
        "%s %s %s %d %s %.3fs job=%s%s%s",
        ended.id,
        ended.method,
        ended.safe_path,
        ended.status,
        ended.outcome,
        ended.seconds,
        ended.job_id or "-",
        "".join(f" {name}={_word(value)}" for name, value in ended.facts.items()),
        ended.remark,
        extra={ENDED: ended},
    )


def _fields(ended: EndedRequest) -> dict[str, Any]:
    return ended.facts | {
        "request": ended.id,
        "method": ended.method,
        "path": ended.path,
        "route": ended.route,
        "status": ended.status,
        "outcome": ended.outcome,
        "seconds": ended.seconds,
        "job": ended.job_id,
    }


def _word(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    is_word = text.isprintable() and " " not in text and '"' not in text
    return text if is_word else json.dumps(text)
