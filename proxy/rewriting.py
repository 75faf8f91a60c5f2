"""The two changes that settings may ask for in answers; without them every byte passes untouched.

- Reasoning under both of its names: vLLM renamed `reasoning_content` to `reasoning`
  (https://github.com/vllm-project/vllm/pull/27752), and clients know the one or the other.
- Counting tokens: vLLM is asked for a stream's usage, which is noted, and kept from a client that
  did not ask for it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import msgspec

from proxy.call import Call, JSONContent

ReasoningFields = Literal["as_is", "both"]
OnTokens = Callable[[int, int], None]

_OLD, _NEW = "reasoning_content", "reasoning"
_USAGE_ON_REQUEST = ("/v1/chat/completions", "/v1/completions")


class Rewriter:
    """Changes one answer. `on_tokens` is told how many tokens went in and came out, at its end."""

    def __init__(
        self, *, both_names: bool, hides_usage: bool = False, on_tokens: OnTokens | None = None
    ) -> None:
        self._both_names = both_names
        self._hides_usage = hides_usage
        self._on_tokens = on_tokens
        self._tokens_in = self._tokens_out = 0
        self._marks = [b'"reasoning'] * both_names + [b'"usage"'] * (on_tokens is not None)

    def events(self, piece: bytes) -> bytes:
        """Whole events of a stream, as they are to be sent; most of them as they were."""
        if not any(mark in piece for mark in self._marks):
            return piece
        return (
            b"".join(self._event(event + b"\n\n") for event in piece.split(b"\n\n")[:-1])
            + (piece.rpartition(b"\n\n")[2])
        )

    def body(self, body: bytes) -> bytes:
        """A whole answer that is no stream."""
        if not any(mark in body for mark in self._marks):
            return body
        changed = self._changed(body)
        return body if changed is None else msgspec.json.encode(changed)

    def end(self) -> None:
        """The answer is over, or given up."""
        if self._on_tokens is not None and self._tokens_in + self._tokens_out:
            self._on_tokens(self._tokens_in, self._tokens_out)
        self._tokens_in = self._tokens_out = 0

    def _event(self, event: bytes) -> bytes:
        head, mark, data = event.partition(b"data: ")
        if not mark or not any(mark in data for mark in self._marks):
            return event
        chunk = _parsed(data)
        if self._hides_usage and chunk.get("choices") == [] and chunk.get("usage"):
            self._note(chunk)
            return b""
        changed = self._changed(data)
        return event if changed is None else head + mark + msgspec.json.encode(changed) + b"\n\n"

    def _changed(self, text: bytes) -> dict[str, Any] | None:
        """The object with what is to be changed in it; None if that is nothing."""
        answer = _parsed(text)
        self._note(answer)
        if not self._both_names:
            return None
        choices = [c for c in answer.get("choices") or [] if isinstance(c, dict)]
        parts = [c.get("delta") or c.get("message") for c in choices]
        named = list(map(_name_twice, parts))
        return answer if any(named) else None

    def _note(self, answer: dict[str, Any]) -> None:
        """Usage so far: OpenAI's names or Anthropic's, on the object itself or one level down."""
        if self._on_tokens is None:
            return
        for place in (answer, answer.get("response"), answer.get("message")):
            usage = place.get("usage") if isinstance(place, dict) else None
            if isinstance(usage, dict):
                self._tokens_in = max(self._tokens_in, _count(usage, "prompt", "input"))
                self._tokens_out = max(self._tokens_out, _count(usage, "completion", "output"))


def asking_for_usage(call: Call) -> tuple[Call, bool]:
    """The call with usage asked for at the end of its stream, and whether its client did not."""
    content = call.content
    if call.route.path not in _USAGE_ON_REQUEST or not isinstance(content, JSONContent):
        return call, False
    if not content.wants_stream or wants_usage(content):
        return call, False
    options = _stream_options(content)
    asked = msgspec.Raw(msgspec.json.encode(options | {"include_usage": True}))
    fields = dict(content.fields) | {"stream_options": asked}
    changed = replace(content, raw=msgspec.json.encode(fields), fields=fields)
    return replace(call, content=changed), True


def wants_usage(content: JSONContent) -> bool:
    """Does the client ask for a stream's usage?"""
    return bool(_stream_options(content).get("include_usage"))


def _stream_options(content: JSONContent) -> dict[str, Any]:
    return _parsed(content.fields.get("stream_options", b"{}"))


def _name_twice(part: Any) -> bool:
    """Put the reasoning under its other name as well, if it is there under one."""
    if not isinstance(part, dict) or (_OLD in part) == (_NEW in part):
        return False
    part[_OLD] = part[_NEW] = part.get(_NEW, part.get(_OLD))
    return True


def _parsed(text: bytes | msgspec.Raw) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return {}  # a part of an event that was too large for one output
    return value if isinstance(value, dict) else {}


def _count(usage: dict[str, Any], *names: str) -> int:
    counts = [usage.get(f"{name}_tokens") for name in names]
    return max((count for count in counts if isinstance(count, int)), default=0)
