"""Sums over the ledger, and how they are shown: as JSON, and as CSV for spreadsheets."""

import csv
import io
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final

DAY_SECONDS: Final = 86_400
ESTIMATE: Final = (
    "Dollars are an estimate: how long workers had the jobs, as RunPod tells it or as it was seen "
    "from the proxy, at the price per second that is configured for the endpoint. Cold starts, "
    "idle time, storage and endpoints without a price are not in it, and jobs that ran side by "
    "side on one worker count each by itself. RunPod's own bill is what you pay."
)
_STARTS_A_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")

PLACE: Final = ("day", "key", "model", "endpoint")
"""What a total is of."""


@dataclass(frozen=True, slots=True)
class Total:
    """The sums of a day, for one key, model and endpoint."""

    day: int = 0
    """In days since 1970, of UTC."""
    key: str = ""
    model: str = ""
    endpoint: str = ""
    requests: int = 0
    completed: int = 0
    cold_starts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    queue_seconds: float = 0.0
    execution_seconds: float = 0.0
    told_seconds: float = 0.0
    """Of these, what RunPod has told of."""
    dollars: float = 0.0
    """Of those whose endpoint has a price."""

    def __add__(self, other: "Total") -> "Total":
        """The sums of both, which are of the same day, key, model and endpoint."""
        sums = [field.name for field in fields(self) if field.name not in PLACE]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in sums})


def added(some: Iterable[Total], *kept: str) -> list[Total]:
    """Fewer sums, each over all that differs in other things than these, in their order."""
    left_out: dict[str, Any] = {name: "" for name in PLACE if name not in kept}
    if "day" in left_out:
        left_out["day"] = 0
    found: dict[tuple[Any, ...], Total] = {}
    for one in some:
        place = tuple(getattr(one, name) for name in kept)
        one = replace(one, **left_out)
        found[place] = one if (before := found.get(place)) is None else before + one
    return [found[place] for place in sorted(found)]


def today() -> int:
    """This day, in days since 1970, of UTC."""
    return int(time.time()) // DAY_SECONDS


def date_of(day: int) -> str:
    """A day as in 2027-01-31."""
    return datetime.fromtimestamp(day * DAY_SECONDS, UTC).strftime("%Y-%m-%d")


def shown(total: Total, *kept: str) -> dict[str, Any]:
    """A total by names: of its places these, and its sums."""
    values = asdict(total) | {"day": date_of(total.day)}
    left_out = [name for name in PLACE if name not in kept]
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
        if name not in left_out
    }


def as_csv(some: Iterable[Total], *kept: str) -> str:
    """A table with a line of names; a spreadsheet takes no name of a key for a formula."""
    text = io.StringIO()
    names = [*kept, *(field.name for field in fields(Total) if field.name not in PLACE)]
    lines = csv.writer(text)
    lines.writerow(names)
    for one in some:
        found = shown(one, *kept)
        lines.writerow([harmless(found[name]) for name in names])
    return text.getvalue()


def harmless(value: Any) -> Any:
    """The value as a cell that a spreadsheet takes for no formula, whoever gave the name."""
    is_formula = isinstance(value, str) and value.startswith(_STARTS_A_FORMULA)
    return f"'{value}" if is_formula else value
