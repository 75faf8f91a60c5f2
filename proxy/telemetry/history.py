"""What has happened lately, for the status page: a sample for every ten seconds of two hours.

It is in memory and bounded, whatever is asked and by whomever: the oldest samples go, and of many
names in one sample only the first are told apart.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from proxy.telemetry.ended_request import EndedRequest

STEP_SECONDS: Final = 10
MAX_SAMPLES: Final = 720
MAX_NAMES: Final = 30
"""So many keys, and models, are told apart in one sample."""
OTHERS: Final = "(others)"
MAX_TIMES: Final = 500
"""So many times to a first token make a sample's percentiles."""
MAX_ERRORS: Final = 50


@dataclass(slots=True)
class Share:
    """What came of one key's requests, or of those to one model."""

    requests: int = 0
    not_completed: int = 0
    """Those of them that failed, or whose client left."""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    """Of workers."""
    dollars: float = 0.0
    """As they are estimated."""


@dataclass(slots=True)
class Sample:
    """What happened in ten seconds, and how things stood at their end."""

    number: int
    """Counted from the start of this proxy."""
    time: int
    """When it began, a Unix time that is a multiple of ten: samples of copies fit together."""
    completed: int = 0
    failed: int = 0
    left: int = 0
    """Requests whose client did not wait for the end."""
    cold: int = 0
    """Requests that waited for a worker to be started."""
    cold_seconds: float | None = None
    """How long the longest of them waited for its first token."""
    first_token: tuple[float, float] | None = None
    """The median and the 95th percentile, of streams that a worker was up for."""
    keys: dict[str, Share] = field(default_factory=dict)
    models: dict[str, Share] = field(default_factory=dict)
    now: Mapping[str, Any] = field(default_factory=dict)
    """What was under way at the end of the sample."""


class History:
    """The last samples, and the last errors."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.id = secrets.token_hex(4)
        """Of this copy of the proxy, since it was started."""
        self._clock = clock
        self._samples: deque[tuple[int, msgspec.Raw]] = deque(maxlen=MAX_SAMPLES)
        """By their numbers, as JSON: to make it of all of them at once would take long."""
        self._errors: deque[dict[str, Any]] = deque(maxlen=MAX_ERRORS)
        self._times: list[float] = []
        """To the first token, of the sample that is being made."""
        self._keeping: asyncio.Task[None] | None = None
        self._sample = self._begun(1)

    @property
    def step_seconds(self) -> int:
        """How long a sample takes."""
        return STEP_SECONDS

    def note(self, ended: EndedRequest) -> None:
        """A request has ended; only those count that a worker might have answered."""
        if not ended.route:
            return
        sample, is_failure = self._sample, ended.outcome not in ("completed", "client_left")
        if is_failure:
            sample.failed += 1
            self._errors.append(_error(ended, self._clock()))
        elif ended.outcome == "completed":
            sample.completed += 1
        else:
            sample.left += 1
        self._note_first_token(ended)
        for share in self._shares(ended.key, ended.model):
            share.requests += 1
            share.not_completed += ended.outcome != "completed"
            share.tokens_in += ended.tokens[0]
            share.tokens_out += ended.tokens[1]

    def note_spent(self, key: str, model: str, seconds: float, dollars: float) -> None:
        """A worker had a job for so long."""
        for share in self._shares(key, model):
            share.seconds += seconds
            share.dollars += dollars

    def after(self, number: int) -> list[msgspec.Raw]:
        """The whole samples that came after the one of this number, as JSON."""
        return [sample for its_number, sample in self._samples if its_number > number]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The last requests that failed, the newest first."""
        return list(reversed(self._errors))

    def begin(self, now: Callable[[], Mapping[str, Any]]) -> None:
        """Make samples until it is closed; `now` tells what is under way."""
        self._keeping = asyncio.create_task(self._keep(now))

    async def close(self) -> None:
        """Make no more samples."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    def close_sample(self, now: Callable[[], Mapping[str, Any]]) -> None:
        """Keep the sample that is being made, and begin the next, if its time has come."""
        following = self._begun(self._sample.number + 1)
        if following.time == self._sample.time:  # clocks and sleeps do not agree to the millisecond
            return
        if self._times:
            times = sorted(self._times)
            self._sample.first_token = (times[len(times) // 2], times[len(times) * 95 // 100])
        self._sample.now = now()
        made = msgspec.Raw(msgspec.json.encode(self._sample))
        self._samples.append((self._sample.number, made))
        self._sample, self._times = following, []

    async def _keep(self, now: Callable[[], Mapping[str, Any]]) -> None:
        while True:
            await asyncio.sleep(STEP_SECONDS - self._clock() % STEP_SECONDS)
            self.close_sample(now)

    def _begun(self, number: int) -> Sample:
        return Sample(number, int(self._clock()) // STEP_SECONDS * STEP_SECONDS)

    def _note_first_token(self, ended: EndedRequest) -> None:
        if (seconds := ended.first_token_seconds) is None:
            return
        if ended.course.was_cold:
            self._sample.cold += 1
            self._sample.cold_seconds = max(seconds, self._sample.cold_seconds or 0)
        elif len(self._times) < MAX_TIMES:
            self._times.append(seconds)

    def _shares(self, key: str, model: str) -> tuple[Share, Share]:
        return _share(self._sample.keys, key), _share(self._sample.models, model)


def _share(shares: dict[str, Share], name: str) -> Share:
    if name not in shares and len(shares) >= MAX_NAMES:
        name = OTHERS
    return shares.setdefault(name, Share())


def _error(ended: EndedRequest, now: float) -> dict[str, Any]:
    return {
        "time": int(now),
        "id": ended.id,
        "route": ended.route,
        "status": ended.status,
        "outcome": ended.outcome,
        "key": ended.key,
        "model": ended.model,
        "seconds": round(ended.seconds, 3),
    }
