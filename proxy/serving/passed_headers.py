"""What of a client's headers reaches vLLM: three that it reads, checked, and nothing else.

vLLM 0.32 and 0.33 read them in `entrypoints/generate/base/serving.py`, and `traceparent` where it
traces. To vLLM a smaller priority is the better one, and the header goes before the body's field.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from proxy.access.keys import Key
from proxy.api.call import Call, JSONContent

TRACE: Final = "traceparent"
SESSION: Final = "x-session-id"
PRIORITY: Final = "x-vllm-priority"
_TRACE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SESSION: Final = re.compile(r"[!-~]{1,200}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}")
_number: Final = msgspec.json.Decoder(int)


def passed_headers(headers: Mapping[str, str], key: Key, call: Call) -> dict[str, str]:
    """The headers that vLLM is sent for this call; one that makes no sense is left out."""
    found = {}
    for name, form in ((TRACE, _TRACE), (SESSION, _SESSION)):
        if (value := headers.get(name)) is not None and form.fullmatch(value):
            found[name] = value
    if (priority := _priority(headers.get(PRIORITY), key, call)) is not None:
        found[PRIORITY] = str(priority)
    return found


def _priority(asked: str | None, key: Key, call: Call) -> int | None:
    """The call's priority as vLLM counts: the client's own, but no better than its key's.

    None where neither has any, so that vLLM's own default holds.
    """
    best = 1 - key.limits.priority
    own = int(asked) if asked is not None and _NUMBER.fullmatch(asked) else _field(call)
    if own is None:
        return best or None
    return max(own, best)


def _field(call: Call) -> int | None:
    """The body's own priority; what is no number is vLLM's to refuse."""
    if not isinstance(call.content, JSONContent) or "priority" not in call.content.fields:
        return None
    try:
        return _number.decode(call.content.fields["priority"])
    except msgspec.DecodeError:
        return None
