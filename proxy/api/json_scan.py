"""A look at a JSON body before it is decoded: how deep it is, how many names it has.

A decoder holds the event loop until it is done, in a thread as well, since it holds the
interpreter: 900,000 names at the top of 9 MB take msgspec 1.5 s. What passes this scan it decodes
in at most 50 ms. The scan takes a slice at a time, in which the strings are cut out and the
brackets and colons that are left are counted in C; between two slices its caller may do something
else.

It does not check the grammar, which is the decoder's work: up to the first mistake, where a decoder
stops, the counts are right.
"""

import math
import re
from collections.abc import Iterator
from itertools import accumulate

from proxy.api.turns import Steps
from proxy.errors import InvalidRequest

SLICE_BYTES = 32 * 1024
"""A slice of nothing but brackets takes about 3 ms."""
MAX_DEPTH = 100
"""How deep a body may be nested. Deeper ones break the parsers on the way to vLLM."""
MAX_NAMES = 1_000
"""How many names the object at the top may have."""
MAX_DIGITS = 4_300
"""Of an integer that Python reads: sys.int_info.default_max_str_digits."""
DOUBLE_DIGITS = 308
"""A number with as many digits before its point, and no exponent, is finite as a double."""

_NO_STRUCTURE = bytes(set(range(256)) - set(b"[]{}:"))
# A bracket is a step of two levels, up or down, and a colon one level up and down again: so the
# colons of the object at the top, and nothing else, reach level three.
_COLON, _UP_AND_DOWN = b":", b"\x01\xff"
_STEPS = bytes.maketrans(b"[{]}", b"\x02\x02\xfe\xfe")
_TOP_NAME = 3
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789E", b"000000000e")
_LONG_NUMBER = b"0" * (DOUBLE_DIGITS + 1)
_EXPONENT = b"0e"
_BETWEEN_NUMBERS = re.compile(rb"[^-+.0-9eE]++")


def needs_no_scan(raw: bytes) -> bool:
    """Whether it is plain at a glance that a scan finds nothing, as for most small bodies."""
    is_flat = raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH
    return is_flat and raw.count(b":") <= MAX_NAMES and not _may_be_too_large(raw)


class Scan:
    """Counts a body slice by slice: `for _ in scan.slices(): ...`."""

    def __init__(self, raw: bytes) -> None:
        self.has_odd_numbers = False
        """Some number may be too large; `finds_too_large_a_number` tells."""
        self._raw = raw

    def slices(self) -> Steps[None]:
        """Scan the next slice with each step.

        Raises:
            InvalidRequest: the body is too deep or has too many names.
        """
        level, names, tail = 0, 0, b""
        for text in outside_strings(self._raw):
            levels = _levels(text, level)
            level = levels[-1]
            if max(levels) > 2 * MAX_DEPTH + 1:
                raise InvalidRequest(
                    f"The body of your request is nested deeper than {MAX_DEPTH} levels."
                )
            names += levels.count(_TOP_NAME)
            if names > MAX_NAMES:
                raise InvalidRequest(
                    f"The body of your request has more than {MAX_NAMES:,} fields."
                )
            tail = (tail + text)[-DOUBLE_DIGITS - len(text) :]
            self.has_odd_numbers = self.has_odd_numbers or _may_be_too_large(tail)
            yield


def count_items(array: bytes) -> Iterator[int]:
    """How many arrays and objects stand in an array, so far: slice by slice."""
    level, count = 0, -1  # the array's own bracket is the first to reach level two
    for text in outside_strings(array):
        levels = _levels(text, level)
        level = levels[-1]
        count += levels[1:].count(2)
        yield count


def finds_too_large_a_number(raw: bytes) -> Iterator[bool]:
    """Whether there is a number that Python's JSON or a double cannot hold, slice by slice."""
    begun: list[bytes] = []  # a number that may go on in the next slice
    for text in outside_strings(raw):
        first, *others = _BETWEEN_NUMBERS.split(text)
        begun.append(first)
        if others:
            yield _is_too_large(b"".join(begun)) or any(map(_is_too_large, others[:-1]))
            begun = others[-1:]
        yield False
    yield _is_too_large(b"".join(begun))


def outside_strings(raw: bytes) -> Iterator[bytes]:
    """What stands outside of strings, slice by slice."""
    cut_escape, is_inside = b"", False
    for start in range(0, len(raw), SLICE_BYTES):
        text = cut_escape + raw[start : start + SLICE_BYTES]
        cut_escape = b""
        if b"\\" in text:
            text = text.replace(rb"\\", b"")
            if text.endswith(b"\\"):
                text, cut_escape = text[:-1], b"\\"
            text = text.replace(rb"\"", b"")
        parts = text.split(b'"')
        yield b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0


def _levels(text: bytes, level: int) -> list[int]:
    """The levels that are reached in this text, which begins at this one."""
    signs = text.translate(None, _NO_STRUCTURE).replace(_COLON, _UP_AND_DOWN)
    return list(accumulate(memoryview(signs.translate(_STEPS)).cast("b"), initial=level))


def _may_be_too_large(text: bytes) -> bool:
    digits = text.translate(_DIGITS_AS_ZEROS)
    return _EXPONENT in digits or _LONG_NUMBER in digits


def _is_too_large(number: bytes) -> bool:
    if number.isdigit() or number[1:].isdigit():
        return len(number.lstrip(b"-")) > MAX_DIGITS
    try:
        return math.isinf(float(number))
    except ValueError:  # no number: a letter of `true`, or a mistake that the decoder finds
        return False
