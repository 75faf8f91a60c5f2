"""How long the start of a worker takes: the one that is waited for, and those before it.

The times of past starts are kept in a file of the state folder, by the endpoint's URL. They cost
nothing to lose; where the folder cannot be used they are in memory alone.
"""

import contextlib
import json
import logging
import math
import os
import statistics
import time
import uuid
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

LOADING_SECONDS: Final = 5.0
"""A worker that has taken jobs, and has not answered for so long, may be loading its model."""
MAX_STARTS: Final = 20
"""So many of the last starts say what is usual."""
MAX_ENDPOINTS: Final = 1000
MAX_FILE_BYTES: Final = 1_000_000


class StartTimes:
    """The seconds that past starts took, by endpoint."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "start_times.json" if folder else None
        self._times = self._read()

    def of(self, endpoint: str) -> list[float]:
        """The last ones of this endpoint, the newest last."""
        return self._times.get(endpoint, [])

    def add(self, endpoint: str, seconds: float) -> None:
        """One more."""
        self._times = self._read() | self._times  # another proxy may share the folder
        kept = [*self._times.pop(endpoint, []), round(seconds, 1)][-MAX_STARTS:]
        self._times[endpoint] = kept
        while len(self._times) > MAX_ENDPOINTS:
            del self._times[next(iter(self._times))]
        self._write()

    def _read(self) -> dict[str, list[float]]:
        if self._path is None:
            return {}
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                return {}
            found: Any = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: _numbers(times) for name, times in found.items()}

    def _write(self) -> None:
        if self._path is None:
            return
        draft = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        try:
            draft.write_text(json.dumps(self._times))
            os.replace(draft, self._path)
        except OSError as exc:
            log.debug("the times of starts are not kept: %s", exc)
            with contextlib.suppress(OSError):
                draft.unlink()


class StartClock:
    """Measures the starts of one endpoint, as a request meets them: from asking to an answer."""

    def __init__(self, name: str, url: str, times: StartTimes) -> None:
        self._name = name
        self._url = url
        self._times = times
        self._began: float | None = None
        self._is_start = False
        self._ended = -math.inf
        """When the last start was over, or waited for no more."""
        self.phase = ""
        """What the worker that starts is doing, in a word or two, where that is known."""

    @property
    def usual_seconds(self) -> float | None:
        """The median of the last starts."""
        times = self._times.of(self._url)
        return statistics.median(times) if times else None

    @property
    def elapsed_seconds(self) -> float | None:
        """Since a request began to wait for a start; None if none does."""
        if self._began is None or not self._is_start:
            return None
        return time.monotonic() - self._began

    def has_met_start(self, began: float) -> bool:
        """Whether one who has waited since then (monotonic clock) has waited for a start."""
        return self._is_start or self._ended >= began

    def begin(self) -> None:
        """A request waits; whether for a start, or for a worker that is up, will show."""
        if self._began is None:
            self._began = time.monotonic()

    def confirm(self, *, is_sure: bool = True) -> None:
        """No worker is up: it is a start that is waited for.

        Where workers run of which it is not sure that they are not up, it is one if it takes long.
        """
        if self._began is None or self._is_start:
            return
        if is_sure or time.monotonic() - self._began > LOADING_SECONDS:
            self._is_start = True
            log.info("endpoint %s: a worker has to be started%s", self._name, self.usually)

    def end(self) -> None:
        """A worker has answered."""
        if (seconds := self.elapsed_seconds) is not None:
            log.info("endpoint %s: a worker was up after %.0f s", self._name, seconds)
            self._times.add(self._url, seconds)
        self.give_up()

    def give_up(self) -> None:
        """No request waits any more."""
        if self._is_start:
            self._ended = time.monotonic()
        self._began, self._is_start, self.phase = None, False, ""

    @property
    def usually(self) -> str:
        """`, usually 95 s`; empty if no start is known."""
        usual = self.usual_seconds
        return "" if usual is None else f", usually {max(1, round(usual))} s"

    def waited(self, seconds: float) -> str:
        """` 40 s, usually 95 s` for one who has waited so long; empty if there is nothing to say.

        With the phase, where that is known.
        """
        if not self.usually and not self.phase:
            return ""
        phase = f", {self.phase}" if self.phase else ""
        return f" {seconds:.0f} s{phase}{self.usually}"


def _numbers(times: Any) -> list[float]:
    kept = times[-MAX_STARTS:] if isinstance(times, list) else []
    return [float(n) for n in kept if isinstance(n, int | float) and 0 <= n < 1e6]
