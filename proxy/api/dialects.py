"""How the streams of a route speak: their last event, an error in them, a sign of life.

OpenAI's clients read `data:` events, end at `[DONE]`, and raise for an event with a top-level
`error`. The Responses API names its events, numbers them, and has no `[DONE]`: some of its clients
raise for `error`, some take the reason from `response.failed`, so an error there is both.
Anthropic's clients read named events, with `ping` for a sign of life and `error` for an error
(https://docs.anthropic.com/en/docs/build-with-claude/streaming).
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from proxy.api.sse_framing import DONE, events_of, fields_of, split_end
from proxy.errors import ProxyError, VLLMError

MAX_KEPT_BYTES: Final = 2**18
"""How much is kept of a stream's beginning and of its last piece."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""https://docs.anthropic.com/en/api/errors; its clients choose by them what to repeat.

vLLM 0.32 has names of its own here (`BadRequestError`), vLLM 0.33 goes by the status as well.
"""
_FAILED = b"response.failed"
_SEQUENCE_NUMBER = re.compile(rb"\s*(\d{1,18})")


@dataclass(slots=True)
class StreamContext:
    """What is known of a stream, for what the proxy itself says in it."""

    request_id: str
    model: str
    route: str = ""
    """The route, as in `POST /v1/embeddings`."""
    first: bytes = b""
    """The first bytes of the answer that were passed on."""
    last: bytes = b""
    """The last ones."""
    chunk_id: str = ""
    """The id that an empty chunk has; if none is set, it follows from the request's."""
    error: VLLMError | None = None
    """An `error` of the Responses API that is still to be followed by `response.failed`."""
    first_token: float | None = None
    """When the first token was passed on, on the monotonic clock."""
    outcome: str = ""
    """How it ended, once it has: `completed`, or an error's code."""

    def note_sent(self, piece: bytes) -> None:
        """Keep of what is passed on as much as the stream's end may need."""
        self.first = self.first or piece[:MAX_KEPT_BYTES]
        self.last = piece[-MAX_KEPT_BYTES:]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the proxy itself says in a stream, and how it knows that vLLM has said its last."""

    ends: tuple[bytes, ...]
    """What names the last event of a stream, as `Completion` looks for it."""
    error: Callable[[ProxyError, StreamContext], bytes]
    """An error as the end of a stream."""
    keep_alive_event: Callable[[StreamContext], bytes] | None
    """An event that means nothing; None where there is no such event."""
    body: Callable[[ProxyError, str], bytes]
    """An error as the whole answer, given the request's id."""
    chunk_prefix: str = ""
    """What vLLM puts before a request's id to make its chunks' (vLLM 0.32, `_base_request_id`)."""
    passing: Callable[[bytes, StreamContext], bytes] | None = None
    """Whole events of vLLM's, as they are to be passed on; None if as they are."""
    ending: Callable[[StreamContext], bytes] | None = None
    """What a stream lacks that has come to its end; None if that is never anything."""
    token_mark: bytes = b""
    """What an event with a token has in it, where others come before it; vLLM has the first token
    when it sends the first event of a chat, a completion or a message."""
    request_id_headers: tuple[str, ...] = ("x-request-id",)
    """Where the route's clients look for the request's id."""
    tokens_of: Callable[[bytes], int] | None = None
    """How many tokens at least are in whole events: one in each event that brings something. None
    where nothing tells."""


def _openai_error(error: ProxyError, context: StreamContext) -> bytes:
    return b"data: " + error.envelope + b"\n\n"


def _openai_body(error: ProxyError, request_id: str) -> bytes:
    return error.body


def _responses_error(error: ProxyError, context: StreamContext) -> bytes:
    """Both forms in which clients of the Responses API look for the reason.

    openai-python and openai-node raise for an `error` with an object of that name, the AI SDK wants
    its fields to be text, Codex reads `response.failed` alone.
    """
    facts = _facts(error)
    number = _next_number(context)
    first = facts | {"type": "error", "sequence_number": number, "error": facts}
    return _named_event("error", first) + _failed_response(facts, number + 1, context)


def _failed_response(facts: dict[str, Any], number: int, context: StreamContext) -> bytes:
    reason = {name: facts[name] for name in ("code", "message")}
    response = _response(context) | {"status": "failed", "error": reason}
    failed = {"type": "response.failed", "sequence_number": number, "response": response}
    return _named_event("response.failed", failed)


def _responses_passing(whole: bytes, context: StreamContext) -> bytes:
    """A worker that is not ours ends any stream with an error in the form of a chat's."""
    if context.error and _FAILED in whole:
        context.error = None
    before, last = split_end(whole, ())
    if not last:
        return whole
    body = fields_of(next(events_of(last)))[1]
    if _is_responses_error(body):
        context.error = None if _FAILED in last else VLLMError(502, body)
        return whole
    so_far = replace(context, first=context.first or before, last=before or context.last)
    return before + _responses_error(VLLMError(502, body), so_far)


def _is_responses_error(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body)["type"] == "error")
    except (ValueError, RecursionError, KeyError, TypeError):
        return False


def _responses_ending(context: StreamContext) -> bytes:
    """For an `error` alone: some servers leave `response.failed` out, some send it later."""
    if context.error is None:
        return b""
    return _failed_response(_facts(context.error), _next_number(context), context)


def _facts(error: ProxyError) -> dict[str, Any]:
    """The inner error, with text in each field that has a type in the Responses API."""
    inner = msgspec.json.decode(error.envelope)["error"]
    kind = str(inner.get("type") or "server_error")
    code = inner.get("code")
    return {
        "type": kind,
        "code": code if isinstance(code, str) and code else kind,
        "message": str(inner.get("message") or inner.get("detail") or "The response failed."),
        "param": inner.get("param"),
    }


def _next_number(context: StreamContext) -> int:
    for piece in (context.last, context.first):
        # Inside a text the quotes of the name would be escaped.
        _, name, rest = piece.rpartition(b'"sequence_number":')
        if name and (found := _SEQUENCE_NUMBER.match(rest)):
            return int(found[1]) + 1
    return 0


def _response(context: StreamContext) -> dict[str, Any]:
    """The response that the stream began with; one of our own if it did not begin."""
    data = context.first.partition(b"data: ")[2].partition(b"\n")[0]
    try:
        begun = msgspec.json.decode(data)["response"]
    except (ValueError, RecursionError, KeyError, TypeError):
        begun = None
    if isinstance(begun, dict):
        return begun
    return {
        "id": f"resp_{context.request_id.removeprefix('req_')}",
        "object": "response",
        "created_at": int(time.time()),
        "model": context.model,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "incomplete_details": None,
        "usage": None,
    }


def _responses_keep_alive(context: StreamContext) -> bytes:
    return _named_event("keepalive", {"type": "keepalive", "sequence_number": 0})


def _anthropic(error: ProxyError, request_id: str) -> bytes:
    inner = msgspec.json.decode(error.envelope)["error"]
    if isinstance(error, VLLMError):
        inner = {"message": str(inner.get("message") or inner.get("detail") or "vLLM failed.")}
    inner["type"] = _anthropic_type(error.status)
    return msgspec.json.encode({"type": "error", "error": inner, "request_id": request_id})


def _anthropic_type(status: int) -> str:
    other = "invalid_request_error" if 400 <= status < 500 else "api_error"
    return _ANTHROPIC_TYPES.get(status, other)


def _anthropic_error(error: ProxyError, context: StreamContext) -> bytes:
    return b"event: error\ndata: " + _anthropic(error, context.request_id) + b"\n\n"


def _anthropic_passing(whole: bytes, context: StreamContext) -> bytes:
    """vLLM's own error at the end of a stream has a type of its own (0.32: `internal_error`)."""
    before, last = split_end(whole, ())
    body = next((fields_of(event)[1] for event in events_of(last)), b"")
    return before + _anthropic_error(VLLMError(500, body), context) if body else whole


# What is looked for has quotes, which are escaped where they stand in a text.
def _chat_tokens(events: bytes) -> int:
    """The role comes with an empty content, and some servers end with an empty delta."""
    deltas = events.count(b'"delta":{"') + events.count(b'"delta": {"')
    return deltas - events.count(b'"content":""') - events.count(b'"content": ""')


def _completion_tokens(events: bytes) -> int:
    texts = events.count(b'"text":"') + events.count(b'"text": "')
    return texts - events.count(b'"text":""') - events.count(b'"text": ""')


def _responses_tokens(events: bytes) -> int:
    """`event: response.output_text.delta`, and the like."""
    return events.count(b".delta\n")


def _anthropic_tokens(events: bytes) -> int:
    """A signature is no token."""
    return events.count(b"event: content_block_delta\n") - events.count(b'"signature_delta"')


def _empty_chat_chunk(context: StreamContext) -> bytes:
    return _empty_chunk("chat.completion.chunk", context, {"delta": {}})


def _empty_completion_chunk(context: StreamContext) -> bytes:
    return _empty_chunk("text_completion", context, {"text": ""})


def _empty_chunk(kind: str, context: StreamContext, content: dict[str, Any]) -> bytes:
    chunk = {
        # Of a stream's chunks openai-python's helper keeps the first id, openai-node's the last,
        # and openai-go drops those with another: all must have the same.
        "id": context.chunk_id,
        "object": kind,
        "created": int(time.time()),
        "model": context.model,
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": None}],
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def chat_reasoning(context: StreamContext, text: str, fields: Sequence[str]) -> bytes:
    """A chunk of a chat with this reasoning, in the delta's fields of these names."""
    # The role is left to vLLM's first chunk: openai-python's helper joins what two of them say.
    delta = dict.fromkeys(fields, text)
    return _empty_chunk("chat.completion.chunk", context, {"delta": delta})


def _ping(context: StreamContext) -> bytes:
    return b'event: ping\ndata: {"type": "ping"}\n\n'


def _named_event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


OPENAI = Dialect((DONE,), _openai_error, None, _openai_body)
CHAT = Dialect(
    (DONE,), _openai_error, _empty_chat_chunk, _openai_body, "chatcmpl-", tokens_of=_chat_tokens
)
COMPLETIONS = Dialect(
    (DONE,),
    _openai_error,
    _empty_completion_chunk,
    _openai_body,
    "cmpl-",
    tokens_of=_completion_tokens,
)
RESPONSES = Dialect(
    (b"response.completed", b"response.incomplete", _FAILED),
    _responses_error,
    _responses_keep_alive,
    _openai_body,
    passing=_responses_passing,
    ending=_responses_ending,
    token_mark=b".delta\n",  # `event: response.output_text.delta`; in a text `\n` is escaped
    tokens_of=_responses_tokens,
)
MESSAGES = Dialect(
    (b"message_stop",),
    _anthropic_error,
    _ping,
    _anthropic,
    passing=_anthropic_passing,
    request_id_headers=("x-request-id", "request-id"),
    tokens_of=_anthropic_tokens,
)


def error_dialect(path: str) -> Dialect:
    """The dialect of whole errors under this path, be there such a route or not."""
    return MESSAGES if re.match(r"/v1/messages(/|$)", path) else OPENAI
