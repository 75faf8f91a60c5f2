"""From runs to figures: differences to the direct run of the same round, and their spread."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.load import Kind, Seen
from tests.bench.record import Record
from tests.bench.rounds import Result

Measure = Callable[[Seen], float | None]


@dataclass(frozen=True)
class Figure:
    """The median of the rounds, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure | None":
        """Of these values; None where there are none."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values))

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """For a table: the median, and the others where they differ from it."""

        def number(value: float) -> str:
            rounded = round(value * scale, digits)
            return f"{0.0 if rounded == 0 else rounded:,.{digits}f}"

        least, most = number(self.least), number(self.most)
        return (
            number(self.median) if least == most else f"{number(self.median)} ({least} to {most})"
        )


def first_token_p50(seen: Seen) -> float | None:
    """The median time to the first token."""
    return seen.first_token.p50 if seen.first_token else None


def first_token_p99(seen: Seen) -> float | None:
    """The time to the first token that one in a hundred waits longer for."""
    return seen.first_token.p99 if seen.first_token else None


def gap_p50(seen: Seen) -> float | None:
    """The median time between two arrivals of a stream."""
    return seen.gap.p50 if seen.gap else None


def gap_p99(seen: Seen) -> float | None:
    """The time between two arrivals that one in a hundred exceeds."""
    return seen.gap.p99 if seen.gap else None


def delay_p50(seen: Seen) -> float | None:
    """The median time from a chunk's making to its arrival."""
    return seen.delay.p50 if seen.delay else None


def delay_p99(seen: Seen) -> float | None:
    """The same that one chunk in a hundred exceeds."""
    return seen.delay.p99 if seen.delay else None


def plain_p50(seen: Seen) -> float | None:
    """The median time of a plain request."""
    return seen.plain.p50 if seen.plain else None


def plain_p99(seen: Seen) -> float | None:
    """The time of a plain request that one in a hundred exceeds."""
    return seen.plain.p99 if seen.plain else None


def cpu_per_chunk(seen: Seen) -> float | None:
    """CPU seconds of the target for each chunk, while no stream begins or ends."""
    return seen.cpu_seconds / seen.chunks if seen.chunks and seen.cpu_seconds else None


def cpu_per_request(seen: Seen) -> float | None:
    """CPU seconds of the target for each plain request."""
    count = seen.plain.count if seen.plain else 0
    return seen.cpu_seconds / count if count and seen.cpu_seconds else None


class Figures:
    """Looks figures up in a record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._found = {
            (one.target, one.kind, one.streams, one.round): one for one in record.results
        }

    def streams(self) -> list[int]:
        """The numbers of streams that were measured."""
        return self.loads("streams")

    def loads(self, kind: Kind) -> list[int]:
        """The numbers of streams, or of plain requests a second, that were measured."""
        return sorted({one.streams for one in self.record.results if one.kind == kind})

    def results(self, target: str, kind: Kind, streams: int) -> list[Result]:
        """All rounds of it, in order."""
        found = [
            self._found.get((target, kind, streams, number)) for number in range(self.record.rounds)
        ]
        return [one for one in found if one is not None]

    def of(
        self, target: str, measure: Measure, streams: int = 1, kind: Kind = "streams"
    ) -> Figure | None:
        """A measure itself."""
        values = [
            value
            for one in self.results(target, kind, streams)
            if one.seen is not None and (value := measure(one.seen)) is not None
        ]
        return Figure.of(values)

    def added(
        self, target: str, measure: Measure, streams: int = 1, kind: Kind = "streams"
    ) -> Figure | None:
        """What is added to the direct run of the same round."""
        return self._paired(target, "direct", measure, streams, kind, lambda a, b: a - b)

    def ratio(
        self, target: str, other: str, measure: Measure, streams: int = 1, kind: Kind = "streams"
    ) -> Figure | None:
        """One target's measure as a multiple of another's in the same round."""
        return self._paired(target, other, measure, streams, kind, lambda a, b: a / b)

    def total(self, target: str, streams: int, count: Callable[[Result], int]) -> int:
        """A count over all rounds."""
        return sum(count(one) for one in self.results(target, "streams", streams))

    def memory_per_stream(self, target: str, streams: int) -> Figure | None:
        """Bytes that each open stream takes on top of the idle target."""
        values = [
            (one.seen.memory_bytes - one.idle_memory_bytes) / streams
            for one in self.results(target, "streams", streams)
            if one.seen is not None and one.seen.memory_bytes and one.idle_memory_bytes
        ]
        return Figure.of(values)

    def error(self, target: str, kind: Kind, streams: int) -> str:
        """Why there are no figures; empty if there are some, or it was not measured."""
        found = self.results(target, kind, streams)
        if not found or any(one.seen is not None for one in found):
            return ""
        return found[0].error

    def _paired(
        self,
        target: str,
        other: str,
        measure: Measure,
        streams: int,
        kind: Kind,
        compare: Callable[[float, float], float],
    ) -> Figure | None:
        values = []
        for one in self.results(target, kind, streams):
            beside = self._found.get((other, kind, streams, one.round))
            if one.seen is None or beside is None or beside.seen is None:
                continue
            ours, theirs = measure(one.seen), measure(beside.seen)
            if ours is not None and theirs:
                values.append(compare(ours, theirs))
        return Figure.of(values)
