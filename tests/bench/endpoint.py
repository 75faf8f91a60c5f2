"""A real endpoint, measured by itself: there is nothing beside it to hold it against."""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from tests.bench.ground import Ground
from tests.bench.load import Load, Seen, Spread

TOKENS: Final = 128
PLAIN_REQUESTS: Final = 5
PROMPT: Final = "Tell a long story about a lighthouse."
HEAD: Final = (
    "| streams | first token p50, s | p99 | gap p50, ms | p99 | stalls | chunks/s of one "
    "| failed |\n|" + " --- |" * 8
)


def measured(ground: Ground, url: str, model: str, key: str, streams: Sequence[int]) -> str:
    """A table of what an endpoint does: any that speaks OpenAI's API, ours among them."""

    base = Load(
        url=url,
        model=model,
        key=key,
        kind="streams",
        is_stamped=False,
        tokens=TOKENS,
        prompt=PROMPT,
    )
    seconds = float(PLAIN_REQUESTS)
    plain = replace(base, kind="plain", requests_a_second=1.0, window_seconds=seconds)
    rows = [_row(count, ground.see(replace(base, streams=count))) for count in streams]
    return "\n".join([HEAD, *rows, "", f"A plain request: {_plain(ground.see(plain))}"])


def _row(streams: int, seen: Seen) -> str:
    cells = (
        str(streams),
        *_pair(seen.first_token, 1, 2),
        *_pair(seen.gap, 1000, 0),
        str(seen.stalls),
        "-" if seen.tokens_a_second is None else f"{seen.tokens_a_second:.1f}",
        _failures(seen),
    )
    return f"| {' | '.join(cells)} |"


def _pair(spread: Spread | None, scale: float, digits: int) -> tuple[str, str]:
    if spread is None:
        return "-", "-"
    return f"{spread.p50 * scale:.{digits}f}", f"{spread.p99 * scale:.{digits}f}"


def _plain(seen: Seen) -> str:
    if seen.plain is None:
        return f"failed, {_failures(seen)}"
    return f"{seen.plain.p50:.2f} s (median of {seen.plain.count}), failed: {_failures(seen)}"


def _failures(seen: Seen) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in seen.failed.items()) or "0"
