"""An error as the end of a stream, in the form that the clients of each route read."""

import json
import re
from typing import Any, Final

from worker.errors import WorkerError

MESSAGES: Final = "/v1/messages"
RESPONSES: Final = "/v1/responses"

_SEQUENCE_NUMBER: Final = re.compile(rb"\s*(\d{1,15})\b")


def error_events(route: str, error: WorkerError, first: bytes, last: bytes) -> str:
    """The events that end a stream of this route, given its first and last piece."""
    path = route.partition("?")[0]
    if path == MESSAGES:  # Anthropic's clients pass over events without a name
        body = error.body(error_type="api_error")
        return f'event: error\ndata: {{"type":"error",{body[1:]}\n\n'
    if path == RESPONSES:
        return _responses_error(error, first, last)
    return f"data: {error.body()}\n\n"


def _responses_error(error: WorkerError, first: bytes, last: bytes) -> str:
    """Both forms in which clients of the Responses API look for the reason, as our proxy says it.

    openai-python and openai-node raise for an `error` with an object of that name, the AI SDK wants
    its fields to be text, Codex reads `response.failed` alone.
    """
    facts = {
        "type": error.type,
        "code": error.code or error.type,
        "message": str(error),
        "param": error.param,
    }
    number = _next_number(first, last)
    event = facts | {"type": "error", "sequence_number": number, "error": facts}
    reason = {name: facts[name] for name in ("code", "message")}
    response = _response(first) | {"status": "failed", "error": reason}
    failed = {"type": "response.failed", "sequence_number": number + 1, "response": response}
    return _named("error", event) + _named("response.failed", failed)


def _next_number(first: bytes, last: bytes) -> int:
    for piece in (last, first):
        # Inside a text the quotes of the name would be escaped.
        _, name, rest = piece.rpartition(b'"sequence_number":')
        if name and (found := _SEQUENCE_NUMBER.match(rest)):
            return int(found[1]) + 1
    return 0


def _response(first: bytes) -> dict[str, Any]:
    """The response that the stream began with."""
    data = first.partition(b"data: ")[2].partition(b"\n")[0]
    try:
        begun = json.loads(data)["response"]
    except (ValueError, RecursionError, KeyError, TypeError):
        begun = None
    return begun if isinstance(begun, dict) else {"object": "response", "output": []}


def _named(name: str, data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n"
