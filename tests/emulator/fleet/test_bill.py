"""What workers have cost, in buckets of time."""

from datetime import UTC, datetime, timedelta

import pytest

from emulator.fleet.bill import BucketSize, billed_seconds, bucket_of
from emulator.fleet.slot import Start

NOON = datetime(2026, 2, 26, 12, 0, tzinfo=UTC)
"""A Thursday."""


def worker(placed: datetime | None, ended: datetime | None) -> Start:
    placed_at, ended_at = (None if one is None else one.timestamp() for one in (placed, ended))
    return Start("w", NOON.timestamp() - 60, placed_at=placed_at, ended_at=ended_at)


@pytest.mark.parametrize(
    ("size", "start", "end"),
    [
        ("hour", (2026, 2, 26, 12), (2026, 2, 26, 13)),
        ("day", (2026, 2, 26), (2026, 2, 27)),
        ("week", (2026, 2, 23), (2026, 3, 2)),
        ("month", (2026, 2, 1), (2026, 3, 1)),
        ("year", (2026, 1, 1), (2027, 1, 1)),
    ],
)
def test_a_bucket_ends_where_the_next_begins(
    size: BucketSize, start: tuple[int, int, int], end: tuple[int, int, int]
) -> None:
    begins, ends = bucket_of(NOON + timedelta(minutes=59), size)
    assert (begins, ends) == (datetime(*start, tzinfo=UTC), datetime(*end, tzinfo=UTC))
    assert bucket_of(begins, size) == (begins, ends)
    assert bucket_of(ends, size)[0] == ends


def test_each_worker_is_billed_from_its_container_to_its_end_whatever_it_does() -> None:
    starts = [
        worker(NOON, NOON + timedelta(seconds=9.2)),
        worker(NOON + timedelta(seconds=5), None),
        worker(None, NOON + timedelta(seconds=99)),  # was stopped before it had a container
        worker(None, None),
    ]
    found = billed_seconds(starts, "hour", NOON + timedelta(seconds=25))
    assert found == {NOON: 10 + 20}


def test_what_lasts_over_the_end_of_a_bucket_is_parted_there() -> None:
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    one = worker(midnight - timedelta(seconds=30), midnight + timedelta(hours=1, seconds=1))
    assert billed_seconds([one], "month", midnight) == {
        datetime(2026, 2, 1, tzinfo=UTC): 30,
        midnight: 3601,
    }
