"""Text of a worker, made fit for a client: one line, no paths, no secrets, of bounded length.

Reasons why a start failed come from programs that know nothing of our clients: an exception's text
may name files of the image, signed URLs and tokens.
"""

import re
from typing import Final

MAX_READ_CHARS: Final = 4_000
"""What follows is not looked at; no reason is that long."""
PATH: Final = "[path]"
REMOVED: Final = "[removed]"

_SUBSTITUTIONS: Final = (
    (re.compile(r"\x1b\[[0-9;]*[A-Za-z]"), ""),
    (re.compile(r"(?<=://)[^\s/@]+@"), ""),
    (re.compile(r"(https?://[^\s?#\"'<>]+)[?#][^\s\"'<>]*"), r"\1"),
    (re.compile(r"\bfile://[^\s\"',;)]+"), PATH),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {REMOVED}"),
    (
        re.compile(
            r"(?i)\b(\w*(?:token|secret|password|passwd|api_?key|access_?key))[\"']?\s*[=:]\s*"
            r"[^\s,;)]+"
        ),
        rf"\1={REMOVED}",
    ),
    (
        re.compile(r"\b(?:hf_|rpa_|rps_|sk-|gh[pousr]_|eyJ)(?=[A-Za-z_-]*[0-9A-Z])[\w.-]{6,}"),
        REMOVED,
    ),
    (re.compile(r"\b(?=[A-Za-z_]*[0-9])[A-Za-z0-9_]{32,}\b"), REMOVED),
    (re.compile(r"(?<![\w.:/~-])(?:~|\.{1,2})?/(?:[\w.@+=%-]+/?)+"), PATH),
    (re.compile(r"\b[A-Za-z]:\\[^\s\"',;)]+"), PATH),
    (re.compile(r"(?<![\w/.-])[\w.-]+(?:/[\w.-]+)+\.(?:py|so|cu|cpp|sock|log)\b"), PATH),
)
_NOT_PRINTED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e]+")


def scrubbed(text: str, *, max_chars: int) -> str:
    """The first line of a text that has anything in it, without paths and secrets."""
    lines = (line.strip() for line in text[:MAX_READ_CHARS].splitlines())
    line = next(filter(None, lines), "")
    for pattern, replacement in _SUBSTITUTIONS:
        line = pattern.sub(replacement, line)
    line = " ".join(_NOT_PRINTED.sub(" ", line).split())
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"
