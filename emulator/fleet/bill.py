"""What workers have cost, in buckets of time: from their container's start to its end.

RunPod's documents tell in two ways which of a worker's seconds it bills. Here it is all of them,
those in which it loads its model and those in which it idles, rounded up.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from emulator.fleet.slot import Start

BucketSize = Literal["hour", "day", "week", "month", "year"]


def bucket_of(moment: datetime, size: BucketSize) -> tuple[datetime, datetime]:
    """The bucket, of UTC, that the moment is in: its start, and the next one's."""
    hour = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    match size:
        case "hour":
            return hour, hour + timedelta(hours=1)
        case "day":
            return day, day + timedelta(days=1)
        case "week":
            monday = day - timedelta(days=day.weekday())
            return monday, monday + timedelta(days=7)
        case "month":
            first = day.replace(day=1)
            return first, (first + timedelta(days=31)).replace(day=1)
        case "year":
            first = day.replace(month=1, day=1)
            return first, first.replace(year=first.year + 1)


def billed_seconds(
    starts: Iterable[Start], size: BucketSize, now: datetime
) -> Mapping[datetime, int]:
    """Seconds of workers by the start of their bucket; none of a bucket without any."""
    found: dict[datetime, int] = {}
    for start in starts:
        if start.placed_at is None:
            continue
        begun = datetime.fromtimestamp(start.placed_at, UTC)
        ended = now if start.ended_at is None else datetime.fromtimestamp(start.ended_at, UTC)
        while begun < ended:
            bucket, next_bucket = bucket_of(begun, size)
            seconds = (min(ended, next_bucket) - begun).total_seconds()
            found[bucket] = found.get(bucket, 0) + math.ceil(seconds)
            begun = next_bucket
    return found
