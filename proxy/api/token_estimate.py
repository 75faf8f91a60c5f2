"""How many tokens a call may take, guessed before any worker has seen it.

The bytes of the body tell: four to a token, which errs on the high side for texts as JSON has them.
Pictures and sounds in it are no text, whatever their size; each counts as so many tokens.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from proxy.api.call import Call, Content, JSONContent
from proxy.api.dialects import CHAT, COMPLETIONS, MESSAGES, RESPONSES

BYTES_PER_TOKEN: Final = 4
TOKENS_PER_ATTACHMENT: Final = 1_000
DEFAULT_OUTPUT_TOKENS: Final = 1_000
"""Of a call that does not say how long its answer may be."""

_GENERATES: Final = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
"""Where the dialects say how many tokens may come out; the first one that is there holds."""
_ATTACHMENT: Final = b";base64,"


@dataclass(frozen=True, slots=True)
class Tokens:
    """How many go in, and how many may come out."""

    prompt: int = 0
    output: int = 0


def estimated_tokens(call: Call, max_model_len: int | None) -> Tokens:
    """What this call may take of a model whose context is so long, if that is known."""
    content = call.content
    if content is None or call.route.counts_tokens:
        return Tokens()
    prompt = _prompt_tokens(content)
    output = _output_limit(content)
    if output is None:
        output = DEFAULT_OUTPUT_TOKENS if call.route.dialect in _GENERATES else 0
    if max_model_len is not None:
        output = min(output, max(0, max_model_len - prompt))
    return Tokens(prompt, output)


def _prompt_tokens(content: Content) -> int:
    if not isinstance(content, JSONContent):
        return TOKENS_PER_ATTACHMENT
    raw, size, attachments = content.raw, len(content.raw), 0
    start = raw.find(_ATTACHMENT)
    while start >= 0:
        end = raw.find(b'"', start)
        size -= end - start
        attachments += 1
        start = raw.find(_ATTACHMENT, end)
    return -(-size // BYTES_PER_TOKEN) + attachments * TOKENS_PER_ATTACHMENT


def _output_limit(content: Content) -> int | None:
    """The limit that a body names; None without one, or with one that vLLM will refuse."""
    if not isinstance(content, JSONContent):
        return None
    for name in _OUTPUT_LIMITS:
        if (value := content.readable.get(name)) is None:
            continue
        try:
            limit = msgspec.json.decode(value, type=int | None)
        except ValueError:
            continue
        if limit is not None:
            return max(0, limit)
    return None
