"""The log, on stderr: lines to read, or a JSON object in each line for programs that collect them.

Either way a line is a line: what a client has chosen cannot break it, or forge another.
"""

import json
import logging
import time
from functools import lru_cache
from typing import Any, Final, Literal

from proxy.telemetry.ended_request import EndedRequest

Format = Literal["text", "json"]

FACTS: Final = "facts"
"""Of the request that a line is about, an attribute of its record: a JSON line has all of them."""
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
        line: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, FACTS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _as_json(line)


_as_json: Final = json.JSONEncoder(default=str).encode


@lru_cache(1)
def _second(time_seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_seconds))


def log_request(ended: EndedRequest) -> None:
    """The line of a request."""
    if not access.isEnabledFor(logging.INFO):
        return
    facts = ended.facts
    message = (
        f"{ended.id} {ended.method} {ended.safe_path} {ended.status} {ended.outcome} "
        f"{ended.seconds:.3f}s job={ended.job_id or '-'}"
        f"{''.join([f' {name}={_word(value)}' for name, value in facts.items()])}{ended.remark}"
    )
    # Made here: `info` would look for its caller first, who is always the same.
    record = access.makeRecord(access.name, logging.INFO, __file__, 0, message, (), None)
    setattr(record, FACTS, facts | _further_facts(ended))
    access.handle(record)


def _further_facts(ended: EndedRequest) -> dict[str, Any]:
    """What a line that is to be read begins with."""
    return {
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
