r"""Half a surrogate pair written as an escape (`"\ud83d"`): JSON allows it, and vLLM takes it.

Clients make them where they cut a text inside an emoji, and write JSON in ASCII as Python does.
msgspec takes none, so it is shown a copy of the same length in which each half is U+FFFD; what is
sent on is cut from the original at the same places.
"""

import re
from typing import Final

from proxy.api.turns import Steps

SLICE_BYTES: Final = 64 * 1024
_HEX = rb"[0-9a-fA-F]{2}"
_HIGH, _LOW = rb"\\u[dD][89abAB]" + _HEX, rb"[c-fC-F]" + _HEX
# One of the first kind that no second follows, or one of the second kind behind no first. It begins
# with a literal, which makes looking for it fast.
_HALF = re.compile(
    rb"\\u[dD](?:[89abAB]%b(?!\\u[dD]%b)|(?<!%b\\u[dD])%b)" % (_HEX, _LOW, _HIGH, _LOW)
)
_PAIR_BYTES = 12
_STAND_IN = rb"\ufffd"


def without_halves(raw: bytes) -> Steps[bytes]:
    """JSON of the same length, with U+FFFD in place of each half of a pair: a slice at a time.

    Where there is none it is what was given.
    """
    if b"\\" not in raw or (rb"\ud" not in raw and rb"\uD" not in raw):
        return raw
    # Each backslash that is left begins an escape. UTF-8 has no such bytes.
    escapes = raw.replace(rb"\\", b"\xff\xff")
    changed: bytearray | None = None
    for start in range(0, len(raw), SLICE_BYTES):
        end = start + SLICE_BYTES
        for found in _HALF.finditer(escapes, start, end + _PAIR_BYTES - 1):
            if found.start() < end:
                changed = bytearray(raw) if changed is None else changed
                changed[found.start() : found.end()] = _STAND_IN
        yield
    return raw if changed is None else bytes(changed)
