"""How the streams of a route speak: their last event, an error in them, a sign of life.

OpenAI's clients read `data:` events, end at `[DONE]`, and raise for an event with a top-level
`error`. The Responses API names its events and has no `[DONE]`. Anthropic's clients read named
events, with `ping` for a sign of life and `error` for an error
(https://docs.anthropic.com/en/docs/build-with-claude/streaming).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy.errors import ProxyError, VLLMError

DONE = b"data: [DONE]"

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""https://docs.anthropic.com/en/api/errors; its clients choose by them what to repeat."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the proxy itself says in a stream, and how it knows that vLLM has said its last."""

    ends: tuple[bytes, ...]
    """What the last event of a stream begins with."""
    error: Callable[[ProxyError], bytes]
    """An error as the last event."""
    sign_of_life: Callable[[str], bytes] | None
    """An event that means nothing, given the model's name; None where there is no such event."""
    body: Callable[[ProxyError], bytes]
    """An error as the whole answer."""


def _openai_error(error: ProxyError) -> bytes:
    return b"data: " + error.envelope + b"\n\n"


def _anthropic(error: ProxyError) -> bytes:
    inner = msgspec.json.decode(error.envelope)["error"]
    if not isinstance(error, VLLMError):
        other = "invalid_request_error" if error.status < 500 else "api_error"
        inner["type"] = _ANTHROPIC_TYPES.get(error.status, other)
    return msgspec.json.encode({"type": "error", "error": inner})


def _anthropic_body(error: ProxyError) -> bytes:
    return error.body if isinstance(error, VLLMError) else _anthropic(error)


def _anthropic_error(error: ProxyError) -> bytes:
    return b"event: error\ndata: " + _anthropic(error) + b"\n\n"


def _empty_chat_chunk(model: str) -> bytes:
    return _empty_chunk("chat.completion.chunk", model, {"delta": {}})


def _empty_completion_chunk(model: str) -> bytes:
    return _empty_chunk("text_completion", model, {"text": ""})


def _empty_chunk(kind: str, model: str, content: dict[str, Any]) -> bytes:
    chunk = {
        # Clients that put a stream together take its id from the first chunk that has one, and
        # openai-go drops those with another.
        "id": "",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": None}],
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _ping(model: str) -> bytes:
    return b'event: ping\ndata: {"type": "ping"}\n\n'


def _body(error: ProxyError) -> bytes:
    return error.body


OPENAI = Dialect((DONE,), _openai_error, None, _body)
CHAT = Dialect((DONE,), _openai_error, _empty_chat_chunk, _body)
COMPLETIONS = Dialect((DONE,), _openai_error, _empty_completion_chunk, _body)
RESPONSES = Dialect(
    (b"event: response.completed", b"event: response.incomplete", b"event: response.failed"),
    _openai_error,
    None,
    _body,
)
MESSAGES = Dialect(
    (b"event: message_stop", b"event: error"), _anthropic_error, _ping, _anthropic_body
)
