"""The two changes that settings may ask for in answers; without them every byte passes untouched.

- Reasoning under both of its names: vLLM renamed `reasoning_content` to `reasoning`
  (https://github.com/vllm-project/vllm/pull/27752), and clients know the one or the other.
- Counting tokens: vLLM is asked for a stream's usage, which is noted, and kept from a client that
  did not ask for it. Asked for it, vLLM says the `system_fingerprint` there, and not in the chunks
  that have a finish reason; so these are held back until it comes, and get it. Of a stream that is
  left before that, the events with a token are counted: so many were made at least.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from proxy.api.sse_framing import fields_of

ReasoningFields = Literal["as_is", "both"]
OnTokens = Callable[[int, int, int], None]

MAX_HELD_BYTES: Final = 2**20
"""How much waits for the fingerprint; what comes then goes out without it."""

_OLD, _NEW = "reasoning_content", "reasoning"
_LAST_OF_A_CHOICE = (b'"finish_reason":"', b'"finish_reason": "')


class Rewriter:
    """Changes one answer.

    `on_tokens` is told at its end how many tokens went in and came out by the usage that was told,
    and how many came out at least, by `tokens_of` its events.
    """

    def __init__(
        self,
        *,
        both_names: bool,
        hides_usage: bool = False,
        on_tokens: OnTokens | None = None,
        tokens_of: Callable[[bytes], int] | None = None,
    ) -> None:
        self._both_names = both_names
        self._hides_usage = hides_usage
        self._on_tokens = on_tokens
        self._tokens_of = tokens_of if on_tokens else None
        self._tokens_in = self._tokens_out = self._counted = 0
        self._held: list[bytes] = []
        """Events that wait for the fingerprint."""
        self._held_bytes = 0
        self._marks = [b'"reasoning'] * both_names + [b'"usage"'] * (on_tokens is not None)
        self._marks += _LAST_OF_A_CHOICE * hides_usage

    def events(self, piece: bytes) -> bytes:
        """Whole events of a stream, as they are to be sent; most of them as they were."""
        if self._tokens_of is not None:
            self._counted += self._tokens_of(piece)
        if not self._held and not any(mark in piece for mark in self._marks):
            return piece
        return (
            b"".join(self._event(event + b"\n\n") for event in piece.split(b"\n\n")[:-1])
            + (piece.rpartition(b"\n\n")[2])
        )

    def body(self, body: bytes) -> bytes:
        """A whole answer that is no stream."""
        if not any(mark in body for mark in self._marks):
            return body
        if not self._both_names:  # nothing is to be changed, so nothing else is looked at
            self._note(_places_of_usage(body))
            return body
        changed = self._changed(_parsed(body))
        return body if changed is None else msgspec.json.encode(changed)

    def rest(self) -> bytes:
        """What was held back of a stream that ended without its usage."""
        return self._released(None)

    def end(self) -> None:
        """The answer is over, or given up."""
        tokens = self._tokens_in, self._tokens_out, max(0, self._counted)
        if self._on_tokens is not None and any(tokens):
            self._on_tokens(*tokens)
        self._tokens_in = self._tokens_out = self._counted = 0

    def _event(self, event: bytes) -> bytes:
        is_marked = any(mark in event for mark in self._marks)
        if not self._held and not is_marked:
            return event
        name, data = fields_of(event)
        if not data:
            return event
        chunk = _parsed(data)
        if self._hides_usage and chunk.get("choices") == [] and chunk.get("usage"):
            self._note(chunk)
            return self._released(chunk.get("system_fingerprint"))
        if is_marked and (changed := self._changed(chunk)) is not None:
            head = b"event: " + name + b"\n" if name else b""
            event = head + b"data: " + msgspec.json.encode(changed) + b"\n\n"
        if self._hides_usage and _ends_a_choice(chunk):
            self._held.append(event)
            self._held_bytes += len(event)
            return self.rest() if self._held_bytes > MAX_HELD_BYTES else b""
        return event if chunk.get("choices") else self.rest() + event

    def _released(self, fingerprint: Any) -> bytes:
        """The events that were held back, with the fingerprint as their last field."""
        held, self._held, self._held_bytes = b"".join(self._held), [], 0
        if not isinstance(fingerprint, str):
            return held
        field = b',"system_fingerprint":' + msgspec.json.encode(fingerprint)
        return held.replace(b"}\n\n", field + b"}\n\n")

    def _changed(self, answer: dict[str, Any]) -> dict[str, Any] | None:
        """The object with what is to be changed in it; None if that is nothing."""
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


def _name_twice(part: Any) -> bool:
    """Put the reasoning under both names, if it is under one, or differs; tell if it was needed.

    A client that knows both takes the older name, be it empty (AI SDK 7).
    """
    if not isinstance(part, dict) or not (_OLD in part or _NEW in part):
        return False
    before = (part.get(_OLD, ...), part.get(_NEW, ...))
    text = part.get(_NEW) or part.get(_OLD) or part.get(_NEW, part.get(_OLD))
    part[_OLD] = part[_NEW] = text
    return before != (text, text)


def _ends_a_choice(chunk: dict[str, Any]) -> bool:
    """Whether it is one of the chunks that have the fingerprint, and does not have it."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or "system_fingerprint" in chunk:
        return False
    return any(isinstance(c, dict) and c.get("finish_reason") for c in choices)


class _Places(msgspec.Struct):
    """Where a whole answer tells its usage; what else is in it is passed over."""

    usage: Any = None
    response: Any = None
    message: Any = None


def _places_of_usage(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.structs.asdict(msgspec.json.decode(body, type=_Places))
    except (ValueError, RecursionError):
        return {}


def _parsed(text: bytes | msgspec.Raw) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return {}  # a part of an event that was too large for one output
    return value if isinstance(value, dict) else {}


def _count(usage: dict[str, Any], *names: str) -> int:
    counts = [usage.get(f"{name}_tokens") for name in names]
    return max((count for count in counts if isinstance(count, int)), default=0)
