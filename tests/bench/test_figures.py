"""Figures are differences to the direct run of the same round."""

from typing import Any

import pytest

from tests.bench import figures
from tests.bench.figures import Figure, Figures
from tests.bench.load import Seen, Spread
from tests.bench.record import Machine, Named, Record
from tests.bench.rounds import Result


def record(*results: Result, **changes: Any) -> Record:
    """A record of these runs."""
    names = dict.fromkeys(one.target for one in results)
    fields: dict[str, Any] = {
        "day": "2026-11-01",
        "revision": "abc1234",
        "machine": Machine("A processor", 2, 8 * 2**30, "Linux 6", "3.11.0"),
        "packages": {"httpx": "0.28.1"},
        "rounds": 1 + max(one.round for one in results),
        "window_seconds": 5.0,
        "load_average": 0.1,
        "targets": [Named(name, f"the {name}") for name in names],
        "results": list(results),
    }
    return Record(**(fields | changes))


def run(target: str, number: int, seconds: float, **changes: Any) -> Result:
    """A run in which all that is timed took that long."""
    spread = Spread(10, seconds, seconds, seconds, seconds, seconds)
    seen = Seen(first_token=spread, gap=spread, delay=spread)
    for name in set(changes) & set(Seen.__struct_fields__):
        setattr(seen, name, changes.pop(name))
    fields: dict[str, Any] = {"kind": "streams", "streams": 10, "seen": seen} | changes
    return Result(round=number, target=target, **fields)


def test_what_is_added_is_paired_by_round() -> None:
    found = Figures(
        record(
            *(run("direct", number, seconds) for number, seconds in enumerate([1, 5, 2])),
            *(run("relay", number, seconds) for number, seconds in enumerate([2, 7, 5])),
        )
    )
    assert found.added("relay", figures.gap_p50, 10) == Figure(2, 1, 3)
    assert found.ratio("relay", "direct", figures.gap_p50, 10) == Figure(2, 1.4, 2.5)


def test_a_round_that_failed_is_left_out() -> None:
    found = Figures(
        record(
            *(run("direct", number, 1) for number in range(2)),
            run("relay", 0, 3, seen=None, error="it fell over"),
            run("relay", 1, 4),
        )
    )
    assert found.added("relay", figures.gap_p50, 10) == Figure(3, 3, 3)
    assert found.error("relay", "streams", 10) == ""


def test_costs_are_for_each_chunk_and_each_stream() -> None:
    found = Figures(
        record(
            run(
                *("relay", 0, 1),
                cpu_seconds=0.5,
                chunks=1000,
                memory_bytes=3000,
                idle_memory_bytes=1000,
            )
        )
    )
    assert found.of("relay", figures.cpu_per_chunk, 10) == Figure(0.0005, 0.0005, 0.0005)
    assert found.memory_per_stream("relay", 10) == Figure(200, 200, 200)


@pytest.mark.parametrize(
    ("values", "text"),
    [([0.0021], "2.1"), ([0.001, 0.002, 0.004], "2.0 (1.0 to 4.0)"), ([-0.00001], "0.0")],
)
def test_a_spread_is_told_where_there_is_one(values: list[float], text: str) -> None:
    figure = Figure.of(values)
    assert figure is not None
    assert figure.text(1000) == text


def test_a_record_is_the_same_when_it_is_read_again(tmp_path: Any) -> None:
    before = record(run("direct", 0, 1.5), run("relay", 0, 2.25, calls={"run": {"admitted": 3}}))
    path = tmp_path / "figures.json"
    before.save(path)
    assert Record.load(path) == before
    assert sum(line.startswith('{"round"') for line in path.read_text().splitlines()) == 2
