"""BillingQuery: of which time a caller of RunPod's REST API asks for the bill, checked."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, get_args

from starlette.requests import Request

from emulator.errors import BadRequest
from emulator.fleet.bill import BucketSize, bucket_of
from emulator.gateway.http import whole_number

USUAL_TIME: Final = timedelta(days=30)
MAX_BUCKETS: Final = 10_000
"""That `lastN` may ask for."""
_JUST_BEFORE: Final = timedelta(microseconds=1)
_SIZES: Final[tuple[BucketSize, ...]] = get_args(BucketSize)


@dataclass(frozen=True, slots=True)
class BillingQuery:
    """A window from the start of one bucket to that of another, and whose bill it is."""

    start: datetime
    end: datetime
    size: BucketSize
    endpoint: str | None

    @classmethod
    def parse(cls, request: Request, now: datetime) -> Self:
        """The parameters as RunPod documents them; BadRequest for one that makes no sense."""
        given = request.query_params
        size = _size(given.get("bucketSize", "day"))
        if "lastN" in given and given.keys() & {"startTime", "endTime"}:
            raise BadRequest("lastN and startTime or endTime are mutually exclusive")
        try:
            if "lastN" in given:
                start, end = _last(_count(request), size, now)
            else:
                start = bucket_of(_moment(request, "startTime", now - USUAL_TIME), size)[0]
                end = bucket_of(_moment(request, "endTime", now) - _JUST_BEFORE, size)[1]
        except (OverflowError, ValueError):
            raise BadRequest("the billing period is out of range") from None
        return cls(start, end, size, given.get("serverlessId"))

    def view(self) -> dict[str, Any]:
        """What was asked for, as the answer repeats it."""
        window = {"startTime": timestamp(self.start), "endTime": timestamp(self.end)}
        return {**window, "bucketSize": self.size, "serverlessId": self.endpoint}


def timestamp(moment: datetime) -> str:
    """A moment as RFC 3339, in UTC."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _size(text: str) -> BucketSize:
    for size in _SIZES:
        if text == size:
            return size
    raise BadRequest(f"bucketSize must be one of {', '.join(_SIZES)}")


def _count(request: Request) -> int:
    count = whole_number(request, "lastN", 1)
    if not 1 <= count <= MAX_BUCKETS:
        raise BadRequest(f"lastN must be from 1 to {MAX_BUCKETS}")
    return count


def _last(count: int, size: BucketSize, now: datetime) -> tuple[datetime, datetime]:
    start, end = bucket_of(now, size)
    for _ in range(count - 1):
        start = bucket_of(start - _JUST_BEFORE, size)[0]
    return start, end


def _moment(request: Request, name: str, default: datetime) -> datetime:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadRequest(f"{name} must be an RFC3339 timestamp")
    return moment
