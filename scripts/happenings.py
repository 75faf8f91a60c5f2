"""What happens on a stack that is up, a line each: out of the proxy's log, and the emulator's."""

import re
from pathlib import Path

from scripts.screen import Paint

_REQUEST = re.compile(
    r"\S+ (?P<time>[\d:]+)\S* \w+ proxy\.access: \S+ (?P<what>\S+ \S+) (?P<status>\d+) "
    r"(?P<outcome>\S+) (?P<seconds>[\d.]+)s(?P<facts>.*)"
)
_POLL = "GET /admin/status"
"""What the page asks every few seconds."""
_ENDPOINT = re.compile(
    r"\S+ (?P<time>[\d:]+)\S* \w+ proxy\.[\w.]+: (?P<what>endpoint \S+ is .*)",
)
_WORKER = re.compile(
    r"(?P<time>[\d:]+) emulator: endpoint (?P<endpoint>\S+): worker \w+ "
    r"(?P<what>(started|ready|frozen|stopping|stopped|died)\b[^\n]*)"
)
_GOOD, _BAD = "green", "red"


def what_happens(log: Path, line: str, paint: Paint) -> str | None:
    """A line of a log for whoever watches; None for one that tells nothing of that."""
    if log.stem == "emulator":
        return _worker(line, paint)
    return (_request(line, paint) or _endpoint(line, paint)) if log.stem == "proxy" else None


def _request(line: str, paint: Paint) -> str | None:
    found = _REQUEST.match(line)
    if found is None or found["what"] == _POLL:
        return None
    facts = dict(re.findall(r" (\w+)=(\S+)", found["facts"]))
    status, seconds = found["status"], float(found["seconds"])
    told = [f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"]
    if "model" in facts:
        told.append(facts["model"])
    if facts.get("start") == "cold":
        told.append("cold start")
    if found["outcome"] != "completed":
        told.append(found["outcome"])
    style = _GOOD if status < "400" and found["outcome"] == "completed" else _BAD
    return f"{found['time']}  {paint(status, style)}  {found['what']}  {', '.join(told)}"


def _endpoint(line: str, paint: Paint) -> str | None:
    found = _ENDPOINT.match(line)
    return f"{found['time']}  {paint(found['what'], 'dim')}" if found else None


def _worker(line: str, paint: Paint) -> str | None:
    found = _WORKER.match(line)
    if found is None:
        return None
    what = found["what"].partition(" (pid")[0].rstrip(":, ")
    style = _BAD if what.startswith("died") else "cyan"
    return f"{found['time']}  {paint('worker of ' + found['endpoint'], style)}  {what}"
